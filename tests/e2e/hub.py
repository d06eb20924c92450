"""Docker Hub under its own name, for a client that cannot be told another: TLS on 443 and a hosts file that says so."""

from __future__ import annotations

import asyncio
import random
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Self

from tests.e2e.loops import LoopThread
from tests.e2e.programs import need, run

NAME = "registry-1.docker.io"

_LIMIT = 10.0  # seconds for its start and its end


class Hub:
    """Passes what comes for docker.io on to a plain registry on 127.0.0.1:`port`; a context manager.

    Programs find it where `hosts` is their /etc/hosts, and trust it where SSL_CERT_FILE is `certificate`.
    """

    def __init__(self, home: Path, port: int) -> None:
        need("openssl", root=True)  # root may listen on 443
        self.certificate, key, self.hosts = home / "hub.crt", home / "hub.key", home / "hosts"
        run(
            "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={NAME}",
            "-addext", f"subjectAltName=DNS:{NAME}", "-keyout", key, "-out", self.certificate,
            home=home,
        )  # fmt: skip
        # One of the many loopback addresses, so that nothing else listens there.
        self._address = ".".join(("127", *(str(random.randint(1, 254)) for _ in range(3))))
        self.hosts.write_text(f"127.0.0.1 localhost\n{self._address} {NAME}\n")
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(self.certificate, key)
        self._port = port
        self._loop = LoopThread("hub", _LIMIT)
        self._connections: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Self:
        self._loop.start()
        try:
            self._server = self._loop.run(asyncio.start_server(self._pass_on, self._address, 443, ssl=self._tls))
        except BaseException:
            self._loop.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._loop.run(self._close())
        finally:
            self._loop.end()

    async def _close(self) -> None:
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        behind, to_behind = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            await asyncio.gather(_copy(reader, to_behind), _copy(behind, writer))
        finally:
            to_behind.close()
            writer.close()
            self._connections.discard(task)


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while piece := await source.read(1 << 16):
            target.write(piece)
            await target.drain()
    target.close()

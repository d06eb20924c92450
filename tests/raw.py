"""A client that sees what happens on the wire: every byte, and whether the end was a FIN or a reset."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
from dataclasses import dataclass
from typing import Any, Self

from multidict import CIMultiDict

from tests.certificates import client_tls


@dataclass(frozen=True, slots=True)
class Head:
    """Status line and headers of an answer."""

    version: str
    status: int
    headers: CIMultiDict[str]

    @property
    def length(self) -> int:
        """The Content-Length."""
        return int(self.headers["Content-Length"])


class RawClient:
    """One TCP connection. Reads nothing by itself; `receive_buffer` (bytes) makes it take little unread."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self._unread = bytearray()

    @classmethod
    async def connect(cls, port: int, receive_buffer: int | None = None) -> Self:
        """Connects to a port on loopback."""
        client = socket.socket()
        client.setblocking(False)
        if receive_buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", port))
        return cls(client)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.socket.close()

    async def send(self, data: bytes) -> None:
        """Sends these bytes."""
        await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def ask(self, path: str, method: str = "GET", version: str = "1.1", **headers: str) -> None:
        """Sends a request; header names with `_` for `-`."""
        named = {"Host": "mirror", **{name.replace("_", "-"): value for name, value in headers.items()}}
        lines = [f"{method} {path} HTTP/{version}", *(f"{name}: {value}" for name, value in named.items())]
        await self.send("\r\n".join([*lines, "", ""]).encode("latin-1"))

    async def head(self) -> Head:
        """The next answer's status line and headers. Raises EOFError where the connection ends before them."""
        while (end := self._unread.find(b"\r\n\r\n")) < 0:
            if not await self._receive():
                raise EOFError(bytes(self._unread))
        first, *lines = self._take(end + 4)[:end].decode("latin-1").split("\r\n")
        version, status, *_ = first.split(" ")
        pairs = [line.split(": ", 1) for line in lines]
        return Head(version, int(status), CIMultiDict([(name, value) for name, value in pairs]))

    async def read(self, count: int) -> bytes:
        """The next `count` bytes; fewer where the connection ends."""
        while len(self._unread) < count and await self._receive():
            pass
        return self._take(count)

    async def rest(self) -> bytes:
        """Everything up to the FIN. Raises ConnectionResetError where there is none, but a reset."""
        while await self._receive():
            pass
        return self._take(len(self._unread))

    async def answer(self, *, body: bool = True) -> tuple[Head, bytes]:
        """The next answer, of which the length is known."""
        head = await self.head()
        return head, await self.read(head.length) if body else b""

    async def error(self) -> tuple[int, dict[str, Any]]:
        """The status of the next answer, and the first error of its envelope."""
        head, body = await self.answer()
        return head.status, json.loads(body)["errors"][0]

    def end(self) -> None:
        """Says that nothing more will be sent (FIN); the other direction stays open."""
        self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Closes; unread bytes make it a reset."""
        self.socket.close()

    def reset(self) -> None:
        """Closes by a reset, as a killed process does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def _take(self, count: int) -> bytes:
        data = bytes(self._unread[:count])
        del self._unread[:count]
        return data

    async def _receive(self) -> bool:
        await asyncio.sleep(0)  # sock_recv gives nobody else a turn while there are bytes
        data = await asyncio.get_running_loop().sock_recv(self.socket, 1 << 20)
        self._unread += data
        return bool(data)


class SecuredClient(RawClient):
    """The same over TLS. `told` is whether we were told that nothing more comes (close_notify)."""

    def __init__(self, connected: socket.socket) -> None:
        super().__init__(connected)
        self.told = False
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = client_tls().wrap_bio(self._incoming, self._outgoing, server_hostname="127.0.0.1")

    @classmethod
    async def connect(cls, port: int, receive_buffer: int | None = None) -> Self:
        """Connects to a port on loopback, and gets through the handshake."""
        client = await super().connect(port, receive_buffer)
        while True:
            try:
                client._tls.do_handshake()
            except ssl.SSLWantReadError:
                await client._flush()
                if not await client._hear():
                    raise EOFError("in the handshake") from None
            else:
                await client._flush()
                return client

    async def send(self, data: bytes) -> None:
        """Sends these bytes."""
        self._tls.write(data)
        await self._flush()

    async def _flush(self) -> None:
        if self._outgoing.pending:
            await super().send(self._outgoing.read())

    async def _hear(self) -> bool:
        await asyncio.sleep(0)
        data = await asyncio.get_running_loop().sock_recv(self.socket, 1 << 20)
        self._incoming.write(data) if data else self._incoming.write_eof()
        return bool(data)

    async def _receive(self) -> bool:
        while True:
            try:
                data = self._tls.read(1 << 20)
            except ssl.SSLWantReadError:
                await self._hear()
            except ssl.SSLEOFError:
                return False
            else:
                self._unread += data
                self.told = not data
                return bool(data)

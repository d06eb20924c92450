"""A mirror in a thread of its own, and a client without asyncio that checks whatever comes back."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from multidict import CIMultiDict

from mirror.config import UpstreamSettings
from tests.asking import Names
from tests.harness import RunningMirror
from tests.upstream import FakeRegistry, Image

CODES = frozenset(
    {
        *("BLOB_UNKNOWN", "BLOB_UPLOAD_INVALID", "BLOB_UPLOAD_UNKNOWN", "DIGEST_INVALID", "MANIFEST_BLOB_UNKNOWN"),
        *("MANIFEST_INVALID", "MANIFEST_UNKNOWN", "NAME_INVALID", "NAME_UNKNOWN", "SIZE_INVALID", "UNAUTHORIZED"),
        *("DENIED", "UNSUPPORTED", "TOOMANYREQUESTS"),
    }
)
"""Those of the distribution specification."""
_PATIENCE = 15.0
_QUIET = 0.03
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_BODILESS = (204, 304)


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer; `body` is None where there is none in spite of a Content-Length: to a HEAD."""

    status: int
    headers: CIMultiDict[str]
    body: bytes | None


class Surface:
    """What clients see of the mirror that listens on `port`."""

    def __init__(self, port: int, image: Image) -> None:
        self.port = port
        self.image = image
        self._contents = {str(thing.digest): thing.content for thing in (image.manifest, *image.blobs)}

    def connect(self) -> socket.socket:
        """A connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=_PATIENCE)

    def ask(self, *pieces: bytes) -> list[Answer]:
        """Sends these pieces; returns what is answered until the connection is closed, or quiet after an answer.

        Raises AssertionError where nothing comes for long, or what comes is not HTTP.
        """
        with self.connect() as client:
            try:
                for piece in pieces:
                    client.sendall(piece)
            except ConnectionError:
                pass  # closed on what came first; there may be an answer to that
            return _received(client)

    def get(self, path: str) -> bytes:
        """The body of a GET that is answered 200."""
        (answer,) = self.ask(f"GET {path} HTTP/1.1\r\nHost: mirror\r\nConnection: close\r\n\r\n".encode())
        assert answer.status == 200, answer
        assert answer.body is not None
        return answer.body

    def check(self, answer: Answer) -> None:
        """What holds of every answer, whatever was asked, by a mirror whose upstream answers."""
        assert answer.status < 500, answer
        assert answer.status != 401, answer
        if answer.status >= 400:
            assert answer.headers["Content-Type"] == "application/json", answer
        if answer.status == 405:
            assert answer.headers["Allow"] == "GET, HEAD"
            assert answer.body is not None, "405 to a HEAD"
        if answer.body is None:
            return
        if answer.status >= 400:
            (error,) = json.loads(answer.body)["errors"]
            assert set(error) == {"code", "message", "detail"}
            assert error["code"] in CODES
            assert error["message"]
        elif digest := answer.headers.get("Docker-Content-Digest"):
            self._check_content(answer, self._contents[digest])

    def _check_content(self, answer: Answer, content: bytes) -> None:
        if answer.status == 200:
            assert answer.body == content
        elif (match := _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))) is not None:
            start, end, size = map(int, match.groups())
            assert (answer.body, size) == (content[start : end + 1], len(content))
        else:
            assert answer.headers["Content-Type"].startswith("multipart/byteranges") or answer.status == 304, answer


@contextmanager
def surface(path: Path) -> Iterator[Surface]:
    """A mirror with its data in `path`, before a registry that has library/demo:1 and answers at once.

    No other upstream can be reached. The registry has a second name, and what clients say of proxies is believed.
    Raises what went wrong in the registry.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="mirror")
    thread.start()

    def run(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(timeout=30)

    async def make() -> tuple[FakeRegistry, RunningMirror, Image]:
        upstream = await FakeRegistry().start()
        image = upstream.add_image("library/demo", "1", layers=[5000, b""])
        mirror = RunningMirror(
            path,
            {"docker.io": upstream, "registry.test:5000": UpstreamSettings(url=upstream.url, hosts=("alias.test",))},
            wiring={"resolver": Names({})},
            trusted_proxies=(ip_network("127.0.0.0/8"),),
        )
        await mirror.start()
        return upstream, mirror, image

    try:
        upstream, mirror, image = run(make())
        try:
            yield Surface(mirror.app.port, image)
        finally:
            run(mirror.stop())
            run(upstream.__aexit__())
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _received(client: socket.socket) -> list[Answer]:
    data = bytearray()
    answers: list[Answer] = []
    while True:
        headers_alone = data.endswith(b"\r\n\r\n") and not answers  # as of a HEAD, if nothing follows
        client.settimeout(_QUIET if answers else 10 * _QUIET if headers_alone else _PATIENCE)
        try:
            piece = client.recv(1 << 20)
        except TimeoutError:
            assert answers or headers_alone, f"no answer, only {bytes(data)!r}"
            piece = b""
        except ConnectionError:
            piece = b""
        data += piece
        answers = _parsed(bytes(data), ended=not piece)
        if not piece:
            return answers


def _parsed(data: bytes, *, ended: bool) -> list[Answer]:
    """The answers that have come whole; once it has ended, nothing may be left over."""
    found: list[Answer] = []
    while data:
        top, end, rest = data.partition(b"\r\n\r\n")
        if not end and not ended:
            break
        assert data.startswith(b"HTTP/"), data
        first, *lines = top.decode("latin-1").split("\r\n")
        headers = CIMultiDict((name, value) for name, _, value in (line.partition(": ") for line in lines))
        status = int(first.split(" ")[1])
        length = 0 if status in _BODILESS else int(headers["Content-Length"])
        body: bytes | None = rest[:length]
        if length and (rest.startswith(b"HTTP/") or (not rest and ended)):
            body, length = None, 0
        elif len(rest) < length:
            assert not ended, f"a body that is too short: {data!r}"
            break
        data = rest[length:]
        found.append(Answer(status, headers, body))
    return found

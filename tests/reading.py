"""A client that reads a body as slowly as a test likes and sees how the connection ended; and watches over leaks."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from multidict import CIMultiDict

from mirror.store.budget import Budget
from tests.harness import RunningMirror

_PIECE = 64 << 10
Ending = Literal["complete", "short", "reset"]


class Reading:
    """One GET on a connection of its own, whose headers have come; an async context manager, which leaves at its end.

    `ending` is known after `rest`: `complete`, `short` (closed in order before Content-Length) or `reset`.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, status: int, headers: CIMultiDict[str]
    ) -> None:
        self.status = status
        self.headers = headers
        self.length = int(headers["Content-Length"])
        self.taken = 0
        """Body bytes read so far."""
        self.ending: Ending | None = None
        self._reader = reader
        self._writer = writer

    @classmethod
    async def ask(
        cls, mirror: RunningMirror, path: str, *, receive_buffer: int | None = None, limit: float = 10.0, **headers: str
    ) -> Self:
        """Sends the request and reads the answer's head, within `limit` seconds; header names with `_` for `-`.

        `receive_buffer`: bytes that the kernel takes in for us; with a small one an unread body soon stops its sender.
        """
        reader, writer = await _connect(mirror.url, receive_buffer)
        lines = [f"GET {path} HTTP/1.1", "Host: mirror.test"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode())
        try:
            async with asyncio.timeout(limit):
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        except BaseException:
            writer.transport.abort()
            raise
        fields = CIMultiDict([(name, value) for name, _, value in (line.partition(": ") for line in head[1:] if line)])
        return cls(reader, writer, int(head[0].split()[1]), fields)

    async def take(self, count: int, limit: float = 10.0) -> bytes:
        """Exactly the next `count` bytes of the body. Raises IncompleteReadError, TimeoutError."""
        async with asyncio.timeout(limit):
            data = await self._reader.readexactly(count)
        self.taken += count
        return data

    async def rest(self, limit: float = 10.0) -> bytes:
        """What else comes until the body or the connection ends."""
        pieces = []
        async with asyncio.timeout(limit):
            try:
                while self.taken < self.length:
                    piece = await self._reader.read(min(_PIECE, self.length - self.taken))
                    if not piece:
                        break
                    self.taken += len(piece)
                    pieces.append(piece)
                self.ending = "complete" if self.taken == self.length else "short"
            except ConnectionResetError:
                self.ending = "reset"
        return b"".join(pieces)

    def leave(self) -> None:
        """Closes the connection with whatever has not been read."""
        self._writer.transport.abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.leave()


@asynccontextmanager
async def readings(count: int, mirror: RunningMirror, path: str, **options: Any) -> AsyncIterator[list[Reading]]:
    """Several clients that ask for the same at once."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(Reading.ask(mirror, path, **options)) for _ in range(count)]
    found = [task.result() for task in tasks]
    try:
        yield found
    finally:
        for reading in found:
            reading.leave()


async def _connect(url: str, receive_buffer: int | None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(url)
    sock = socket.socket()
    sock.setblocking(False)
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    await asyncio.get_running_loop().sock_connect(sock, (parts.hostname, parts.port))
    return await asyncio.open_connection(sock=sock, limit=receive_buffer or 2**16)


def blob_path(repository: str, blob: Any) -> str:
    """The path of a blob's GET."""
    return f"/v2/{repository}/blobs/{blob.digest}"


def spools(mirror: RunningMirror) -> list[str]:
    """The names of the spool files on the disk."""
    return sorted(path.name for path in (mirror.settings.storage.path / "spool").glob("sha*"))


def open_files(mirror: RunningMirror) -> list[str]:
    """What this process has open of the blobs and spools in the mirror's data directory, deleted files included."""
    root = str(mirror.settings.storage.path)
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            target = str(descriptor.readlink())
        except FileNotFoundError:
            continue  # the descriptor of the listing itself
        if target.startswith((f"{root}/blobs/", f"{root}/spool/")):
            found.append(target)
    return found


async def settled(mirror: RunningMirror, limit: float = 5.0) -> None:
    """Waits until no download is under way, no request is being answered, and no file of the store is open."""
    async with asyncio.timeout(limit):
        await mirror.quiet(limit)
        await mirror.app.traffic.recorded()
        while open_files(mirror):  # noqa: ASYNC110 - the last close runs in a thread, which tells nobody
            await asyncio.sleep(0.005)


def left_behind(mirror: RunningMirror, budget: Budget | None = None) -> dict[str, object]:
    """What a download that came to nothing must not leave; empty where there is nothing.

    `budget`: where another process has it.
    """
    budget = budget or mirror.app.budget
    found = {
        "spools": spools(mirror),
        "bytes": budget.used - budget.committed - budget.records,
        "downloads": len(mirror.app.downloads.all),
        "files": open_files(mirror),
    }
    return {name: value for name, value in found.items() if value}


@contextmanager
def nothing_unheard() -> Iterator[None]:
    """Fails where the event loop complains: an exception that nobody retrieved, a task that nobody awaited."""
    loop = asyncio.get_running_loop()
    complaints: list[str] = []
    loop.set_exception_handler(lambda _, context: complaints.append(str(context)))
    try:
        yield
        gc.collect(1)  # the young ones: a whole collection would cost more than the test
    finally:
        loop.set_exception_handler(None)
    assert complaints == []

"""One question and its answer over a Unix socket: frames of a kind and a length, one after the other."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from enum import IntEnum

import structlog

from mirror.sockets import is_ours

_HEAD = 5
"""Bytes before each frame: its length without them, and its kind."""
LARGEST = 48 << 20
"""Bytes of one frame: a list of 8 MiB takes more than that with the length of each entry, a manifest 4 MiB."""
_AT_ONCE = 1 << 20
_log = structlog.get_logger()


class Kind(IntEnum):
    """What a frame is."""

    HERE = 0
    """Whoever answers is at it."""
    NEWS = 1
    DATA = 2
    ANSWER = 3
    """Ends the question, as FAILED does."""
    FAILED = 4
    ASK = 5
    TELL = 6
    """Something to whoever answers, meanwhile."""


class Wire:
    """One end of a connection. `read` may be cancelled without losing a frame."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._head: tuple[int, Kind] | None = None

    @classmethod
    async def connect(cls, name: str) -> Wire:
        """Raises OSError, PermissionError where another user listens there."""
        wire = cls(*await asyncio.open_unix_connection(name, limit=_AT_ONCE))
        if not is_ours(wire._writer.get_extra_info("socket")):
            wire.close()
            raise PermissionError("somebody who is not us listens at a worker's socket")
        return wire

    @classmethod
    async def listen(
        cls,
        connected: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None],
        sock: socket.socket,
    ) -> asyncio.Server:
        """Serves connections to a listening socket."""
        return await asyncio.start_unix_server(connected, sock=sock, limit=_AT_ONCE)

    async def read(self) -> tuple[Kind, bytes] | None:
        """The next frame; None where the other end has gone, or sends what is none."""
        try:
            if self._head is None:
                head = await self._reader.readexactly(_HEAD)
                self._head = _length(head), Kind(head[4])
            length, kind = self._head
            payload = await self._reader.readexactly(length) if length else b""
        except (OSError, EOFError):
            return None
        except ValueError as error:
            _log.error("another worker sends what is none of ours", error=str(error))
            return None
        self._head = None
        return kind, payload

    def write(self, kind: Kind, payload: bytes | memoryview = b"") -> None:
        """Sends a frame, or keeps it until the other end takes it; where that has gone, nothing happens."""
        if self._writer.is_closing():
            return
        head = len(payload).to_bytes(4, "little") + bytes((kind,))
        if len(payload) < _AT_ONCE >> 4:
            self._writer.write(head + payload)
        else:
            self._writer.writelines((head, payload))

    def beat(self) -> None:
        """Says that we are there, unless the other end has something to read already."""
        if not self._writer.transport.get_write_buffer_size():
            self.write(Kind.HERE)

    async def drain(self) -> None:
        """Waits while the other end takes nothing. Raises ConnectionError where it has gone."""
        await self._writer.drain()

    @property
    def is_usable(self) -> bool:
        """Whether nobody has closed it, and nothing is left over in it."""
        return not (self._writer.is_closing() or self._reader.at_eof() or self._head is not None)

    def close(self) -> None:
        """Ends it at once."""
        self._writer.transport.abort()


def _length(head: bytes) -> int:
    length = int.from_bytes(head[:4], "little")
    if length > LARGEST:
        raise ValueError(f"a frame of {length} bytes")
    return length

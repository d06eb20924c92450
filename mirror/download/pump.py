"""From the network to a track: reads on, while a thread writes and hashes what came before. One append at a time."""

from __future__ import annotations

import asyncio
from typing import Protocol

_BATCH = 1 << 20
"""Bytes that may wait for the running append; more than that and the network waits."""


class Source(Protocol):
    """Where the bytes come from."""

    async def next(self) -> bytes | None:
        """The next bytes, or None at their end."""


class Sink(Protocol):
    """What takes the bytes."""

    async def append(self, pieces: list[bytes]) -> None:
        """Takes `pieces`; the next call comes after this one has returned."""


async def pump(source: Source, sink: Sink) -> None:
    """Moves all that `source` gives into `sink`. Raises what either of them raises.

    The first bytes are appended as they come, so that nobody waits for a batch to fill; under load the batches grow to
    what came during the last append.
    """
    batches = _Batches()
    reader = asyncio.create_task(_read(source, batches))
    try:
        while (batch := await batches.take()) is not None:
            await sink.append(batch)
        await reader
    finally:
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)


async def _read(source: Source, batches: _Batches) -> None:
    try:
        while (chunk := await source.next()) is not None:
            await batches.put(chunk)
    finally:
        batches.end()


class _Batches:
    """A queue of one growing batch."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._bytes = 0
        self._ended = False
        self._filled = asyncio.Event()
        self._taken = asyncio.Event()

    async def put(self, chunk: bytes) -> None:
        while self._bytes >= _BATCH:
            self._taken.clear()
            await self._taken.wait()
        self._pieces.append(chunk)
        self._bytes += len(chunk)
        self._filled.set()

    def end(self) -> None:
        self._ended = True
        self._filled.set()

    async def take(self) -> list[bytes] | None:
        """Everything that came since the last call, waiting for some; None after the end."""
        if not self._pieces and not self._ended:
            self._filled.clear()
            await self._filled.wait()
        pieces, self._pieces, self._bytes = self._pieces, [], 0
        self._taken.set()
        return pieces or None

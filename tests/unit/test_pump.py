"""Reading on while the last bytes are written: nothing waits for a batch, and no more waits than a batch."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest

from mirror.download.pump import pump
from mirror.oci.errors import StorageError, UpstreamUnavailable

KIB = 1 << 10


class Pieces:
    """A source of these pieces, which may end in an error; `given` counts what was taken from it."""

    def __init__(self, pieces: Iterable[bytes], error: Exception | None = None) -> None:
        self._pieces = iter(pieces)
        self._error = error
        self.given = 0
        self.exhausted = asyncio.Event()

    async def next(self) -> bytes | None:
        """The next piece, after a turn of the loop, as from a socket."""
        await asyncio.sleep(0)
        piece = next(self._pieces, None)
        if piece is None:
            self.exhausted.set()
        if piece is None and self._error is not None:
            raise self._error
        self.given += len(piece or b"")
        return piece


class Slow:
    """A sink that takes its first batch only when it is let."""

    def __init__(self, error: Exception | None = None) -> None:
        self.batches: list[bytes] = []
        self.taking = asyncio.Event()
        self.go_on = asyncio.Event()
        self.running = 0
        self._error = error

    async def append(self, pieces: list[bytes]) -> None:
        """Notes the batch."""
        self.running += 1
        assert self.running == 1, "two appends at once"
        self.taking.set()
        await self.go_on.wait()
        self.running -= 1
        if self._error is not None:
            raise self._error
        self.batches.append(b"".join(pieces))


async def test_all_bytes_arrive_in_order() -> None:
    """Whatever their pieces were."""
    pieces = [bytes([number]) * (number * 1000 + 1) for number in range(50)]
    sink = Slow()
    sink.go_on.set()

    await pump(Pieces(pieces), sink)

    assert b"".join(sink.batches) == b"".join(pieces)


async def test_the_first_piece_is_taken_as_it_comes() -> None:
    """However little it is."""
    sink = Slow()
    pumping = asyncio.create_task(pump(Pieces([b"x", *[b"y" * KIB] * 10]), sink))
    await sink.taking.wait()

    sink.go_on.set()
    await pumping

    assert sink.batches[0] == b"x"


async def test_what_comes_during_an_append_is_the_next_batch() -> None:
    """Under load the batches grow, so that a slow disk is asked less often."""
    source, sink = Pieces([b"x" * KIB] * 100), Slow()
    pumping = asyncio.create_task(pump(source, sink))
    await source.exhausted.wait()

    sink.go_on.set()
    await pumping

    assert [len(batch) for batch in sink.batches] == [KIB, 99 * KIB]


async def test_a_slow_sink_stops_the_source() -> None:
    """At most 1 MiB, and the piece that was in hand, waits for it."""
    source, sink = Pieces([b"x" * (256 * KIB)] * 100), Slow()
    pumping = asyncio.create_task(pump(source, sink))
    for _ in range(1000):
        await asyncio.sleep(0)

    assert source.given <= (256 + 1024 + 256) * KIB

    sink.go_on.set()
    await pumping
    assert sum(map(len, sink.batches)) == 100 * 256 * KIB


async def test_what_came_before_an_error_is_appended() -> None:
    """The source's error comes after the last of its bytes."""
    sink = Slow()
    sink.go_on.set()

    with pytest.raises(UpstreamUnavailable):
        await pump(Pieces([b"x"] * 10, UpstreamUnavailable("gone")), sink)

    assert b"".join(sink.batches) == b"x" * 10


async def test_an_error_of_the_sink_stops_the_source() -> None:
    """And is the one that is raised, even if the source fails, too."""
    source = Pieces([b"x"] * 10, UpstreamUnavailable("gone"))
    sink = Slow(StorageError("full"))
    sink.go_on.set()

    with pytest.raises(StorageError):
        await pump(source, sink)

    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    assert not tasks


async def test_a_cancelled_pump_leaves_no_task() -> None:
    """Neither while it waits for the source nor while the sink is busy."""
    for sink in (Slow(), Slow()):
        source = Pieces([b"x"] * 1_000_000)
        pumping = asyncio.create_task(pump(source, sink))
        await sink.taking.wait()

        pumping.cancel()
        await asyncio.wait([pumping])

        assert pumping.cancelled()
        assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_an_empty_source_is_no_append() -> None:
    """An empty blob has no bytes to write."""
    sink = Slow()

    await pump(Pieces([]), sink)

    assert not sink.taking.is_set()

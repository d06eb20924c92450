"""Blobs that cannot be kept still arrive, verified, shared, and through little memory."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator

import pytest

from mirror.download.tracks import WINDOW_BYTES, WindowTrack
from tests.conftest import StartMirror
from tests.harness import RunningMirror, short_timeouts
from tests.reading import Reading, blob_path, left_behind, nothing_unheard, readings, settled, spools
from tests.storing import until
from tests.upstream import FakeRegistry, flip, stall_at, status, truncate

MIB = 1 << 20
PATIENT = short_timeouts(stall=10, first_byte=10, cold_head=10, no_progress=20)


@pytest.fixture(autouse=True)
async def heard() -> AsyncIterator[None]:
    """No test leaves an exception that nobody heard."""
    with nothing_unheard():
        yield


@pytest.fixture
async def small(start_mirror: StartMirror) -> RunningMirror:
    """A mirror with a budget of 4 MiB: what is larger than 2 MiB passes through."""
    return await start_mirror(storage={"max_size": 4 * MIB}, timeouts=PATIENT)


def window(mirror: RunningMirror) -> WindowTrack:
    """The window of the one download under way."""
    (download,) = mirror.app.downloads.all
    assert isinstance(download.track, WindowTrack)
    return download.track


async def test_a_blob_without_room_passes_through(small: RunningMirror, upstream: FakeRegistry) -> None:
    """Larger than half the budget: every byte arrives, nothing is stored, and the next client fetches it again."""
    blob = upstream.put_blob("library/demo", 5 * MIB)

    replies = [await small.blob("demo", blob.digest) for _ in range(2)]
    await settled(small)

    assert [(reply.status, reply.body, reply.cache) for reply in replies] == [(200, blob.content, "miss")] * 2
    assert upstream.bytes_for(blob) == 2 * blob.size
    await until(lambda: left_behind(small) == {})
    assert small.metric("mirror_stored_bytes_total") == 0
    assert small.metric("mirror_bypass_bytes_total", reason="pass_through") == 2 * blob.size


async def test_who_comes_while_the_beginning_is_there_shares_it(small: RunningMirror, upstream: FakeRegistry) -> None:
    """Ten clients, one fetch, as long as the window holds byte 0."""
    blob = upstream.put_blob("library/demo", 2 * MIB + 1)
    held = upstream.fault(blob, stall_at(MIB), times=1)
    async with readings(10, small, blob_path("demo", blob)) as clients:
        heads = await asyncio.gather(*(client.take(MIB) for client in clients))
        held.release()
        tails = await asyncio.gather(*(client.rest() for client in clients))

    assert all(head + tail == blob.content for head, tail in zip(heads, tails, strict=True))
    assert upstream.requests_for(blob) == 1
    assert spools(small) == []


async def test_a_late_client_opens_his_own(small: RunningMirror, upstream: FakeRegistry) -> None:
    """Byte 0 has been forgotten: he has a fetch of his own, and disturbs nobody."""
    blob = upstream.put_blob("library/demo", 8 * MIB)
    held = upstream.fault(blob, stall_at(5 * MIB), times=1)
    async with await Reading.ask(small, blob_path("demo", blob)) as first:
        head = await first.take(5 * MIB - 4096)

        late = await small.blob("demo", blob.digest)

        assert (late.status, late.body, late.cache) == (200, blob.content, "miss")
        held.release()
        assert head + await first.rest() == blob.content
    assert upstream.requests_for(blob) == 2


async def test_the_slow_one_is_cut_loose(small: RunningMirror, upstream: FakeRegistry) -> None:
    """The others do not wait for him, and he gets the rest by a range of his own, verified."""
    blob = upstream.put_blob("library/demo", 14 * MIB)
    held = upstream.fault(blob, stall_at(1), times=1)
    async with (
        await Reading.ask(small, blob_path("demo", blob), receive_buffer=4096) as slow,
        await Reading.ask(small, blob_path("demo", blob)) as quick,
    ):
        held.release()
        assert await quick.rest() == blob.content

        assert await slow.rest() == blob.content
    own = [seen.headers["Range"] for seen in upstream.select(blob) if "Range" in seen.headers]
    assert len(own) == 1
    assert own[0].endswith(f"-{blob.size - 1}")
    assert not own[0].startswith("bytes=0-")
    assert small.metric("mirror_bypass_bytes_total", reason="alone") > 0


async def test_wrong_bytes_end_short_here_too(small: RunningMirror, upstream: FakeRegistry) -> None:
    """The tail is withheld from everybody until the digest has been compared."""
    blob = upstream.put_blob("library/demo", 5 * MIB)
    upstream.fault(blob, flip(-1), times=1)

    async with readings(3, small, blob_path("demo", blob)) as clients:
        bodies = await asyncio.gather(*(client.rest() for client in clients))
        assert [client.ending for client in clients] == ["short"] * 3
    assert all(len(body) <= blob.size - 4096 for body in bodies)
    await settled(small)

    assert (await small.blob("demo", blob.digest)).body == blob.content
    assert small.metric("mirror_digest_mismatches_total") == 1


async def test_wrong_bytes_end_short_for_who_was_cut_loose(small: RunningMirror, upstream: FakeRegistry) -> None:
    """His own range is verified together with what he had from the window."""
    blob = upstream.put_blob("library/demo", 14 * MIB)
    held = upstream.fault(blob, stall_at(1), times=1)
    upstream.fault(blob, flip(-1), skip=1, times=1)
    async with (
        await Reading.ask(small, blob_path("demo", blob), receive_buffer=4096) as slow,
        await Reading.ask(small, blob_path("demo", blob)) as quick,
    ):
        held.release()
        assert await quick.rest() == blob.content

        body = await slow.rest()
        assert slow.ending == "short"
    assert len(body) <= blob.size - 4096


async def test_a_drop_is_resumed_without_a_file(small: RunningMirror, upstream: FakeRegistry) -> None:
    """Like any other fetch, with a closed range of what is missing."""
    blob = upstream.put_blob("library/demo", 5 * MIB)
    upstream.fault(blob, truncate(3 * MIB), times=1)

    reply = await small.blob("demo", blob.digest)

    assert (reply.status, reply.body) == (200, blob.content)
    assert upstream.select(blob)[1].headers["Range"] == f"bytes={3 * MIB}-{5 * MIB - 1}"
    assert upstream.bytes_for(blob) == blob.size


async def test_it_ends_when_nobody_reads(small: RunningMirror, upstream: FakeRegistry) -> None:
    """However much has passed: nothing would be kept of it."""
    blob = upstream.put_blob("library/demo", 8 * MIB)
    upstream.fault(blob, stall_at(5 * MIB), times=1)
    async with readings(2, small, blob_path("demo", blob)) as clients:
        await asyncio.gather(*(client.take(5 * MIB - 4096) for client in clients))
        assert not upstream.select(blob)[0].disconnected

    await upstream.until(lambda: upstream.select(blob)[0].disconnected)
    await settled(small)
    await until(lambda: left_behind(small) == {})


async def test_a_client_that_stops_reading_stops_the_upstream(small: RunningMirror, upstream: FakeRegistry) -> None:
    """What waits here for a client that takes a little is the window and a few buffers."""
    blob = upstream.put_blob("library/demo", 40 * MIB)
    tracemalloc.start()
    try:
        async with await Reading.ask(small, blob_path("demo", blob), receive_buffer=4096) as client:
            await client.take(1000)
            before = -1
            while before != (before := upstream.bytes_for(blob)):  # noqa: ASYNC110 - until nothing moves any more
                await asyncio.sleep(0.1)
            held = sum(len(piece.data) for piece in window(small)._window)
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()

            assert held <= WINDOW_BYTES
            assert before < 24 * MIB  # most of that is in the kernel's buffers
            assert peak < 8 * MIB
    finally:
        tracemalloc.stop()


async def test_an_upstream_that_has_nothing_has_a_status(small: RunningMirror, upstream: FakeRegistry) -> None:
    """The failure of a blob that would pass through is told like any other."""
    blob = upstream.put_blob("library/demo", 5 * MIB)
    upstream.fault(blob, status(404))

    assert (await small.blob("demo", blob.digest)).status == 404
    await settled(small)
    await until(lambda: left_behind(small) == {})


async def test_what_fits_is_kept_beside_it(small: RunningMirror, upstream: FakeRegistry) -> None:
    """A large blob on its way takes no room from the small ones."""
    large = upstream.put_blob("library/demo", 8 * MIB)
    little = upstream.put_blob("library/demo", MIB)
    held = upstream.fault(large, stall_at(4 * MIB), times=1)
    async with await Reading.ask(small, blob_path("demo", large)) as reading:
        head = await reading.take(4 * MIB - 4096)

        await small.blob("demo", little.digest)
        await asyncio.gather(*(one.wait() for one in small.app.downloads.all if one.digest == little.digest))

        assert (await small.blob("demo", little.digest)).cache == "hit"
        assert spools(small) == []
        held.release()
        assert head + await reading.rest() == large.content

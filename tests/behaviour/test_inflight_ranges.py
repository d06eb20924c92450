"""Ranges of blobs that are not held: from the fill where it gets there soon, else by closed requests of their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.conftest import StartMirror
from tests.harness import RunningMirror, short_timeouts
from tests.reading import Reading, blob_path, left_behind, nothing_unheard, settled
from tests.upstream import (
    Blob,
    FakeRegistry,
    gzipped,
    ignore_range,
    no_length,
    ranged,
    stall,
    stall_at,
    status,
    truncate,
)

MIB = 1 << 20
PATIENT = short_timeouts(stall=10, first_byte=10, cold_head=10)


@pytest.fixture(autouse=True)
async def heard() -> AsyncIterator[None]:
    """No test leaves an exception that nobody heard."""
    with nothing_unheard():
        yield


def own_ranges(upstream: FakeRegistry, blob: Blob) -> list[str]:
    """The ranges that were asked of the upstream, in order."""
    return [seen.headers["Range"] for seen in upstream.select(blob) if "Range" in seen.headers]


def fills(upstream: FakeRegistry, blob: Blob) -> int:
    """How often the whole blob was asked for."""
    return sum("Range" not in seen.headers for seen in upstream.select(blob, method="GET"))


async def test_a_cold_range_is_answered_by_itself_and_starts_one_fill(
    start_mirror: StartMirror, upstream: FakeRegistry
) -> None:
    """The client has his bytes without waiting for those before; the whole blob follows in the background, once."""
    mirror = await start_mirror(timeouts=short_timeouts(stall=10, first_byte=10, cold_head=1))
    blob = upstream.put_blob("library/demo", 8 * MIB)
    held = upstream.fault(blob, stall_at(MIB), times=1)

    replies = [
        await mirror.get(blob_path("demo", blob), Range=f"bytes={start}-{start + 9}")
        for start in (5 * MIB, 6 * MIB, 5 * MIB)
    ]

    assert [reply.status for reply in replies] == [206] * 3
    assert [reply.body for reply in replies] == [blob.read(s, 10) for s in (5 * MIB, 6 * MIB, 5 * MIB)]
    assert replies[0].headers["Content-Range"] == f"bytes {5 * MIB}-{5 * MIB + 9}/{blob.size}"
    assert replies[0].cache == "bypass"
    assert fills(upstream, blob) == 1
    assert mirror.metric("mirror_bypass_bytes_total", reason="range") == 30
    held.release()
    await mirror.quiet()
    assert (await mirror.blob("demo", blob.digest)).cache == "hit"
    assert fills(upstream, blob) == 1


async def test_every_form_of_a_cold_range_is_exact(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """First, last and open ranges, of blobs whose length was not known before; past the end it is 416."""
    mirror = await start_mirror(timeouts=PATIENT)
    for spec, start, end in [
        ("bytes=0-0", 0, 1),
        ("bytes=0-99", 0, 100),
        ("bytes=-1", 99_999, 100_000),
        ("bytes=-5000", 95_000, 100_000),
        ("bytes=99999-", 99_999, 100_000),
        ("bytes=500-200000", 500, 100_000),
    ]:
        blob = upstream.put_blob("library/demo", 100_000)

        reply = await mirror.get(blob_path("demo", blob), Range=spec)

        assert (reply.status, reply.body) == (206, blob.read(start, end - start))
        assert reply.headers["Content-Range"] == f"bytes {start}-{end - 1}/100000"

    blob = upstream.put_blob("library/demo", 1000)
    past = await mirror.get(blob_path("demo", blob), Range="bytes=1000-")
    assert (past.status, past.headers["Content-Range"]) == (416, "bytes */1000")


async def test_a_range_within_reach_waits_for_the_fill(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """Its headers come at once, its bytes from the fill; the upstream is asked for nothing else."""
    mirror = await start_mirror(timeouts=PATIENT)
    blob = upstream.put_blob("library/demo", 4 * MIB)
    held = upstream.fault(blob, stall_at(MIB), times=1)
    async with await Reading.ask(mirror, blob_path("demo", blob)) as whole:
        await whole.take(MIB)

        async with await Reading.ask(mirror, blob_path("demo", blob), Range=f"bytes={2 * MIB}-{3 * MIB - 1}") as part:
            assert (part.status, part.headers["X-Cache"]) == (206, "joined")
            held.release()
            assert await part.rest() == blob.read(2 * MIB, MIB)
    assert upstream.requests_for(blob) == 1


async def test_a_range_of_what_has_come_is_given_from_it(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """Though the upstream stands still."""
    mirror = await start_mirror(timeouts=PATIENT)
    blob = upstream.put_blob("library/demo", 4 * MIB)
    upstream.fault(blob, stall_at(2 * MIB), times=1)
    async with await Reading.ask(mirror, blob_path("demo", blob)) as whole:
        await whole.take(2 * MIB)

        part = await mirror.get(blob_path("demo", blob), Range=f"bytes={MIB}-{MIB + 999}")

    assert (part.status, part.body) == (206, blob.read(MIB, 1000))
    assert upstream.requests_for(blob) == 1


async def test_a_range_that_the_fill_does_not_reach_in_time_goes_its_own_way(
    start_mirror: StartMirror, upstream: FakeRegistry
) -> None:
    """Promised from the fill, which then stands still: after `cold_head` the bytes come by a request of their own."""
    mirror = await start_mirror(timeouts=short_timeouts(stall=10, cold_head=0.3))
    blob = upstream.put_blob("library/demo", 4 * MIB)
    held = upstream.fault(blob, stall_at(MIB), times=1)
    async with await Reading.ask(mirror, blob_path("demo", blob)) as whole:
        part = await mirror.get(blob_path("demo", blob), Range=f"bytes={3 * MIB}-{3 * MIB + 9}")

        assert (part.status, part.body) == (206, blob.read(3 * MIB, 10))
        assert own_ranges(upstream, blob) == [f"bytes={3 * MIB}-{3 * MIB + 9}"]
        held.release()
        assert await whole.rest() == blob.content


async def test_a_long_range_is_asked_for_in_growing_pieces(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """1, 2, 4, 8 and again 8 MiB as the client takes them: one who leaves early has not cost the whole."""
    mirror = await start_mirror(timeouts=PATIENT)
    blob = upstream.put_blob("library/demo", 26 * MIB)
    upstream.fault(blob, stall_at(0), times=1)
    start = 2 * MIB

    async with await Reading.ask(mirror, blob_path("demo", blob), Range=f"bytes={start}-") as part:
        assert await part.rest() == blob.read(start, blob.size)

    sizes = [int(last) - int(first) + 1 for first, last in
             (one.removeprefix("bytes=").split("-") for one in own_ranges(upstream, blob))]  # fmt: skip
    assert sizes == [MIB, 2 * MIB, 4 * MIB, 8 * MIB, 8 * MIB, MIB]


async def test_a_client_that_takes_little_of_a_long_range_costs_little(
    start_mirror: StartMirror, upstream: FakeRegistry
) -> None:
    """He stops reading: no further piece is asked for."""
    mirror = await start_mirror(timeouts=PATIENT)
    blob = upstream.put_blob("library/demo", 64 * MIB)
    upstream.fault(blob, stall_at(0), times=1)
    path = blob_path("demo", blob)

    async with await Reading.ask(mirror, path, receive_buffer=4096, Range=f"bytes={8 * MIB}-") as part:
        await part.take(1000)
        first = own_ranges(upstream, blob)

    await mirror.app.traffic.recorded()
    assert first[0] == f"bytes={8 * MIB}-{9 * MIB - 1}"
    assert len(own_ranges(upstream, blob)) <= 4  # what the buffers on the way took


@pytest.mark.parametrize("at", [0, 1000, MIB - 1])
async def test_a_range_that_breaks_is_resumed(start_mirror: StartMirror, upstream: FakeRegistry, at: int) -> None:
    """In its first piece or a later one, with exactly what is missing of the piece."""
    mirror = await start_mirror(timeouts=PATIENT)
    blob = upstream.put_blob("library/demo", 8 * MIB)
    upstream.fault(blob, stall_at(0), times=1)
    upstream.fault(blob, truncate(at), times=1, when=ranged)
    upstream.fault(blob, truncate(at), times=1, skip=2, when=ranged)
    start = 4 * MIB

    reply = await mirror.get(blob_path("demo", blob), Range=f"bytes={start}-{7 * MIB - 1}")

    assert (reply.status, reply.body) == (206, blob.read(start, 3 * MIB))
    assert own_ranges(upstream, blob) == [
        f"bytes={start}-{5 * MIB - 1}",
        f"bytes={start + at}-{5 * MIB - 1}",
        f"bytes={5 * MIB}-{7 * MIB - 1}",
        f"bytes={5 * MIB + at}-{7 * MIB - 1}",
    ]


async def test_an_upstream_without_ranges_makes_the_range_wait_for_the_fill(
    start_mirror: StartMirror, upstream: FakeRegistry
) -> None:
    """It answers every range with the whole; that is not fetched and thrown away for each client."""
    mirror = await start_mirror(timeouts=PATIENT)
    blob = upstream.put_blob("library/demo", 8 * MIB)
    upstream.fault(blob, ignore_range())

    reply = await mirror.get(blob_path("demo", blob), Range=f"bytes={6 * MIB}-{6 * MIB + 99}")

    assert (reply.status, reply.body) == (206, blob.read(6 * MIB, 100))
    assert fills(upstream, blob) == 1


async def test_encoded_bytes_are_no_range(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """Compressed bytes of a range are not those that were asked for: it waits for the fill instead."""
    mirror = await start_mirror(timeouts=PATIENT)
    blob = upstream.put_blob("library/demo", 4 * MIB)
    upstream.fault(blob, gzipped(), when=ranged)
    encoded = upstream.fault(blob, no_length(), when=ranged)

    reply = await mirror.get(blob_path("demo", blob), Range=f"bytes={2 * MIB}-{2 * MIB + 99}")

    assert (reply.status, reply.body) == (206, blob.read(2 * MIB, 100))
    assert encoded.hits == 1


async def test_a_cold_range_waits_only_so_long(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """504 after `cold_head`; the fill goes on for nobody, and serves who comes later."""
    blob = upstream.put_blob("library/demo", MIB)
    held = upstream.fault(blob, stall(), times=1)

    async with asyncio.timeout(mirror.settings.timeouts.cold_head + 1):
        reply = await mirror.get(blob_path("demo", blob), Range="bytes=5000-5999")

    assert reply.status == 504
    held.release()
    await mirror.quiet()
    assert (await mirror.blob("demo", blob.digest)).cache == "hit"


@pytest.mark.parametrize(("fault", "expected"), [(status(404), 404), (status(403), 403), (status(500), 503)])
async def test_a_range_of_what_is_not_there_has_a_status(
    mirror: RunningMirror, upstream: FakeRegistry, fault: object, expected: int
) -> None:
    """As the whole would have; nothing stays."""
    blob = upstream.put_blob("library/demo", MIB)
    upstream.fault(blob, fault)  # type: ignore[arg-type]  # parametrized

    reply = await mirror.get(blob_path("demo", blob), Range="bytes=5000-5999")

    assert reply.status in (expected, 504)  # a 500 is tried again for as long as `cold_head` lasts
    await settled(mirror)
    assert left_behind(mirror) == {}


async def test_a_cold_range_without_room_keeps_nothing(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """No fill can be kept, so that none goes on: the range alone is fetched."""
    mirror = await start_mirror(storage={"max_size": 4 * MIB}, timeouts=PATIENT)
    blob = upstream.put_blob("library/demo", 16 * MIB)

    reply = await mirror.get(blob_path("demo", blob), Range=f"bytes={8 * MIB}-{8 * MIB + 99}")
    await settled(mirror)

    assert (reply.status, reply.body, reply.cache) == (206, blob.read(8 * MIB, 100), "bypass")
    assert left_behind(mirror) == {}
    assert upstream.bytes_for(blob) < 12 * MIB


async def test_a_cold_range_of_an_upstream_without_ranges_waits_only_so_long(
    start_mirror: StartMirror, upstream: FakeRegistry
) -> None:
    """All that it tries shares one `cold_head`: 504, though the fill has `first_byte` and goes on."""
    mirror = await start_mirror(timeouts=short_timeouts(cold_head=0.3, first_byte=30, stall=30, no_progress=60))
    blob = upstream.put_blob("library/demo", 3 * MIB)
    upstream.fault(blob, ignore_range())
    pause = upstream.fault(blob, stall_at(MIB))

    async with asyncio.timeout(10):  # not first_byte, nor one cold_head after another without end
        reply = await mirror.get(blob_path("demo", blob), Range=f"bytes={2 * MIB}-{2 * MIB + 9}")

    assert reply.status == 504
    pause.release()
    await mirror.quiet()
    assert (await mirror.blob("demo", blob.digest)).cache == "hit"

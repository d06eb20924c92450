"""Wrong bytes never look whole: their tail is withheld, they are dropped, fetched once more, and never kept."""

from __future__ import annotations

import asyncio

import pytest

from tests.conftest import StartMirror
from tests.harness import RunningMirror, short_timeouts
from tests.reading import Reading, blob_path, left_behind, readings, settled, spools
from tests.upstream import FakeRegistry, flip, instead, stall_at, too_much, truncate

MIB = 1 << 20
SIZE = MIB + 1000
TAIL = 4096


@pytest.mark.parametrize("at", [0, SIZE - TAIL, SIZE - 1])
async def test_a_wrong_byte_ends_every_body_short(mirror: RunningMirror, upstream: FakeRegistry, at: int) -> None:
    """Wherever it stands: a FIN at least 4 KiB before the end, never a reset; the next client gets right bytes."""
    blob = upstream.put_blob("library/demo", SIZE)
    upstream.fault(blob, flip(at), times=1)

    async with readings(3, mirror, blob_path("demo", blob)) as clients:
        bodies = await asyncio.gather(*(client.rest() for client in clients))

        assert [client.ending for client in clients] == ["short"] * 3
    assert all(len(body) <= SIZE - TAIL for body in bodies)
    await mirror.quiet()
    again = await mirror.blob("demo", blob.digest)
    assert (again.status, again.body, again.cache) == (200, blob.content, "hit")
    assert upstream.requests_for(blob) == 2
    assert mirror.metric("mirror_digest_mismatches_total", upstream="docker.io") == 1
    assert mirror.metric("mirror_stored_bytes_total") == SIZE


async def test_who_asks_during_the_second_fetch_joins_it(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """The blob is fetched once more, not once more for every client."""
    mirror = await start_mirror(timeouts=short_timeouts(stall=10))
    blob = upstream.put_blob("library/demo", SIZE)
    upstream.fault(blob, flip(0), times=1)
    second = upstream.fault(blob, stall_at(MIB // 2), times=1, skip=1)
    async with await Reading.ask(mirror, blob_path("demo", blob)) as reading:
        await reading.rest()
    await second.reached.wait()

    async with await Reading.ask(mirror, blob_path("demo", blob)) as joiner:
        assert joiner.headers["X-Cache"] == "joined"
        second.release()
        assert await joiner.rest() == blob.content
    assert upstream.requests_for(blob) == 2


@pytest.mark.parametrize("size", [1, 4096])
async def test_who_has_no_byte_yet_waits_for_the_second_fetch(
    mirror: RunningMirror, upstream: FakeRegistry, size: int
) -> None:
    """A small blob is all tail: its clients see nothing of a wrong byte."""
    blob = upstream.put_blob("library/demo", size)
    upstream.fault(blob, flip(0), times=1)

    replies = await mirror.together(3, blob_path("demo", blob))

    assert [(reply.status, reply.body) for reply in replies] == [(200, blob.content)] * 3
    assert upstream.requests_for(blob) == 2
    assert mirror.metric("mirror_digest_mismatches_total") == 1


async def test_wrong_twice_before_our_headers_is_a_status(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """502 to all who waited for a small blob; nothing is kept, and the next request asks again."""
    blob = upstream.put_blob("library/demo", 4000)
    upstream.fault(blob, flip(2000), times=2)

    replies = await mirror.together(3, blob_path("demo", blob))
    await settled(mirror)

    assert [(reply.status, reply.code) for reply in replies] == [(502, "UNAVAILABLE")] * 3
    assert left_behind(mirror) == {}
    assert mirror.metric("mirror_digest_mismatches_total") == 2
    assert (await mirror.blob("demo", blob.digest)).body == blob.content


async def test_wrong_twice_is_not_fetched_a_third_time(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """Until somebody asks again."""
    blob = upstream.put_blob("library/demo", SIZE)
    upstream.fault(blob, flip(9), times=2)

    async with await Reading.ask(mirror, blob_path("demo", blob)) as reading:
        await reading.rest()
        assert reading.ending == "short"
    await settled(mirror)

    assert upstream.requests_for(blob) == 2
    assert left_behind(mirror) == {}
    assert (await mirror.blob("demo", blob.digest)).body == blob.content


async def test_the_second_fetch_is_for_nobody_in_particular(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """All clients have gone with the first one; still the blob is fetched, verified and kept."""
    blob = upstream.put_blob("library/demo", 100_000)
    upstream.fault(blob, flip(0), times=1)
    async with await Reading.ask(mirror, blob_path("demo", blob)) as reading:
        await reading.rest()

    await mirror.quiet()

    assert (await mirror.blob("demo", blob.digest)).cache == "hit"
    assert spools(mirror) == []


async def test_right_bytes_with_garbage_behind_them_are_right(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """More bytes than Content-Length promises are not read."""
    blob = upstream.put_blob("library/demo", SIZE)
    upstream.fault(blob, too_much(5000))

    reply = await mirror.blob("demo", blob.digest)

    assert (reply.status, reply.body) == (200, blob.content)


async def test_an_empty_answer_for_a_blob_that_is_not_empty_is_wrong(
    mirror: RunningMirror, upstream: FakeRegistry
) -> None:
    """Content-Length: 0 once is fetched again, twice is 502; never an empty 200."""
    blob = upstream.put_blob("library/demo", 5000)
    nothing = upstream.put_blob("library/demo", 0)
    upstream.fault(blob, instead(nothing), times=3)

    assert (await mirror.blob("demo", blob.digest)).status == 502
    assert (await mirror.blob("demo", blob.digest)).body == blob.content


async def test_a_blob_made_of_two_streams_is_verified_as_one(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """A wrong byte in the resumed part shows in the digest of the whole."""
    blob = upstream.put_blob("library/demo", SIZE)
    upstream.fault(blob, truncate(MIB // 2), times=1)
    upstream.fault(blob, flip(SIZE - 1), times=2)

    async with await Reading.ask(mirror, blob_path("demo", blob)) as reading:
        body = await reading.rest()
        assert reading.ending == "short"
    assert len(body) <= SIZE - TAIL
    await mirror.quiet()
    assert (await mirror.blob("demo", blob.digest)).body == blob.content


@pytest.mark.parametrize("room", [1 << 30, 2 * MIB], ids=["kept", "passed through"])
async def test_a_whole_blob_asked_for_as_a_range_is_verified_like_any(
    start_mirror: StartMirror, upstream: FakeRegistry, room: int
) -> None:
    """containerd asks for `bytes=0-`; also over a pause longer than `cold_head`, wrong bytes never look whole."""
    mirror = await start_mirror(timeouts=short_timeouts(cold_head=1, stall=10), storage={"max_size": room})
    blob = upstream.put_blob("library/demo", 3 * MIB)
    upstream.fault(blob, flip(2 * MIB), times=1)
    pause = upstream.fault(blob, stall_at(MIB), times=1)

    async with await Reading.ask(mirror, blob_path("demo", blob), Range="bytes=0-") as reading:
        await reading.take(MIB // 2)
        await asyncio.sleep(1.2 * mirror.settings.timeouts.cold_head)
        pause.release()
        await reading.rest()

    assert reading.status == 206
    assert reading.ending == "short"

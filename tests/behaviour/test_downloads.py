"""Blobs in flight: everybody streams from byte 0, and who comes or leaves changes nothing for the others."""

from __future__ import annotations

import asyncio
import threading
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mirror.store.files import Files
from tests.conftest import StartMirror
from tests.faulty import FaultyFiles
from tests.harness import RunningMirror, short_timeouts
from tests.reading import Reading, blob_path, left_behind, nothing_unheard, open_files, readings, settled, spools
from tests.upstream import FakeRegistry, delay, refuse, reset, stall, stall_at, status

MIB = 1 << 20
PATIENT = short_timeouts(stall=10, first_byte=10, cold_head=10)
"""For tests in which the upstream is held on purpose."""


@pytest.fixture(autouse=True)
async def heard() -> AsyncIterator[None]:
    """No test leaves an exception that nobody heard."""
    with nothing_unheard():
        yield


# Everybody streams.


async def test_everybody_has_the_bytes_that_the_upstream_has_sent(
    start_mirror: StartMirror, upstream: FakeRegistry
) -> None:
    """While the upstream stands still in the middle, all clients have what came before; at its end, all of it."""
    mirror = await start_mirror(timeouts=PATIENT)
    blob = upstream.put_blob("library/demo", 4 * MIB)
    held = upstream.fault(blob, stall_at(MIB))
    async with readings(5, mirror, blob_path("demo", blob)) as clients:
        heads = await asyncio.gather(*(client.take(MIB) for client in clients))

        assert held.reached.is_set()
        assert all(head == blob.read(0, MIB) for head in heads)
        held.release()
        tails = await asyncio.gather(*(client.rest() for client in clients))
    assert all(head + tail == blob.content for head, tail in zip(heads, tails, strict=True))
    assert upstream.bytes_for(blob) == blob.size


async def test_the_first_byte_does_not_wait_for_a_batch(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """One byte from the upstream is one byte to the client, with headers."""
    mirror = await start_mirror(timeouts=PATIENT)
    blob = upstream.put_blob("library/demo", 8 * MIB)
    held = upstream.fault(blob, stall_at(1))

    async with await Reading.ask(mirror, blob_path("demo", blob)) as reading:
        assert await reading.take(1) == blob.read(0, 1)
        assert (reading.status, reading.length) == (200, blob.size)
        assert reading.headers["X-Cache"] == "miss"
        held.release()
        assert await reading.rest() == blob.read(1, blob.size)


async def test_the_last_4_kib_wait_for_the_last_byte(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """All but one byte has come: nobody has any of the tail before the digest can be compared."""
    mirror = await start_mirror(timeouts=PATIENT)
    blob = upstream.put_blob("library/demo", MIB)
    held = upstream.fault(blob, stall_at(MIB - 1))
    async with await Reading.ask(mirror, blob_path("demo", blob)) as reading:
        await reading.take(MIB - 4096)
        await held.reached.wait()

        with pytest.raises(TimeoutError):
            await reading.take(1, limit=0.2)

        held.release()
        assert await reading.rest() == blob.read(MIB - 4096, 4096)


async def test_a_late_client_begins_at_byte_0(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """Whoever joins in the middle has what came before he did, at once."""
    mirror = await start_mirror(timeouts=PATIENT)
    blob = upstream.put_blob("library/demo", 4 * MIB)
    held = upstream.fault(blob, stall_at(2 * MIB))
    async with await Reading.ask(mirror, blob_path("demo", blob)) as first:
        await first.take(2 * MIB)

        async with await Reading.ask(mirror, blob_path("demo", blob)) as late:
            assert late.headers["X-Cache"] == "joined"
            assert await late.take(2 * MIB) == blob.read(0, 2 * MIB)
            held.release()
            assert await late.rest() == blob.read(2 * MIB, blob.size)
    assert upstream.requests_for(blob) == 1


async def test_blobs_of_every_size_arrive_and_stay(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """Also the empty one and those that are all tail, of either algorithm: whole at once, and a hit from then on."""
    for size in (0, 1, 4095, 4096, 4097, 100_000, 3 * MIB + 1):
        for algorithm in ("sha256", "sha512"):
            blob = upstream.put_blob("library/demo", size, algorithm=algorithm)

            replies = await mirror.together(3, blob_path("demo", blob))
            await mirror.quiet()
            again = await mirror.blob("demo", blob.digest)

            assert [(reply.status, reply.body) for reply in [*replies, again]] == [(200, blob.content)] * 4
            assert again.cache == "hit"
            assert upstream.requests_for(blob) == 1


async def test_a_slow_client_slows_nobody(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """A client that takes nothing leaves the others, and the fill, as fast as they are; he still gets every byte."""
    blob = upstream.put_blob("library/demo", 12 * MIB)
    async with await Reading.ask(mirror, blob_path("demo", blob), receive_buffer=4096) as slow:
        quick = await mirror.blob("demo", blob.digest)
        await mirror.quiet()

        assert quick.body == blob.content
        assert (await mirror.blob("demo", blob.digest)).cache == "hit"
        assert await slow.rest() == blob.content


async def test_a_slow_disk_slows_the_upstream(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """What it cannot take yet stays where it is, and does not pile up in memory."""

    class Stuck(Files):
        go_on = threading.Event()

        def write(self, fd: int, data: bytes | memoryview, offset: int) -> int:
            assert self.go_on.wait(10)
            return super().write(fd, data, offset)

    files = Stuck()
    mirror = await start_mirror(timeouts=PATIENT, files=files)
    blob = upstream.put_blob("library/demo", 40 * MIB)
    asking = asyncio.create_task(mirror.blob("demo", blob.digest))
    tracemalloc.start()
    try:
        sent = -1
        while sent != (sent := upstream.bytes_for(blob)) or not sent:  # noqa: ASYNC110 - until nothing moves any more
            await asyncio.sleep(0.1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        files.go_on.set()

    assert sent < 24 * MIB  # most of that is in the kernel's buffers
    assert peak < 8 * MIB
    assert (await asking).body == blob.content


# Those who leave.


async def test_a_client_that_leaves_does_not_stop_the_fill(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """With `abandon_below` arrived, the blob is fetched to its end for nobody, and held."""
    mirror = await start_mirror(timeouts=PATIENT)
    blob = upstream.put_blob("library/demo", 4 * MIB)
    held = upstream.fault(blob, stall_at(2 * MIB))
    reading = await Reading.ask(mirror, blob_path("demo", blob))
    await reading.take(2 * MIB)

    reading.leave()
    await mirror.app.traffic.recorded()
    held.release()
    await mirror.quiet()

    assert (await mirror.blob("demo", blob.digest)).cache == "hit"
    assert upstream.requests_for(blob) == 1


async def test_a_fill_that_nobody_wants_is_abandoned(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """With nobody left and less than `abandon_below` here, the upstream's connection is closed and nothing stays."""
    mirror = await start_mirror(timeouts=PATIENT)
    blob = upstream.put_blob("library/demo", 4 * MIB)
    upstream.fault(blob, stall_at(MIB // 2))
    async with readings(3, mirror, blob_path("demo", blob)) as clients:
        await asyncio.gather(*(client.take(MIB // 2) for client in clients))
        for client in clients:
            assert not upstream.select(blob)[0].disconnected
            client.leave()

    await upstream.until(lambda: upstream.select(blob)[0].disconnected)
    await settled(mirror)
    assert left_behind(mirror) == {}


async def test_whoever_comes_after_an_abandoned_fill_gets_a_new_one(
    start_mirror: StartMirror, upstream: FakeRegistry
) -> None:
    """Even while the old one is still being cleaned up."""

    class SlowUnlink(Files):
        unlinking = threading.Event()
        go_on = threading.Event()

        def unlink(self, path: Path) -> None:
            self.unlinking.set()
            assert self.go_on.wait(10)
            super().unlink(path)

    files = SlowUnlink()
    mirror = await start_mirror(timeouts=PATIENT, files=files)
    blob = upstream.put_blob("library/demo", 4 * MIB)
    held = upstream.fault(blob, stall_at(1), times=1)
    async with await Reading.ask(mirror, blob_path("demo", blob)) as reading:
        await reading.take(1)
    await asyncio.to_thread(files.unlinking.wait, 10)

    try:
        reply = await mirror.blob("demo", blob.digest)
    finally:
        files.go_on.set()

    assert (reply.status, reply.body) == (200, blob.content)
    held.release()
    await settled(mirror)
    assert left_behind(mirror) == {}


async def test_a_small_blob_is_kept_though_its_client_leaves_with_the_last_byte(
    mirror: RunningMirror, upstream: FakeRegistry
) -> None:
    """Its last byte is out before it is committed: that client was the last reason to go on, and is not missed."""
    for number in range(10):
        blob = upstream.put_blob("library/demo", 10_000 + number)
        async with await Reading.ask(mirror, blob_path("demo", blob)) as reading:
            assert await reading.take(blob.size) == blob.content
        await mirror.quiet()

        assert (await mirror.blob("demo", blob.digest)).cache == "hit"


async def test_a_fill_that_is_cut_during_a_slow_write_hurts_no_other_file(
    start_mirror: StartMirror, upstream: FakeRegistry
) -> None:
    """A write that still runs in its thread keeps its descriptor: the number is not given to another spool."""

    class SlowWrite(Files):
        def __init__(self) -> None:
            self.writing = threading.Event()
            self.go_on = threading.Event()
            self.closed: list[int] = []
            self.written_after_close: list[int] = []
            self._slow: int | None = None

        def write(self, fd: int, data: bytes | memoryview, offset: int) -> int:
            if self._slow is None:
                self._slow = fd
                self.writing.set()
                assert self.go_on.wait(10)
                if fd in self.closed:
                    self.written_after_close.append(fd)
            return super().write(fd, data, offset)

        def close(self, fd: int) -> None:
            self.closed.append(fd)
            super().close(fd)

    files = SlowWrite()
    mirror = await start_mirror(timeouts=PATIENT, files=files)
    blob = upstream.put_blob("library/demo", 4 * MIB)
    upstream.fault(blob, stall_at(MIB // 2), times=1)
    async with await Reading.ask(mirror, blob_path("demo", blob)):
        await asyncio.to_thread(files.writing.wait, 10)
        files.closed.clear()  # those of start-up

    await mirror.app.traffic.recorded()
    await mirror.quiet()
    files.go_on.set()
    await settled(mirror)

    assert files.written_after_close == []
    assert left_behind(mirror) == {}


async def test_the_spool_is_made_while_the_upstream_is_asked(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """A slow disk and a slow upstream are waited for together; where the upstream says no, no file stays."""
    files = FaultyFiles()
    mirror = await start_mirror(timeouts=PATIENT, files=files)
    blob = upstream.put_blob("library/demo", MIB)
    upstream.fault(blob, status(404))
    held = upstream.fault(blob, stall())
    making = files.hold("open", path="spool")
    asking = asyncio.create_task(mirror.blob("demo", blob.digest))

    await making.met()
    await asyncio.wait_for(held.reached.wait(), 5)
    held.release()
    making.release()

    assert (await asking).status == 404
    await settled(mirror)
    assert left_behind(mirror) == {}


async def test_a_client_that_leaves_while_its_spool_is_made_leaves_nothing(
    start_mirror: StartMirror, upstream: FakeRegistry
) -> None:
    """No descriptor, no file and no reservation, though the thread makes the file after all."""

    class SlowOpen(Files):
        opening = threading.Event()
        go_on = threading.Event()

        def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
            if path.parent.name == "spool":
                self.opening.set()
                assert self.go_on.wait(10)
            return super().open(path, flags, mode)

    files = SlowOpen()
    mirror = await start_mirror(timeouts=PATIENT, files=files)
    blob = upstream.put_blob("library/demo", 4 * MIB)
    asking = asyncio.create_task(Reading.ask(mirror, blob_path("demo", blob)))
    await asyncio.to_thread(files.opening.wait, 10)

    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await mirror.app.traffic.recorded()
    files.go_on.set()
    await settled(mirror)

    async with asyncio.timeout(5):
        while left_behind(mirror):  # noqa: ASYNC110 - the thread that removes the file tells nobody
            await asyncio.sleep(0.005)


# Nothing to give.


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        pytest.param(status(404), 404, id="404"),
        pytest.param(status(401), 403, id="401"),
        pytest.param(status(403), 403, id="403"),
        pytest.param(status(429, retry_after=60), 429, id="429"),
        pytest.param(status(500), 503, id="500"),
        pytest.param(reset(), 503, id="reset"),
        pytest.param(refuse(), 503, id="refuse"),
        pytest.param(stall(), 504, id="stall"),
    ],
)
async def test_a_failure_before_the_headers_is_told_to_everybody(
    mirror: RunningMirror, upstream: FakeRegistry, fault: object, expected: int
) -> None:
    """All who wait hear the same, in time, and nothing stays behind."""
    blob = upstream.put_blob("library/demo", MIB)
    upstream.fault(blob, fault)  # type: ignore[arg-type]  # parametrized

    async with asyncio.timeout(mirror.settings.timeouts.first_byte + 1):
        replies = await mirror.together(5, blob_path("demo", blob))

    assert [reply.status for reply in replies] == [expected] * 5
    if expected in (429, 503):
        assert all(int(reply.headers["Retry-After"]) > 0 for reply in replies)
    await settled(mirror)
    assert left_behind(mirror) == {}


async def test_an_upstream_that_stops_after_its_headers_is_waited_for_in_vain_only_so_long(
    mirror: RunningMirror, upstream: FakeRegistry
) -> None:
    """Headers without a byte are no answer: 504 within `first_byte`, not a body that never comes."""
    blob = upstream.put_blob("library/demo", MIB)
    upstream.fault(blob, stall_at(0))

    async with asyncio.timeout(mirror.settings.timeouts.first_byte + 1):
        reply = await mirror.blob("demo", blob.digest)

    assert reply.status == 504
    await settled(mirror)
    assert left_behind(mirror) == {}


async def test_a_cold_head_downloads_nothing(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """It asks the upstream's HEAD once and remembers the answer."""
    blob = upstream.put_blob("library/demo", MIB)

    replies = [await mirror.blob("demo", blob.digest, method="HEAD") for _ in range(2)]

    assert [(reply.status, reply.headers["Content-Length"]) for reply in replies] == [(200, str(blob.size))] * 2
    assert [(seen.method, seen.status) for seen in upstream.select(blob)] == [("HEAD", 200)]
    assert spools(mirror) == []


async def test_a_cold_head_waits_only_so_long_but_asks_on(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """504 after `cold_head`; the answer that comes later serves the next client."""
    mirror = await start_mirror(timeouts=short_timeouts(try_=10, first_byte=10))
    blob = upstream.put_blob("library/demo", MIB)
    held = upstream.fault(blob, stall(), times=1)

    assert (await mirror.blob("demo", blob.digest, method="HEAD")).status == 504

    held.release()
    await upstream.until(lambda: upstream.select(blob)[-1].finished and upstream.in_flight == 0)
    asked = upstream.requests_for(blob)
    async with asyncio.timeout(5):
        while (reply := await mirror.blob("demo", blob.digest, method="HEAD")).status != 200:
            pass
    assert reply.headers["Content-Length"] == str(blob.size)
    assert upstream.requests_for(blob) == asked


# Descriptors.


async def test_no_descriptor_stays_open(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """After pulls that end well, are given up, or fail, the store has no file open."""
    whole = upstream.put_blob("library/demo", 2 * MIB)
    dropped = upstream.put_blob("library/demo", 2 * MIB)
    broken = upstream.put_blob("library/demo", 2 * MIB)
    upstream.fault(broken, stall_at(MIB))
    upstream.fault(dropped, delay(0.05))

    await mirror.together(5, blob_path("demo", whole))
    await mirror.together(5, blob_path("demo", whole))
    for _ in range(5):
        async with await Reading.ask(mirror, blob_path("demo", dropped)) as reading:
            await reading.take(1)
    async with await Reading.ask(mirror, blob_path("demo", broken)) as reading:
        await reading.rest()
    await settled(mirror)

    assert open_files(mirror) == []

"""The disk budget is a promise: never more on the disk, and who was used least recently goes first."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mirror.store.files import Files
from tests.conftest import StartMirror
from tests.harness import RunningMirror, short_timeouts
from tests.reading import Reading
from tests.storing import bytes_in, path_of, until
from tests.upstream import Blob, FakeRegistry, no_length, stall_at

KIB = 1 << 10
MIB = 1 << 20
PATIENT = short_timeouts(first_byte=10.0, cold_head=10.0, stall=10.0, no_progress=20.0)


class Gauge(Files):
    """Measures everything under the data directory after each call that can have made it larger."""

    def __init__(self, top: Path) -> None:
        self.most = 0
        """Bytes of everything but the records."""
        self.excess = 0
        """Bytes of everything, less the largest file of the records."""
        self._top = top
        self._still = threading.Lock()

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        with self._measured():
            return super().open(path, flags, mode)

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        with self._measured():
            return super().write(fd, data, offset)

    def rename(self, source: Path, target: Path) -> None:
        with self._measured():
            super().rename(source, target)

    def unlink(self, path: Path) -> None:
        with self._measured():
            super().unlink(path)

    @contextmanager
    def _measured(self) -> Iterator[None]:
        """Nothing moves while it is measured: a file must not be met under two names."""
        with self._still:
            yield
            total = bytes_in(self._top)
            records = [path.stat().st_size for path in (self._top / "records").glob("cache.*")]
            self.most = max(self.most, total - sum(records))
            self.excess = max(self.excess, total - max(records, default=0))


class Clock:
    """Ahead of every file's time, and moved by hand."""

    def __init__(self) -> None:
        self.now = 3_000_000_000.0

    def __call__(self) -> float:
        return self.now


def held(mirror: RunningMirror, blob: Blob) -> bool:
    """Whether the blob's file is there."""
    return path_of(mirror.settings.storage.path, blob.digest).exists()


async def pull(mirror: RunningMirror, *blobs: Blob) -> None:
    """Each of them whole, one after the other."""
    for blob in blobs:
        reply = await mirror.blob("demo", blob.digest)
        assert (reply.status, reply.body) == (200, blob.content)
        await mirror.quiet()


async def test_ten_fills_at_once_never_exceed_the_budget(
    start_mirror: StartMirror, upstream: FakeRegistry, tmp_path: Path
) -> None:
    """Together they are larger than `max_size`: at no write is more on the disk than that and one record file."""
    disk = Gauge(tmp_path / "data1")
    mirror = await start_mirror(files=disk, timeouts=PATIENT, storage={"max_size": 8 * MIB})
    blobs = [upstream.put_blob("library/demo", 3 * MIB + 10_000 * number) for number in range(10)]
    for blob in blobs[::2]:
        upstream.fault(blob, no_length(), times=1, method="GET")

    for _ in range(2):
        replies = await asyncio.gather(*(mirror.blob("demo", blob.digest) for blob in blobs))
        assert all(reply.body == blob.content for reply, blob in zip(replies, blobs, strict=True))
        await mirror.quiet()

    assert 6 * MIB < disk.most <= 8 * MIB
    assert disk.excess <= 8 * MIB
    assert mirror.app.budget.reserved == 0
    assert any(held(mirror, blob) for blob in blobs)


async def test_every_room_is_returned(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """Of fills that succeed, fail, are abandoned by their clients or broken off by the stop."""
    mirror = await start_mirror(timeouts=short_timeouts(no_progress=1.0, stall=0.2), storage={"max_size": 20 * MIB})
    good, bad, left, last = (upstream.put_blob("library/demo", 4 * MIB + number) for number in range(4))
    upstream.fault(bad, stall_at(1000))
    await pull(mirror, good)
    assert mirror.app.budget.reserved == 0

    async with await Reading.ask(mirror, f"/v2/demo/blobs/{bad.digest}"):
        await until(lambda: mirror.app.budget.reserved == bad.size)
        await mirror.quiet(10)
    assert mirror.app.budget.reserved == 0

    upstream.fault(left, stall_at(100 * KIB))
    async with await Reading.ask(mirror, f"/v2/demo/blobs/{left.digest}"):
        await until(lambda: mirror.app.budget.reserved == left.size)
    await mirror.quiet()
    assert mirror.app.budget.reserved == 0

    upstream.fault(last, stall_at(2 * MIB))
    async with await Reading.ask(mirror, f"/v2/demo/blobs/{last.digest}"):
        await until(lambda: mirror.app.budget.reserved == last.size)
        await mirror.stop()
    assert mirror.app.budget.reserved == 0
    assert mirror.app.budget.committed == good.size
    await mirror.start()


async def test_an_image_ages_as_a_whole(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """Serving a manifest is a use of all that it names: the image that is pulled keeps its layers."""
    clock = Clock()
    mirror = await start_mirror(clock=clock, storage={"max_size": 10 * MIB + 512 * KIB, "low_watermark": 0.9})
    old = upstream.add_image("library/demo", "old", layers=[MIB, MIB, MIB])
    new = upstream.add_image("library/demo", "new", layers=[MIB, MIB, MIB])
    for image in (old, new):
        clock.now += 60
        assert (await mirror.manifest("demo", str(image.digest))).status == 200
        await pull(mirror, *image.blobs)
    clock.now += 60

    assert (await mirror.manifest("demo", str(old.digest))).cache == "hit"
    clock.now += 60
    await pull(mirror, *(upstream.put_blob("library/demo", 1700 * KIB + number) for number in range(3)))
    await mirror.app.upkeep.round()

    assert all(held(mirror, blob) for blob in old.layers)
    assert not any(held(mirror, blob) for blob in new.layers)


async def test_the_least_recently_used_go_down_to_the_low_watermark(
    start_mirror: StartMirror, upstream: FakeRegistry
) -> None:
    """A hit is a use; the sweep stops where the watermark is reached."""
    clock = Clock()
    mirror = await start_mirror(clock=clock, storage={"max_size": 10 * MIB, "low_watermark": 0.5})
    blobs = [upstream.put_blob("library/demo", MIB + number) for number in range(9)]
    for blob in blobs:
        clock.now += 60
        await pull(mirror, blob)
    clock.now += 60
    await pull(mirror, blobs[0])

    await mirror.app.upkeep.round()

    assert [held(mirror, blob) for blob in blobs] == [True] + [False] * 5 + [True] * 3
    assert mirror.metric("mirror_evictions_total", reason="budget") == 5
    assert mirror.metric("mirror_evicted_bytes_total") == sum(blob.size for blob in blobs[1:6])
    assert mirror.metric("mirror_cache_bytes") <= 5 * MIB
    assert mirror.metric("mirror_cache_max_bytes") == 10 * MIB


async def test_what_is_being_sent_while_it_is_evicted_stays_readable(
    start_mirror: StartMirror, upstream: FakeRegistry
) -> None:
    """A slow client that was there before gets every byte; the next one is a miss."""
    mirror = await start_mirror(storage={"max_size": 20 * MIB}, timeouts=PATIENT)
    blob = upstream.put_blob("library/demo", 8 * MIB)
    await pull(mirror, blob)

    async with await Reading.ask(mirror, f"/v2/demo/blobs/{blob.digest}", receive_buffer=4096) as reading:
        assert await mirror.app.budget.make_room(8 * MIB, "budget") == 8 * MIB
        assert not held(mirror, blob)
        assert await reading.rest() == blob.content
    assert (await mirror.blob("demo", blob.digest)).cache == "miss"


async def test_a_blob_larger_than_half_the_budget_is_never_kept(
    start_mirror: StartMirror, upstream: FakeRegistry
) -> None:
    """It passes through, whole, and costs nobody his place."""
    mirror = await start_mirror(storage={"max_size": 8 * MIB}, timeouts=PATIENT)
    small, large = upstream.put_blob("library/demo", MIB), upstream.put_blob("library/demo", 4 * MIB + 1)
    await pull(mirror, small, large, large)

    assert held(mirror, small)
    assert not held(mirror, large)
    assert mirror.metric("mirror_bypass_bytes_total", reason="pass_through") == 2 * large.size
    assert mirror.metric("mirror_evictions_total") == 0


async def test_free_space_is_left_to_others(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """With `min_free` above what the file system has, nothing is kept and everything is served."""
    mirror = await start_mirror(storage={"min_free": "100%"}, timeouts=PATIENT)
    blob = upstream.put_blob("library/demo", MIB)

    await pull(mirror, blob, blob)

    assert not held(mirror, blob)
    assert mirror.app.trouble.reasons == []

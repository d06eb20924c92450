"""A hundred thousand blobs change neither what a hit costs, nor when we are ready, nor what memory a sweep takes."""

from __future__ import annotations

import gc
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from mirror.config import Storage
from mirror.metrics import Metrics
from mirror.store.blobs import BlobStore
from mirror.store.budget import Budget
from mirror.store.files import Files
from mirror.store.trouble import Trouble
from mirror.store.victims import MOST
from tests.conftest import StartMirror
from tests.faulty import FaultyFiles
from tests.harness import RunningMirror, short_timeouts
from tests.storing import until
from tests.upstream import FakeRegistry, Image

COUNT = 100_000
AGES = 20
"""Groups of blobs that were last used at the same time: one file each, with many names."""
SIZE = 10
NOW = 3_000_000_000.0
PATIENT = short_timeouts(first_byte=10.0, cold_head=10.0)


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data directory with COUNT blobs, as far as anybody can tell from the outside; removed at the end."""
    top = tmp_path_factory.mktemp("crowd")
    for prefix in range(256):
        (top / "data" / "blobs" / "sha256" / f"{prefix:02x}").mkdir(parents=True)
    for age in range(AGES):
        source = top / f"age{age}"
        source.write_bytes(bytes(SIZE))
        os.utime(source, (NOW - 1000 + age, NOW - 1000 + age))
    descriptors = [os.open(top / "data" / "blobs" / "sha256" / f"{prefix:02x}", os.O_RDONLY) for prefix in range(256)]
    for number in range(COUNT):
        prefix = number % 256
        os.link(top / f"age{number % AGES}", f"{prefix:02x}{number:062x}", dst_dir_fd=descriptors[prefix])
    for descriptor in descriptors:
        os.close(descriptor)
    yield top / "data"
    shutil.rmtree(top)


def names(top: Path) -> list[int]:
    """How many blobs of each age are left."""
    left = [0] * AGES
    for directory in os.scandir(top / "blobs" / "sha256"):
        for entry in os.scandir(directory):
            if entry.stat().st_size == SIZE:
                left[int(entry.name[-8:], 16) % AGES] += 1
    return left


async def pull(mirror: RunningMirror, image: Image) -> list[str | None]:
    """The whole image; returns what X-Cache said."""
    replies = [await mirror.manifest("demo", "1")]
    replies += [await mirror.blob("demo", blob.digest) for blob in image.blobs]
    await mirror.quiet()
    return [reply.cache for reply in replies]


async def cost_of_hits(mirror: RunningMirror, disk: FaultyFiles, image: Image) -> dict[str, int]:
    """The calls on the disk that a warm pull makes."""
    await pull(mirror, image)
    await until(lambda: not disk.open_paths)
    before = disk.calls.copy()
    assert await pull(mirror, image) == ["hit"] * 4
    await until(lambda: not disk.open_paths)
    return dict(disk.calls - before)


async def test_a_crowd_makes_neither_hits_dearer_nor_the_start_later(
    start_mirror: StartMirror, upstream: FakeRegistry, crowd: Path
) -> None:
    """A warm pull makes the same calls on the disk as with an empty cache; a start looks at no blob."""
    image = upstream.add_image("library/demo", "1", layers=[50_000, 50_001])
    disk = FaultyFiles()
    empty = await start_mirror(files=disk, clock=lambda: NOW, timeouts=PATIENT)
    await until(lambda: empty.app.budget.counted)
    expected = await cost_of_hits(empty, disk, image)
    await empty.stop()
    disk = FaultyFiles()
    mirror = await start_mirror(path=crowd, files=disk, clock=lambda: NOW, timeouts=PATIENT)
    await until(lambda: mirror.app.budget.counted, 15)

    assert mirror.metric("mirror_cache_objects", kind="blob") >= COUNT
    assert await cost_of_hits(mirror, disk, image) == expected

    await mirror.app.upkeep.round()
    await mirror.stop()
    upstream.reset()
    trap = disk.hold("scan", path="blobs")
    await mirror.start()
    await trap.met()  # and so the first scan has not seen anything
    async with mirror.session.get(f"{mirror.admin_url}/readyz") as answer:
        assert answer.status == 200
    assert await pull(mirror, image) == ["hit"] * 4
    assert upstream.content_requests() == []
    assert not mirror.app.budget.counted
    assert mirror.app.budget.committed >= COUNT * SIZE
    trap.release()


class Watched(Files):
    """Counts the blocks of memory that are in use whenever another directory is read."""

    def __init__(self) -> None:
        gc.collect()
        self.least = self.most = sys.getallocatedblocks()

    def scan(self, path: Path) -> Iterable[tuple[str, int, float]]:
        self.most = max(self.most, sys.getallocatedblocks())
        return super().scan(path)


async def test_a_sweep_takes_the_oldest_of_a_crowd(crowd: Path) -> None:
    """Down to the watermark, nobody younger before anybody older, in memory for its victims and not for the crowd."""
    disk, metrics = Watched(), Metrics()
    blobs = BlobStore(crowd, disk, lambda: NOW)
    before, others = names(crowd), 100_000  # roughly: the image of the other test
    storage = Storage(path=crowd, max_size=sum(before) * SIZE + others, low_watermark=0.99, min_free="0%")  # type: ignore[arg-type]  # as it is written
    budget = Budget(storage, blobs, Trouble(metrics, time.monotonic), metrics, clock=lambda: NOW)
    await budget.scan(1 << 40)
    assert MOST < disk.most - disk.least < 4 * COUNT  # a victim takes four blocks

    await budget.sweep()

    assert budget.used <= 0.99 * storage.max_size
    gone = [count - left for count, left in zip(before, names(crowd), strict=True)]
    assert sum(gone) > 500
    last = max(age for age, count in enumerate(gone) if count)
    assert gone[:last] == before[:last]
    assert gone[last + 1 :] == [0] * (AGES - last - 1)
    await budget.close()
    await blobs.close()

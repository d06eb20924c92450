"""Real volumes that fill up, turn read-only, run out of inodes, go away and come back: clients get every byte, the
operator is told, and it ends by itself.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import StartMirror
from tests.disks import KIB, MIB, PATIENT, Pair
from tests.faulty import FaultyFiles
from tests.harness import RunningMirror
from tests.storing import bytes_in, path_of, until
from tests.upstream import Blob, FakeRegistry, Image, stall_at
from tests.volumes import cover, fill, mount, unmount, volume


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    with volume(tmp_path / "small", "24m") as top:
        yield top


async def start(start_mirror: StartMirror, upstream: FakeRegistry, path: Path) -> Pair:
    """A mirror over a volume, which has counted what is there."""
    mirror = await start_mirror(path=path, timeouts=PATIENT)
    await until(lambda: mirror.app.budget.counted)
    return Pair(mirror, FaultyFiles(), upstream)


def entries(path: Path) -> list[str]:
    """What is in a directory."""
    return sorted(entry.name for entry in path.iterdir())


def held(mirror: RunningMirror, blob: Blob) -> bool:
    """Whether the blob's file is there."""
    return path_of(mirror.settings.storage.path, blob.digest).exists()


async def pull(pair: Pair, image: Image) -> None:
    """The whole image by its tag, right to the byte."""
    assert (await pair.mirror.manifest("app", "1")).body == image.manifest.content
    for blob in image.blobs:
        reply = await pair.mirror.blob("app", blob.digest)
        assert (reply.status, reply.body) == (200, blob.content)
    await pair.mirror.quiet()


def check_only_names_were_asked(upstream: FakeRegistry, image: Image) -> None:
    """What was known in memory alone costs a question again, and a proof of 4 KiB, but no blob."""
    assert all(upstream.bytes_for(blob) <= 4 * KIB for blob in image.blobs)


async def check_kept_again(pair: Pair) -> None:
    """The trouble is over: nothing is told of it, and what is pulled is kept."""
    await pair.mend()
    await pair.warm()


# Full


async def test_a_disk_that_fills_up_and_empties_again_and_again(
    start_mirror: StartMirror, upstream: FakeRegistry, small: Path
) -> None:
    """Each time clients notice nothing, it is told while it lasts, and what comes afterwards is kept."""
    pair = await start(start_mirror, upstream, small)
    for _ in range(3):
        warm = await pair.warm()
        fill(small / "somebody else's")

        await pair.check(pair.blob(2 * MIB), clients=3)
        assert await pair.check(warm) in (["hit", "hit"], ["miss", "joined"])  # room may be made of it
        await pair.mirror.quiet()

        (small / "somebody else's").unlink()
        await check_kept_again(pair)


# Read-only


async def test_a_volume_that_turns_read_only(start_mirror: StartMirror, upstream: FakeRegistry, small: Path) -> None:
    """As the kernel does with a file system that it does not trust: what is held is served, the rest passes through."""
    pair = await start(start_mirror, upstream, small)
    image = upstream.add_image("library/app", "1", layers=[300 * KIB, 1000])
    await pull(pair, image)
    warm = await pair.warm()
    cover(small)

    assert await pair.check(warm) == ["hit", "hit"]
    upstream.reset()
    await pull(pair, image)
    assert not any(upstream.bytes_for(blob) for blob in image.blobs)
    cold = pair.blob()
    await pair.check(cold, clients=5)
    await pair.mirror.quiet()
    assert "blobs: read_only" in await pair.degraded()
    await pair.mirror.app.upkeep.round()
    assert "blobs: read_only" in await pair.degraded()

    unmount(small)
    await check_kept_again(pair)


# No more inodes


def use_up_inodes(top: Path) -> None:
    """Makes empty files until the file system has room for no other."""
    for number in range(10_000):
        try:
            (top / f"somebody else's {number}").touch()
        except OSError:
            return


async def test_inodes_used_up_by_blobs_are_given_back_by_the_oldest(
    start_mirror: StartMirror, upstream: FakeRegistry, tmp_path: Path
) -> None:
    """However much room is left in bytes, many small blobs make room for the next: it is kept, and nothing is told."""
    with volume(tmp_path / "small", "24m", inodes=300) as top:
        for prefix in range(256):  # as after some time
            (top / f"blobs/sha256/{prefix:02x}").mkdir(parents=True)
        pair = await start(start_mirror, upstream, top)
        blobs = [pair.blob(1000 + number) for number in range(60)]

        for blob in blobs:
            await pair.check(blob, clients=1)
            await pair.mirror.quiet()

        kept = [held(pair.mirror, blob) for blob in blobs]
        assert kept == sorted(kept), "the oldest first"
        assert 20 < sum(kept) < 44
        assert pair.mirror.metric("mirror_evictions_total", reason="emergency") == 60 - sum(kept)
        assert await pair.degraded() == []
        await pair.mirror.stop()


async def test_inodes_used_up_by_others(start_mirror: StartMirror, upstream: FakeRegistry, tmp_path: Path) -> None:
    """Who has nothing to give back passes through, and keeps again when there are some."""
    with volume(tmp_path / "small", "24m", inodes=40) as top:
        pair = await start(start_mirror, upstream, top)
        use_up_inodes(top)

        await pair.check(pair.blob(), clients=3)
        await pair.mirror.quiet()
        assert "blobs: full" in await pair.degraded()

        for path in top.glob("somebody else's *"):
            path.unlink()
        await check_kept_again(pair)
        await pair.mirror.stop()


# Lost and back


async def test_a_directory_that_is_moved_away_and_back(
    start_mirror: StartMirror, upstream: FakeRegistry, tmp_path: Path
) -> None:
    """Pulls pass through, nothing is made in its place, and what was held is held when it is back."""
    path, away = tmp_path / "data", tmp_path / "away"
    pair = await start(start_mirror, upstream, path)
    image = upstream.add_image("library/app", "1", layers=[300 * KIB, 1000])
    await pull(pair, image)
    warm = await pair.warm()
    path.rename(away)

    for _ in range(2):
        await pair.check(warm, clients=3)
        await pair.check(pair.blob(), clients=3)
        await pull(pair, image)
        await pair.mirror.app.upkeep.round()
        assert "blobs: lost" in await pair.degraded()
    assert not path.exists()

    away.rename(path)
    await pair.mend()
    upstream.reset()
    assert await pair.check(warm, clients=1) == ["hit"]
    await pull(pair, image)
    assert not any(upstream.bytes_for(blob) for blob in image.blobs)
    assert pair.mirror.app.budget.committed == bytes_in(path / "blobs")
    await pair.warm()


async def test_a_volume_that_comes_back_empty(start_mirror: StartMirror, upstream: FakeRegistry, small: Path) -> None:
    """Unmounted under us, in the middle of a blob: nothing is written where it was; the new one is used at once."""
    pair = await start(start_mirror, upstream, small)
    image = upstream.add_image("library/app", "1", layers=[300 * KIB, 1000])
    await pull(pair, image)
    warm, cold = await pair.warm(), pair.blob(4 * MIB)
    rule = upstream.fault(cold, stall_at(MIB), times=1)
    asking = asyncio.create_task(pair.check(cold, clients=3))
    await until(lambda: bytes_in(small / "spool") == MIB)
    unmount(small)
    rule.release()

    await asking
    for _ in range(2):
        await pair.check(warm, clients=3)
        await pair.check(pair.blob(), clients=3)
        await pull(pair, image)
        await pair.mirror.app.upkeep.round()
        assert "blobs: lost" in await pair.degraded()
    assert entries(small) == []

    mount(small, "24m")
    await pair.mend()
    await pair.warm()
    await pull(pair, image)
    upstream.reset()
    await pull(pair, image)
    assert upstream.content_requests() == []
    assert pair.mirror.app.budget.committed == bytes_in(small / "blobs")
    await pair.mirror.restart()
    await pull(pair, image)
    check_only_names_were_asked(upstream, image)


async def test_a_stop_without_the_volume_leaves_nothing_where_it_was(
    start_mirror: StartMirror, upstream: FakeRegistry, small: Path
) -> None:
    """A clean stop has things to write: not into the file system that the volume was mounted in."""
    pair = await start(start_mirror, upstream, small)
    await pair.warm()
    unmount(small)
    await pair.check(pair.blob())

    await pair.mirror.stop()

    assert entries(small) == []


def everything(path: Path) -> None:
    """All that is in the data directory."""
    for entry in path.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def spools(path: Path) -> None:
    """One directory of it."""
    shutil.rmtree(path / "spool")


def blobs(path: Path) -> None:
    """All blobs."""
    shutil.rmtree(path / "blobs")


def journal(path: Path) -> None:
    """The list of young blobs."""
    (path / "unsettled").unlink()


def records(path: Path) -> None:
    """All names."""
    shutil.rmtree(path / "records")


def lock(path: Path) -> None:
    """What keeps a second process out."""
    (path / "lock").unlink()


@pytest.mark.parametrize("remove", [everything, spools, blobs, journal, records, lock])
async def test_what_somebody_deletes_is_made_again(
    mirror: RunningMirror, upstream: FakeRegistry, remove: Callable[[Path], None]
) -> None:
    """Also while we run; clients notice nothing, and what is pulled afterwards is kept, over a restart too."""
    pair = Pair(mirror, FaultyFiles(), upstream)
    path = mirror.settings.storage.path
    image = upstream.add_image("library/app", "1", layers=[300 * KIB, 1000])
    await pull(pair, image)
    warm = await pair.warm()
    remove(path)

    await pair.check(warm, clients=3)
    await pair.check(pair.blob(), clients=3)
    await pull(pair, image)
    await mirror.quiet()
    await mirror.app.upkeep.round()  # makes anew what is missing
    await check_kept_again(pair)
    assert entries(path) == ["blobs", "lock", "records", "spool", "unsettled"]

    await pull(pair, image)
    upstream.reset()
    await mirror.restart()
    await pull(pair, image)
    check_only_names_were_asked(upstream, image)

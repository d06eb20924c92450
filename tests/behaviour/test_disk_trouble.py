"""A disk that fails, fills up or hangs is our problem: every client gets every byte, and the operator is told."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.conftest import StartMirror
from tests.disks import KIB, MIB, PATIENT, REASONS, Pair
from tests.faulty import METHODS, FaultyFiles
from tests.storing import bytes_in, until
from tests.upstream import FakeRegistry, flip, stall_at
from tests.volumes import fill, volume


@pytest.fixture
async def pair(start_mirror: StartMirror, upstream: FakeRegistry) -> Pair:
    disk = FaultyFiles()
    mirror = await start_mirror(files=disk, timeouts=PATIENT)
    await until(lambda: mirror.app.budget.counted)
    return Pair(mirror, disk, upstream)


@pytest.mark.parametrize("method", METHODS)
async def test_no_failing_call_costs_a_client_a_byte(pair: Pair, method: str) -> None:
    """Cold and warm, one call and every call from now on; told while it lasts, and not after."""
    for number, reason in REASONS.items():
        warm = await pair.warm()
        trap = pair.disk.fail(number, method)
        await pair.check(pair.blob())
        await pair.check(warm)
        await pair.mirror.quiet()
        await pair.mirror.app.upkeep.finish()
        if trap.hits and method != "close":  # Linux closes the file all the same
            assert await pair.degraded() == [f"blobs: {reason}"]
        await pair.mend()

    for skip in range(3):
        pair.disk.fail(errno.EIO, method, skip=skip, times=1)
        await pair.check(pair.blob())
        await pair.mend()

    await pair.warm()


async def test_a_disk_that_does_nothing_any_more_is_passed_by(pair: Pair) -> None:
    """A lost volume: every call fails, cold and warm, and manifests and tags are served as before."""
    warm = await pair.warm()
    image = pair.upstream.add_image("library/app", "1", layers=[MIB, 1000])
    assert (await pair.mirror.manifest("app", "1")).status == 200
    pair.disk.fail(errno.EIO)

    for blob in (warm, *image.blobs, pair.blob()):
        reply = await pair.mirror.get(f"/v2/{'app' if blob in image.blobs else 'demo'}/blobs/{blob.digest}")
        assert (reply.status, reply.body) == (200, blob.content)
    assert (await pair.mirror.manifest("app", "1")).body == image.manifest.content

    await pair.mend()
    await pair.warm()


async def test_a_disk_that_fails_in_the_middle_of_a_blob(pair: Pair) -> None:
    """Who reads goes on from where the file ends, who comes later is served too, and nothing half is kept."""
    blob = pair.blob(4 * MIB)
    trap = pair.disk.fail(errno.EIO, "write", path="spool", skip=3)

    await pair.check(blob, clients=10)
    await pair.check(blob, clients=2)

    assert trap.hits
    await pair.mend()
    assert await pair.check(blob, clients=1) == ["miss"]
    await pair.mirror.quiet()
    assert await pair.check(blob, clients=1) == ["hit"]


@pytest.mark.parametrize("skip", [0, 1, 2])
async def test_a_held_blob_that_cannot_be_read_to_its_end(pair: Pair, skip: int) -> None:
    """Its clients get the rest from the upstream; the blob is dropped and fetched anew."""
    blob = pair.blob(17 * MIB)
    await pair.check(blob, clients=1)
    await pair.mirror.quiet()
    pair.disk.fail(errno.EIO, "sendfile", skip=skip, times=1)

    assert "hit" in await pair.check(blob, clients=2)

    await pair.mend()


async def test_a_held_blob_that_may_not_be_opened(pair: Pair) -> None:
    """Somebody changed its mode: it is fetched again, and takes the place of the one that nobody can read."""
    blob = await pair.warm()
    pair.disk.fail(errno.EACCES, "open", path=blob.digest.hex, times=1)

    assert await pair.check(blob, clients=1) == ["miss"]
    assert await pair.degraded() == ["blobs: permission"]

    await pair.mend()
    assert await pair.check(blob, clients=1) == ["hit"]


# A slow disk


@pytest.mark.parametrize(
    ("method", "path"), [("open", "spool"), ("write", "spool"), ("fsync", ""), ("rename", ""), ("free", "")]
)
async def test_a_slow_disk_stops_nobody_else(pair: Pair, method: str, path: str) -> None:
    """While fills wait for the disk, hits and manifests are served and the loop turns."""
    pair.disk.space = (1 << 30, 1 << 30)  # so little that it is looked at for each fill
    warm = await pair.warm()
    image = pair.upstream.add_image("library/app", "1", layers=[1000])
    trap = pair.disk.hold(method, path=path)
    blobs = [pair.blob() for _ in range(12)]
    waiting = [asyncio.create_task(pair.check(blob)) for blob in blobs]
    await trap.met()

    assert await pair.check(warm, clients=20) == ["hit"] * 20
    assert (await pair.mirror.manifest("app", "1")).body == image.manifest.content
    for _ in range(1000):
        await asyncio.sleep(0)
    assert not any(task.done() for task in waiting) or method in ("fsync", "rename")

    trap.release()
    await asyncio.gather(*waiting)


@pytest.mark.parametrize("methods", [("open",), ("open", "stat")])
async def test_one_blob_that_does_not_come_keeps_no_other_waiting(pair: Pair, methods: tuple[str, ...]) -> None:
    """More clients wait for it than there are threads: other blobs are served, held ones and new ones."""
    slow, warm = await pair.warm(), await pair.warm()
    trap = pair.disk.hold(*methods, path=slow.digest.hex)
    waiting = [asyncio.create_task(pair.check(slow, clients=1)) for _ in range(40)]
    await trap.met()

    for _ in range(3):
        assert await pair.check(warm, clients=20) == ["hit"] * 20
        new = pair.blob()
        assert "miss" in await pair.check(new, clients=3)
        await until(lambda: not pair.mirror.app.downloads.all)
        assert await pair.check(new, clients=3) == ["hit"] * 3

    trap.release()
    await asyncio.gather(*waiting)


async def test_fills_do_not_wait_for_the_fsync_of_others(pair: Pair) -> None:
    """However many blobs are on their way to a slow disk, the next one comes as fast as its upstream sends it."""
    warm = await pair.warm()
    trap = pair.disk.hold("fsync", path="spool")
    await asyncio.gather(*(pair.check(pair.blob()) for _ in range(20)))
    await trap.met()

    for _ in range(3):
        await pair.check(pair.blob(MIB), clients=3)
        assert await pair.check(warm, clients=3) == ["hit"] * 3
    assert len(pair.mirror.app.downloads.all) == 23

    trap.release()
    await pair.mend()


async def test_the_first_bytes_do_not_wait_for_the_disk(pair: Pair) -> None:
    """A client has the beginning of a blob before the disk has taken any of it."""
    blob = pair.blob(MIB)
    trap = pair.disk.hold("write", path="spool")

    async with pair.mirror.session.get(f"{pair.mirror.url}/v2/demo/blobs/{blob.digest}") as answer:
        first = await answer.content.readexactly(32 * KIB)
        assert pair.mirror.app.budget.committed == 0
        trap.release()
        rest = await answer.read()

    assert first + rest == blob.content


async def test_wrong_first_bytes_never_come_with_a_right_rest(pair: Pair) -> None:
    """Who got them before the disk failed gets no more than the upstream's right bytes can complete."""
    blob = pair.blob(MIB)
    pair.disk.fail(errno.EIO, "write", path="spool")
    pair.upstream.fault(blob, flip(0), times=1)

    async with pair.mirror.session.get(f"{pair.mirror.url}/v2/demo/blobs/{blob.digest}") as answer:
        first = await answer.content.readexactly(32 * KIB)
        assert first != blob.content[: 32 * KIB]
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()

    await pair.mend()


async def test_nobody_waits_for_what_is_only_our_own_good(pair: Pair) -> None:
    """The last byte is given before the blob is safe on the disk."""
    trap = pair.disk.hold("fsync", path="spool")
    blob = pair.blob()

    await pair.check(blob)

    await trap.met()
    trap.release()
    await pair.mirror.quiet()
    assert await pair.check(blob, clients=1) == ["hit"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("open", "spool"),
        ("open", "blobs"),
        ("size", ""),
        ("write", "spool"),
        ("free", ""),
        ("fsync", ""),
        ("rename", ""),
    ],
)
async def test_a_disk_that_hangs_is_passed_by(
    start_mirror: StartMirror, upstream: FakeRegistry, monkeypatch: pytest.MonkeyPatch, method: str, path: str
) -> None:
    """A client waits for it only so long, then it gets its bytes from the upstream; all of them, in any case."""
    disk = FaultyFiles()
    disk.space = (1 << 30, 1 << 30)  # so little that it is looked at for each fill
    pair = Pair(await start_mirror(files=disk, timeouts=PATIENT, wiring={"patience": 0.5}), disk, upstream)
    warm = await pair.warm()
    blobs = [pair.blob(200 * KIB) for _ in range(10)]
    monkeypatch.setattr("mirror.store.budget._RESERVE_SECONDS", 0.2)
    trap = disk.hold(method, path=path)

    await asyncio.gather(*(pair.check(blob) for blob in (warm, *blobs)))

    assert trap.hits
    if method not in ("fsync", "rename", "free"):  # these no client waits for, or not as for the disk
        assert await pair.degraded() == ["blobs: slow"]
    await pair.mend()


# A full disk


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    with volume(tmp_path / "small", "24m") as top:
        yield top


async def test_a_full_disk_costs_no_client_a_byte(
    start_mirror: StartMirror, upstream: FakeRegistry, small: Path
) -> None:
    """24 MiB of disk under a budget of 1 GiB: several large blobs at once, and again, and after a restart."""
    mirror = await start_mirror(path=small, timeouts=PATIENT)
    pair = Pair(mirror, FaultyFiles(), upstream)
    blobs = [pair.blob(size * MIB) for size in (5, 7, 9, 11, 25)]

    await asyncio.gather(*(pair.check(blob, clients=2) for blob in blobs))
    await mirror.quiet()
    await asyncio.gather(*(pair.check(blob, clients=1) for blob in blobs))
    await mirror.quiet()
    await mirror.restart()
    await asyncio.gather(*(pair.check(blob, clients=1) for blob in blobs))

    await mirror.quiet()
    last = pair.blob(5 * MIB)
    await pair.check(last, clients=1)
    await mirror.quiet()
    assert await pair.check(last, clients=1) == ["hit"]  # a full cache makes room on a full disk too


async def test_a_full_disk_is_no_reason_not_to_start(
    start_mirror: StartMirror, upstream: FakeRegistry, small: Path
) -> None:
    """Held blobs are served from it, the records get some room back, and nothing is asked again."""
    mirror = await start_mirror(path=small, timeouts=PATIENT)
    pair = Pair(mirror, FaultyFiles(), upstream)
    image = upstream.add_image("library/app", "1", layers=[3 * MIB, 1000])
    old = [pair.blob(3 * MIB + number) for number in range(3)]
    for blob in old:
        await pair.check(blob, clients=1)
    for path in ("manifests/1", *(f"blobs/{blob.digest}" for blob in image.blobs)):
        assert (await mirror.get(f"/v2/app/{path}")).status == 200
    await mirror.quiet()
    await mirror.stop()
    fill(small / "somebody else's")
    upstream.reset()

    await mirror.start()
    await until(lambda: mirror.app.budget.counted and not mirror.app.trouble.reasons)

    assert (await mirror.manifest("app", "1")).body == image.manifest.content
    for blob in image.blobs:
        assert (await mirror.blob("app", blob.digest)).body == blob.content
    assert upstream.content_requests() == []
    assert mirror.metric("mirror_evictions_total", reason="emergency") == 1
    assert await pair.degraded() == []


async def test_a_disk_that_others_fill_in_the_middle_of_a_blob(
    start_mirror: StartMirror, upstream: FakeRegistry, small: Path
) -> None:
    """What is in the file is given, the rest comes from the upstream, and the room is given back."""
    mirror = await start_mirror(path=small, timeouts=PATIENT)
    pair = Pair(mirror, FaultyFiles(), upstream)
    blob = pair.blob(16 * MIB)
    rule = upstream.fault(blob, stall_at(4 * MIB), times=1)
    asking = asyncio.create_task(pair.check(blob, clients=3))
    await until(lambda: bytes_in(small / "spool") == 4 * MIB)
    (small / "somebody else's").write_bytes(bytes(14 * MIB))
    rule.release()

    await asking

    assert "blobs: full" in await pair.degraded()
    await mirror.quiet()
    assert bytes_in(small / "spool") == mirror.app.budget.reserved == 0

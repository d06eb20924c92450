"""The chores: each is done, none keeps another from being done, and a disk that works again is noticed."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mirror.config import Storage
from mirror.metrics import Metrics
from mirror.oci.digest import Digest
from mirror.store import upkeep as module
from mirror.store.blobs import BlobStore
from mirror.store.budget import Budget
from mirror.store.home import Home
from mirror.store.records import Records
from mirror.store.trouble import Trouble
from mirror.store.upkeep import Upkeep
from tests.faulty import METHODS, FaultyFiles
from tests.storing import bytes_in, content, path_of, put

KIB = 1 << 10
MIB = 1 << 20
UNIT = 50 * KIB
HOUR = 3600.0


class House:
    """Everything that upkeep keeps up, over one data directory."""

    def __init__(self, path: Path, **storage: Any) -> None:
        self.path = path
        self.disk = FaultyFiles()
        self.now = 3_000_000_000.0
        self.metrics = Metrics()
        settings = Storage(**{"path": path, "max_size": 100 * KIB, "min_free": "0%", **storage})
        self.trouble = Trouble(self.metrics, time.monotonic)
        self.blobs = BlobStore(path, self.disk, lambda: self.now)
        self.records = Records(path / "records", self.trouble)
        self.budget = Budget(settings, self.blobs, self.trouble, self.metrics, clock=lambda: self.now)
        self.home = Home(path)
        self.upkeep = Upkeep(settings, self.home, self.blobs, self.budget, self.records, self.trouble, self.metrics)

    async def open(self) -> House:
        await self.home.take()
        await self.blobs.open()
        await self.records.open()
        await self.upkeep.begin(clean=True)
        return self

    async def close(self) -> None:
        self.disk.clear()
        await self.budget.close()
        await self.records.close()
        await self.blobs.close()
        await self.home.release()

    async def put(self, *sizes: int) -> list[Digest]:
        digests = []
        for number, size in enumerate(sizes):
            self.now += 60
            digests.append(await put(self.blobs, content(number, size)))
            self.blobs.touch(digests[-1])
        return digests


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    house = await House(tmp_path / "data", max_size=30 * UNIT).open()
    yield house
    await house.close()


async def test_a_round_sweeps_down_to_the_low_watermark(house: House) -> None:
    """The least recently used go, so that the next fills find room."""
    held = await house.put(*[2 * UNIT] * 15)

    await house.upkeep.round()

    assert house.budget.used <= 27 * UNIT
    left = [path_of(house.path, digest).exists() for digest in held]
    assert left == sorted(left)
    assert 11 <= sum(left) <= 13
    assert bytes_in(house.path / "blobs") == house.budget.committed


async def test_nothing_is_swept_below_the_limit(house: House) -> None:
    """Between the watermark and the limit a cache is left alone."""
    await house.put(*[2 * UNIT] * 12)

    await house.upkeep.round()

    assert house.budget.committed == 24 * UNIT


async def test_the_used_total_is_a_record(house: House, tmp_path: Path) -> None:
    """What is promised counts too: after a crash its spools are still there."""
    await house.put(2 * UNIT)
    await house.budget.reserve(3 * UNIT)
    await house.upkeep.round()

    after = House(house.path, max_size=30 * UNIT)
    await after.records.open()
    await after.upkeep.begin(clean=True)

    assert after.budget.committed == 5 * UNIT
    assert not after.budget.counted
    assert after.disk.calls.total() == 0
    await after.records.close()
    await after.blobs.close()


async def test_what_was_written_before_a_crash_is_no_total(house: House) -> None:
    """More may have come since: it is counted before anything is written."""
    await house.put(UNIT)
    await house.records.set(("used",), b"0", HOUR)

    await house.upkeep.begin(clean=False)
    assert await house.budget.reserve(UNIT // 2)

    assert house.budget.counted
    assert house.budget.committed == UNIT


@pytest.mark.parametrize("written", [b"", b"many", b"-5", b"\xff"])
async def test_a_strange_total_is_not_believed(house: House, written: bytes) -> None:
    """It is counted instead."""
    await house.records.set(("used",), written, HOUR)

    await house.upkeep.begin(clean=True)

    assert house.budget.used == house.budget.records


async def test_records_stay_within_their_share(tmp_path: Path) -> None:
    """A tenth of the budget; above that those nearest their expiry go. What they may grow by counts, too."""
    house = await House(tmp_path / "data", max_size=30 * MIB).open()
    for number in range(300):
        await house.records.set((str(number),), bytes(20_000), HOUR + number)
    assert await house.records.volume() > 3 * MIB

    await house.upkeep.round()

    volume = await house.records.volume()
    assert 2 * MIB < volume <= 3 * MIB
    assert MIB < house.budget.records - volume < 2 * MIB
    held = [number for number in range(300) if await house.records.get((str(number),)) is not None]
    assert held == list(range(300 - len(held), 300))
    assert len(held) > 50
    await house.close()


async def test_what_is_over_is_dropped(house: House) -> None:
    """Expired records go in every round, also more than fit into one step."""
    before = await house.records.count()
    for number in range(50):
        await house.records.set((str(number),), b"x", 0.01)
    await asyncio.sleep(0.02)

    await house.upkeep.round()

    assert await house.records.count() - before <= 1  # the total


async def test_uses_are_written_now_and_then(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every half minute, or as soon as there are many."""
    (digest,) = await house.put(KIB)
    await house.upkeep.round()
    assert path_of(house.path, digest).stat().st_mtime == house.now

    house.now += 60
    house.blobs.touch(digest)
    await house.upkeep.round()
    assert house.blobs.unflushed == 1
    monkeypatch.setattr(module, "_FLUSH_USES", 0)
    await house.upkeep.round()
    assert house.blobs.unflushed == 0


async def test_one_chore_that_fails_keeps_no_other_from_being_done(house: House) -> None:
    """A blob whose time cannot be written does not stop the sweep."""
    held = await house.put(*[2 * UNIT] * 15)
    house.disk.fail(errno.EIO, "utime", path=held[3].hex)

    await house.upkeep.round()

    assert house.budget.used <= 27 * UNIT
    assert house.trouble.reasons == ["blobs: io_error"]


async def test_a_count_that_failed_is_repeated(house: House) -> None:
    """In the next round, not in an hour: without it nothing is known."""
    house.disk.fail(errno.EIO, "scan", times=1)
    await house.upkeep.round()
    assert house.trouble.reasons == ["blobs: io_error"]

    await house.upkeep.round()

    assert house.budget.counted
    assert house.trouble.reasons == []


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.ENOSPC])
async def test_a_disk_that_works_again_is_noticed(house: House, number: int) -> None:
    """Without anybody asking for a blob; and not before it works."""
    house.disk.fail(number, "write")
    with pytest.raises(Exception, match="disk failed") as caught:
        await house.put(KIB)
    house.trouble.note("blobs", caught.value)
    await house.upkeep.round()
    assert house.trouble.met_by("blobs")

    house.disk.clear()
    await house.upkeep.round()

    assert house.trouble.reasons == []


@pytest.mark.parametrize("method", METHODS)
async def test_a_round_survives_every_failure(house: House, method: str) -> None:
    """Whatever fails, the next round is done, and a working disk leaves no trace of it."""
    await house.put(*[2 * UNIT] * 15)
    house.disk.fail(errno.EIO, method)
    await house.upkeep.round()
    await house.upkeep.finish()

    house.disk.clear()
    await house.upkeep.round()
    await house.upkeep.round()

    assert house.trouble.reasons == []
    assert house.budget.committed == bytes_in(house.path / "blobs") <= 27 * UNIT


async def test_an_unexpected_error_ends_one_chore_alone(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    """It is told with its traceback, and the others are done."""
    await house.put(*[2 * UNIT] * 15)

    async def broken() -> None:
        raise ZeroDivisionError("unexpected")

    house.blobs.flush_uses = broken  # type: ignore[method-assign]  # no disk does this

    await house.upkeep.round()

    assert "unexpected" in capsys.readouterr().out
    assert house.budget.used <= 27 * UNIT


async def test_rounds_go_on_until_they_are_cancelled(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, a failing one included."""
    monkeypatch.setattr(module, "_ROUND_SECONDS", 0.0)
    house.disk.fail(errno.EIO, "scan", times=3)
    task = asyncio.create_task(house.upkeep.run())
    async with asyncio.timeout(5):
        while not house.budget.counted:  # noqa: ASYNC110 - the event would be private
            await asyncio.sleep(0.001)

    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert task.cancelled()


async def test_the_last_chores_of_a_clean_stop(house: House, tmp_path: Path) -> None:
    """Uses and the total are written."""
    (digest,) = await house.put(KIB)
    await house.budget.scan(0)

    await house.upkeep.finish()

    assert path_of(house.path, digest).stat().st_mtime == house.now
    assert await house.records.get(("used",)) == b"1024"


async def test_another_directory_is_looked_through_before_it_is_used(house: House) -> None:
    """Also where the first look at it fails: what stands in its journal is in doubt, and not to be served as it is."""
    (digest,) = await house.put(UNIT)
    house.path.rename(house.path.with_name("away"))
    house.path.mkdir()
    (house.path / "unsettled").write_text(f"\n{digest}")
    house.disk.fail(errno.EIO, "read", path="unsettled")

    await house.upkeep.round()
    assert not house.blobs.checks.is_suspect(digest)
    house.disk.clear()
    await house.upkeep.round()

    assert house.blobs.checks.is_suspect(digest)
    assert not await house.home.find()

"""One database for several processes: what one of them learns of a record, or of the disk, counts for all at once."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mirror.store import records as module
from mirror.store.deletions import Deletions
from mirror.store.records import Records
from tests.lodging import House

HOUR = 3600.0
KEY = ("tag", "registry.example", "demo", "1")
OTHER = ("tag", "registry.example", "demo", "2")
NOW = 3_000_000_000.0

WRITING = """
import asyncio, sys, time
from pathlib import Path
from mirror.metrics import Metrics
from mirror.store.ledger import Ledger
from mirror.store.part import Part
from mirror.store.records import Records
from mirror.store.trouble import Trouble

async def main():
    trouble = Trouble(Metrics(), time.monotonic)
    records = Records(Path(sys.argv[1]), trouble, part=Part(Ledger(int(sys.argv[2]), 2), 2, 1))
    await records.open()
    print("open", flush=True)
    sys.stdin.readline()
    for number in range(300):
        await records.set(("theirs", str(number)), b"x" * 500, 3600)
        if number % 30 == 29:
            await records.delete(("theirs", str(number)))
    print(trouble.met_by("records"), flush=True)
    await records.close()

asyncio.run(main())
"""


@pytest.fixture
async def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    """With two workers."""
    monkeypatch.setattr(module, "_REST_SECONDS", 0.0)
    made = House(tmp_path / "data", clock=lambda: NOW)
    await made.start()
    for slot in range(2):
        await made.move_in(slot)
    yield made
    await made.stop()


def books(house: House) -> list[Records]:
    return [worker.lodger.records for worker in house.workers.values()]


@contextmanager
def locked(house: House) -> Iterator[None]:
    """Nobody can write."""
    connection = sqlite3.connect(house.storage.path / "records" / "cache.db", isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


def damage(house: House) -> None:
    """A record is not as it was written."""
    connection = sqlite3.connect(house.storage.path / "records" / "cache.db")
    with connection:
        connection.execute("UPDATE Cache SET value = x'00' WHERE key LIKE '%demo%'")
    connection.close()


async def told(house: House) -> None:
    """Everybody has heard what there is to hear."""
    for _ in range(2):
        for worker in house.workers.values():
            await worker.told()


async def eventually(book: Records, key: tuple[str, ...], value: bytes) -> None:
    """Waits until it says so."""
    async with asyncio.timeout(10):
        while await book.get(key) != value:  # noqa: ASYNC110 - another process tells it in its own time
            await asyncio.sleep(0.01)


async def test_what_one_writes_all_read(house: House) -> None:
    """Also deletions, and what the keeper drops."""
    one, other = books(house)
    assert await one.set(KEY, b"1", HOUR)
    assert await other.get(KEY) == b"1"
    await other.delete(KEY)
    assert await one.get(KEY) is None
    assert await one.set(OTHER, b"2", -1)
    assert await house.keeper.records.drop_expired() == 1


async def test_a_deletion_counts_for_all_before_the_database_hears_of_it(house: House) -> None:
    """A permission that has ended is given by nobody; when the database has heard, a new one counts."""
    one, other = books(house)
    worker = house.workers[1]
    await one.set(KEY, b"1", HOUR)
    stamp = worker.lodger.generations.stamp(KEY)
    with locked(house):
        await one.delete(KEY)
        await told(house)
        assert await other.get(KEY) is None
        assert not worker.lodger.generations.is_current(stamp)  # no copy in memory counts either

    await one.mend()
    await told(house)
    await one.set(KEY, b"2", HOUR)
    assert await other.get(KEY) == b"2"


async def test_a_deletion_survives_the_death_of_who_asked_for_it(house: House) -> None:
    """The next worker in its slot sees to it, and to begin with nobody believes the record."""
    one, _ = books(house)
    await one.set(KEY, b"1", HOUR)
    with locked(house):
        await one.delete(KEY)
        await told(house)
        mark = house.storage.path / "records.outdated.0"
        assert mark.exists()
        mark.unlink()  # as on a disk that took none
        house.workers[0].lodger.records.deletions.tell = lambda _key, _undone: None
        await house.workers[0].channel.close()
        late = await house.move_in(0)
        assert await late.lodger.records.get(KEY) is None
        assert await books(house)[1].get(KEY) is None

    await late.lodger.records.mend()
    await told(house)
    assert list(late.lodger.records.deletions) == []
    assert await house.keeper.records.get(KEY) is None
    await one.close()


async def test_the_mark_of_a_worker_is_its_own_business(house: House) -> None:
    """While others are at work it says nothing to them; its successor has everything asked anew, by all."""
    one, other = books(house)
    await one.set(KEY, b"1", HOUR)
    (house.storage.path / "records.outdated.0").touch()
    again = await house.move_in(1)
    assert await again.lodger.records.get(KEY) == b"1"

    successor = await house.move_in(0)

    assert await successor.lodger.records.get(KEY) is None
    await successor.lodger.records.set(OTHER, b"2", HOUR)
    await eventually(again.lodger.records, OTHER, b"2")
    assert await again.lodger.records.get(KEY) is None
    assert not list(house.storage.path.glob("records.outdated*"))
    for book in (one, other):
        await book.close()


async def test_all_marks_count_when_nobody_is_at_work(house: House, tmp_path: Path) -> None:
    """After a kill of all, what any of them could not delete must not come back."""
    await books(house)[0].set(KEY, b"1", HOUR)
    await house.stop()
    house.workers.clear()
    (house.storage.path / "records.outdated.7").touch()

    after = House(tmp_path / "data", clock=lambda: NOW)
    await after.start()
    assert await after.keeper.records.get(KEY) is None
    assert not list(house.storage.path.glob("records.outdated*"))
    await after.stop()


async def test_damage_that_one_finds_is_past_for_all(house: House) -> None:
    """The others take up the new database at once, the keeper too."""
    one, other = books(house)
    await one.set(KEY, b"1", HOUR)
    damage(house)

    assert await one.get(KEY) is None
    await one.set(OTHER, b"2", HOUR)

    for book in (other, house.keeper.records):
        await eventually(book, OTHER, b"2")


async def test_damage_that_all_find_is_moved_aside_once(house: House) -> None:
    """Whoever comes second takes up what the first has begun."""
    all_books = [*books(house), house.keeper.records]
    await all_books[0].set(KEY, b"1", HOUR)
    damage(house)

    assert await asyncio.gather(*(book.get(KEY) for book in all_books)) == [None] * 3
    for _ in range(2):
        await told(house)
        for book in all_books:
            await book.mend()

    for number, book in enumerate(all_books):
        assert await book.set(("now", str(number)), b"1", HOUR)
    for book in all_books:
        assert [await book.get(("now", str(number))) for number in range(3)] == [b"1"] * 3


async def test_processes_that_write_at_once_lose_nothing(house: House) -> None:
    """Each waits for its turn on the database; none takes the other's for trouble."""
    path, fd = house.storage.path / "records", house.shared_fd
    there = subprocess.Popen(  # noqa: ASYNC220 - it takes a millisecond
        [sys.executable, "-c", WRITING, str(path), str(fd)],
        pass_fds=[fd],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )
    assert there.stdin is not None
    assert there.stdout is not None
    run = asyncio.get_running_loop().run_in_executor
    assert await run(None, there.stdout.readline) == b"open\n"
    there.stdin.write(b"\n")
    there.stdin.flush()
    (ours, _) = books(house)
    for number in range(300):
        assert await ours.set(("ours", str(number)), b"y" * 500, HOUR)
    rest = await run(None, there.communicate)

    assert (rest[0], there.returncode) == (b"None\n", 0)
    for number in range(0, 300, 7):
        assert await ours.get(("ours", str(number))) is not None
        assert (await ours.get(("theirs", str(number))) is None) == (number % 30 == 29)


def test_deletions_are_told_of_once() -> None:
    """Only those that did not come to pass at once; and their end, whatever it was."""
    told: list[tuple[tuple[str, ...], bool]] = []
    deletions = Deletions()
    deletions.tell = lambda key, undone: told.append((key, undone))
    deletions.begin(KEY)
    deletions.done(KEY)
    deletions.begin(OTHER)
    deletions.failed(OTHER)
    deletions.failed(OTHER)
    deletions.adopt([KEY])
    assert (told, list(deletions), len(deletions)) == ([(OTHER, True)], [OTHER, KEY], 2)

    deletions.clear()
    deletions.done(OTHER)

    assert told == [(OTHER, True), (OTHER, False), (KEY, False)]
    deletions.hear(KEY, undone=True)
    assert KEY in deletions
    assert len(deletions) == 0
    deletions.hear(KEY, undone=False)
    assert KEY not in deletions

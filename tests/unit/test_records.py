"""Named records: what a planted, damaged, locked, full or growing database does, and that nothing of it is an error."""

from __future__ import annotations

import asyncio
import errno
import os
import pickle
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.metrics import Metrics
from mirror.store import binding, database
from mirror.store import records as module
from mirror.store.database import encode_key
from mirror.store.records import Records
from mirror.store.trouble import Trouble
from tests.damage import DAMAGES, Damage
from tests.refusing import UNABLE
from tests.storing import bytes_in, until
from tests.volumes import fill, remount, volume

HOUR = 3600.0
KEY = ("tag", "docker.io", "library/demo", "1")


@pytest.fixture
def trouble() -> Trouble:
    return Trouble(Metrics(), time.monotonic)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "records"


@pytest.fixture
async def records(path: Path, trouble: Trouble) -> AsyncIterator[Records]:
    records = Records(path, trouble)
    await records.open()
    yield records
    await records.close()


async def reopened(path: Path, trouble: Trouble) -> Records:
    """The records as the next process finds them."""
    records = Records(path, trouble)
    await records.open()
    return records


def names(path: Path) -> list[str]:
    """The files of the book."""
    return sorted(file.name for file in path.iterdir())


def mode(path: Path) -> int:
    """Who may do what with it."""
    return path.stat().st_mode


def obstruct(path: Path) -> None:
    """Puts a file where the directory should be."""
    path.parent.mkdir()
    path.write_text("in the way")


def planted(path: Path, sql: str, *values: object) -> None:
    """Somebody writes into our database behind our back."""
    with sqlite3.connect(path / "cache.db") as connection:
        connection.execute(sql, values)
    connection.close()


# What is written is read


async def test_a_record_survives_a_restart(records: Records, path: Path, trouble: Trouble) -> None:
    """Exact bytes under an exact key; others are absent."""
    await records.set(KEY, b"\0value\xff", HOUR)
    await records.set(("big",), b"x" * (4 << 20), HOUR)
    assert await records.get(KEY) == b"\0value\xff"
    await records.close()

    again = await reopened(path, trouble)

    assert await again.get(KEY) == b"\0value\xff"
    assert await again.get(("big",)) == b"x" * (4 << 20)
    assert await again.get((*KEY, "")) is None
    await again.delete(KEY)
    assert await again.get(KEY) is None
    await again.close()


async def test_a_large_value_is_in_the_database(records: Records, path: Path) -> None:
    """No files beside it that a crash could orphan, and nobody would count."""
    await records.set(("big",), b"x" * (1 << 20), HOUR)

    assert set(names(path)) <= {"cache.db", "cache.db-wal", "cache.db-shm"}
    assert await records.volume() == bytes_in(path)


async def test_a_record_ends_with_its_usefulness(records: Records) -> None:
    """Past its time it is gone for `get`, and `drop_expired` removes it."""
    await records.set(KEY, b"value", 0.02)
    await records.set(("other",), b"value", HOUR)
    before = await records.count()
    await asyncio.sleep(0.05)

    assert await records.get(KEY) is None
    assert await records.drop_expired() == 1
    assert await records.drop_expired() == 0
    assert await records.count() == before - 1
    assert await records.get(("other",)) == b"value"


async def test_records_are_for_us_alone(records: Records, path: Path) -> None:
    """Nobody else can list or read them."""
    await records.set(KEY, b"value", HOUR)

    assert mode(path) & 0o077 == 0


keys = st.lists(st.text(max_size=8), min_size=1, max_size=4).map(tuple)


@given(keys, keys)
def test_different_keys_are_never_the_same_text(one: tuple[str, ...], other: tuple[str, ...]) -> None:
    """However a name is cut into parts or looks like a separator."""
    assert (encode_key(one) == encode_key(other)) == (one == other)


@given(st.text(max_size=6), st.text(max_size=6), st.sampled_from('",[]\\/: \0'))
def test_separators_inside_a_name_separate_nothing(left: str, right: str, separator: str) -> None:
    """Gluing two parts with anything gives another key than the two parts."""
    assert encode_key((left + separator + right,)) != encode_key((left, right))
    assert encode_key((left, separator + right)) != encode_key((left + separator, right))


# Planted rows


class Bomb:
    """What must never be unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("place", ["value", "file", "key"])
async def test_a_planted_pickle_is_never_executed(
    records: Records, path: Path, trouble: Trouble, tmp_path: Path, place: str
) -> None:
    """Neither as a value in a row or in a file (mode 4), nor as a key (raw 0)."""
    await records.set(KEY, b"value", HOUR)
    await records.close()
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))
    (path / "bomb.val").write_bytes(bomb)
    row = {
        "value": ("UPDATE Cache SET mode = 4, value = ? WHERE key = ?", bomb),
        "file": ("UPDATE Cache SET mode = 4, filename = 'bomb.val', value = NULL WHERE ? != '' AND key = ?", "x"),
        "key": ("INSERT INTO Cache (key, raw, mode, value) SELECT ?, 0, 1, value FROM Cache WHERE key = ?", bomb),
    }[place]
    planted(path, row[0], row[1], encode_key(KEY))

    again = await reopened(path, trouble)
    for _ in range(2):
        await again.get(KEY)
        await again.count()
        await again.drop_some()
    await again.close()

    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("mode", [0, 2, 3, 4, 9])
async def test_a_planted_row_reads_no_file(
    records: Records, path: Path, trouble: Trouble, tmp_path: Path, mode: int
) -> None:
    """A row that names a file of the machine gives nothing, and the book it stands in is not believed any more."""
    (tmp_path / "secret").write_bytes(b"secret")
    await records.set(KEY, b"value", HOUR)
    await records.close()
    planted(
        path, "UPDATE Cache SET mode = ?, filename = '../../secret', value = NULL WHERE key = ?", mode, encode_key(KEY)
    )

    again = await reopened(path, trouble)

    assert await again.get(KEY) is None
    await again.set(KEY, b"new", HOUR)
    assert await again.get(KEY) == b"new"
    assert (path.parent / "records.aside").exists()
    await again.close()


# A database that is not ours any more


async def check_begun_anew(path: Path, trouble: Trouble) -> None:
    """The old one stands aside, the new one works, and nothing is degraded."""
    again = await reopened(path, trouble)
    await again.get(KEY)
    assert await again.set(KEY, b"new", HOUR)
    assert await again.get(KEY) == b"new"
    assert (path.parent / "records.aside").exists()
    assert trouble.reasons == []
    await again.close()


@pytest.mark.parametrize("garbage", [b"garbage" * 1000, b"SQLite format 3\0" + b"\xff" * 5000, b"\0" * 8192])
async def test_garbage_is_moved_aside(records: Records, path: Path, trouble: Trouble, garbage: bytes) -> None:
    """A file that is no database, or only pretends to be one."""
    await records.close()
    (path / "cache.db").write_bytes(garbage)

    await check_begun_anew(path, trouble)


async def test_another_schema_is_moved_aside(
    records: Records, path: Path, trouble: Trouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records of another version of us are not guessed at."""
    await records.set(KEY, b"value", HOUR)
    await records.close()
    monkeypatch.setattr(binding, "SCHEMA", database.SCHEMA + 1)

    await check_begun_anew(path, trouble)


@pytest.mark.parametrize(
    "sql",
    [
        "DROP TABLE Cache",
        "DROP TABLE Settings",
        "DELETE FROM Settings",
        "ALTER TABLE Cache RENAME COLUMN value TO worth",
        "UPDATE Cache SET value = 'text'",
        "INSERT INTO Settings VALUES ('get', 'nonsense')",
        "INSERT INTO Settings VALUES ('disk_evil', 'x')",
    ],
)
async def test_foreign_tables_are_no_error(records: Records, path: Path, trouble: Trouble, sql: str) -> None:
    """Whatever somebody made of the tables: the book works, if need be begun anew."""
    await records.set(KEY, b"value", HOUR)
    await records.close()
    planted(path, sql)

    again = await reopened(path, trouble)
    for _ in range(2):  # what is wrong may show only with the first use
        await again.get(KEY)
        await again.count()
        await again.set(KEY, b"new", HOUR)
    assert await again.get(KEY) == b"new"
    assert trouble.reasons == []
    await again.close()


async def test_records_of_a_newer_version_are_kept_for_it(records: Records, path: Path, trouble: Trouble) -> None:
    """After a downgrade they stand aside under their schema's name; they count, and nothing of ours drops them."""
    await records.set(KEY, bytes(100_000), HOUR)
    await records.close()
    planted(path, "UPDATE Cache SET value = ? WHERE key = ?", b"99", encode_key(("schema",)))

    again = await reopened(path, trouble)
    assert await again.get(KEY) is None
    assert await again.set(KEY, b"new", HOUR)
    assert await again.volume() == bytes_in(path.parent)
    assert again.kept > 100_000
    while await again.drop_some():
        pass
    await again.close()

    kept = sqlite3.connect(path.parent / "records.schema-99" / "cache.db")
    assert kept.execute("SELECT length(value) FROM Cache WHERE key = ?", (encode_key(KEY),)).fetchall() == [(100_004,)]
    kept.close()
    assert trouble.reasons == []


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE Cache SET value = CAST(replace(value, 'sha256:1', 'sha256:2') AS BLOB) WHERE key LIKE '[\"tag%'",
        "UPDATE Cache SET key = replace(key, 'demo', 'gone')",
    ],
)
async def test_a_rotten_record_is_not_believed(records: Records, path: Path, trouble: Trouble, sql: str) -> None:
    """Neither another value nor another name than was written, although it looks like one."""
    other = ("tag", "docker.io", "library/gone", "1")
    await records.set(KEY, b"sha256:1", HOUR)
    await records.close()
    planted(path, sql)

    again = await reopened(path, trouble)

    assert await again.get(KEY) is None
    assert await again.get(other) is None
    assert trouble.reasons == []
    await again.close()


def filler(number: int) -> tuple[tuple[str, ...], bytes]:
    """A record that tells from any other one."""
    return ("filler", str(number)), f"value {number} ".encode() * 20


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("running", [False, True], ids=["stopped", "running"])
async def test_damage_costs_records_and_never_tells_a_wrong_one(
    records: Records, path: Path, trouble: Trouble, tmp_path: Path, running: bool, damage: Damage
) -> None:
    """However often and wherever it strikes: each record is what was written or is not there, and the book goes on."""
    for number in range(300):
        await records.set(*filler(number), HOUR)
    for seed in range(4):
        place = tmp_path / f"copy{seed}" / "records"
        shutil.copytree(path, place)  # as a crash leaves it, with its log
        if running:
            book = await reopened(place, trouble)
            await book.set(*filler(0), HOUR)
            damage(place, random.Random(seed))
        else:
            damage(place, random.Random(seed))
            book = await reopened(place, trouble)

        for number in range(300):
            key, value = filler(number)
            assert await book.get(key) in (value, None)
        for _ in range(3):  # as the upkeep's rounds do
            await book.volume()
            await book.mend()
            await book.set(("other",), b"x", HOUR)
        assert await book.set(KEY, b"new", HOUR)
        assert await book.get(KEY) == b"new"
        assert trouble.reasons == []
        await book.close()

        after = await reopened(place, trouble)
        assert await after.get(KEY) in (b"new", None) if running else await after.get(KEY) == b"new"
        await after.close()


async def test_what_was_deleted_while_the_book_was_away_stays_deleted(
    records: Records, path: Path, trouble: Trouble
) -> None:
    """A volume comes back with what was on it: permissions that ended meanwhile do not come back with it."""
    secret = ("link", "secret")
    await records.set(secret, b"may", HOUR)
    await records.set(KEY, b"value", HOUR)
    os.rename(path, path.parent / "away")  # noqa: PTH104 - tells ruff that a test may block
    await records.delete(secret)
    await records.mend()
    await records.delete(secret)
    assert await records.get(secret) is None

    shutil.rmtree(path)
    (path.parent / "away").rename(path)
    await records.mend()

    assert await records.get(secret) is None
    assert await records.get(KEY) == b"value"
    await records.close()
    again = await reopened(path, trouble)
    assert await again.get(secret) is None
    assert await again.get(KEY) == b"value"
    await again.close()


async def test_nothing_is_made_where_the_directory_is_not_ours(path: Path, trouble: Trouble) -> None:
    """A volume is gone: no book is begun in the empty place, and the old one is taken up when it is back."""
    here = True

    def check_home() -> None:
        if not here:
            raise OSError(errno.ENODEV, "gone")

    records = Records(path, trouble, check_home=check_home)
    await records.open()
    await records.set(KEY, b"value", HOUR)
    here = False
    os.rename(path, path.parent / "away")  # noqa: PTH104 - tells ruff that a test may block

    await records.mend()
    assert await records.get(KEY) is None
    assert not await records.set(("other",), b"x", HOUR)
    await records.mend()
    await records.delete(("other",))
    assert os.listdir(path.parent) == ["away"]  # noqa: PTH208 - as above
    assert trouble.reasons == ["records: lost"]

    (path.parent / "away").rename(path)
    here = True
    await records.mend()
    assert await records.get(KEY) == b"value"
    assert trouble.reasons == []
    await records.close()


async def test_damage_met_while_serving_is_moved_aside(records: Records, path: Path, trouble: Trouble) -> None:
    """Once, whoever meets it first, while others read and write."""
    for number in range(200):
        await records.set(("filler", str(number)), bytes(2000), HOUR)
    await records.set(KEY, b"value", HOUR)
    size = (path / "cache.db").stat().st_size
    with (path / "cache.db").open("r+b") as file:
        file.write(b"\xff" * size)
    (path / "cache.db-wal").unlink()

    await asyncio.gather(*(records.get(("filler", str(number))) for number in range(100)))
    await asyncio.gather(*(records.set(("more", str(number)), b"x", HOUR) for number in range(100)))
    await records.mend()

    assert await records.set(KEY, b"new", HOUR)
    assert await records.get(KEY) == b"new"
    assert [name.name for name in path.parent.iterdir() if "aside" in name.name] == ["records.aside"]


async def test_a_book_removed_under_us_is_begun_anew(records: Records, path: Path, trouble: Trouble) -> None:
    """An operator may delete it at any time."""
    await records.set(KEY, b"value", HOUR)
    shutil.rmtree(path)

    for _ in range(3):  # SQLite may keep on with a file that has no name any more until it looks
        await records.volume()
        await records.mend()

    assert await records.set(KEY, b"new", HOUR)
    again = await reopened(path, trouble)
    assert await again.get(KEY) == b"new"
    await again.close()


def test_a_read_error_under_the_database_is_no_signal(path: Path) -> None:
    """A truncated file under a memory map would end the process with SIGBUS; ours reads without a map."""
    script = f"""
import asyncio, os, time
from pathlib import Path
from mirror.metrics import Metrics
from mirror.store.records import Records
from mirror.store.trouble import Trouble

async def main():
    records = Records(Path({str(path)!r}), Trouble(Metrics(), time.monotonic))
    await records.open()
    for number in range(300):
        await records.set(("filler", str(number)), bytes(3000), 3600)
    await records.get(("filler", "1"))
    os.truncate({str(path / "cache.db")!r}, 4096)
    for number in range(300):
        await records.get(("filler", str(number)))
    await records.mend()
    assert await records.set(("key",), b"new", 3600)
    assert await records.get(("key",)) == b"new"
    await records.close()

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


# A disk or a lock in the way


@pytest.mark.parametrize(
    ("calls", "error", "reason"),
    [
        ("fsync fdatasync", errno.EIO, None),  # SQLite keeps it to itself: its log, which nobody syncs, grows on
        ("pwrite64", errno.EIO, "io_error"),
        ("pwrite64", errno.ENOSPC, "full"),
        ("pread64", errno.EIO, "io_error"),
    ],
)
def test_a_failing_call_under_the_database_costs_no_more_than_that(
    path: Path, calls: str, error: int, reason: str | None
) -> None:
    """The kernel refuses SQLite's own calls: nothing is raised, and the next process finds what was written before."""
    script = f"""
import asyncio, errno, logging, time
from pathlib import Path
from mirror.metrics import Metrics
from mirror.store.records import Records
from mirror.store.trouble import Trouble
from tests.refusing import refuse

async def main():
    trouble = Trouble(Metrics(), time.monotonic)
    records = Records(Path({str(path)!r}), trouble)
    await records.open()
    for number in range(1200):
        await records.set(("before", str(number)), bytes(3000), 3600)
    refuse({calls.split()!r}, {error})
    for number in range(300):
        await records.set(("during", str(number)), bytes(3000), 3600)
        await records.get(("before", str(number * 4)))
    await records.mend()
    await records.volume()
    assert trouble.met_by("records") == {reason!r}, trouble.reasons
    await records.close()

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    if done.returncode == UNABLE:
        pytest.skip("this kernel does not let a process refuse itself calls")
    assert done.returncode == 0, done.stderr

    with sqlite3.connect(path / "cache.db") as database:
        (found,) = database.execute("SELECT count(*) FROM Cache WHERE key LIKE '%before%'").fetchone()
    database.close()
    assert found == 1200
    assert not (path.parent / "records.aside").exists()


class Noted(Trouble):
    """Counts how often it is told of a failure."""

    def __init__(self) -> None:
        super().__init__(Metrics(), time.monotonic)
        self.notes = 0

    def note(self, part: str, error: BaseException) -> None:
        self.notes += 1
        super().note(part, error)


async def test_a_locked_database_keeps_nobody_waiting_in_turn(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call meets the lock; those queued behind it, and those who come soon after, do without."""
    monkeypatch.setattr(database, "_LOCK_SECONDS", 0.05)
    monkeypatch.setattr(module, "_REST_SECONDS", 0.5)
    trouble = Noted()
    records = await reopened(path, trouble)
    lock = sqlite3.connect(path / "cache.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")

    written = await asyncio.gather(*(records.set((str(number),), b"x", HOUR) for number in range(50)))
    assert not any(written)
    assert await records.get(KEY) is None
    assert trouble.notes == 1
    assert trouble.reasons == ["records: locked"]

    lock.execute("ROLLBACK")
    lock.close()
    for _ in range(100):
        if await records.set(KEY, b"x", HOUR):
            break
        await asyncio.sleep(0.02)
    assert trouble.reasons == []
    await records.close()


async def test_a_lock_at_the_start_does_not_cost_the_records(
    records: Records, path: Path, trouble: Trouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are left where they are, the mirror starts without them and takes them up when it can."""
    monkeypatch.setattr(database, "_LOCK_SECONDS", 0.05)
    await records.set(KEY, b"value", HOUR)
    await records.close()
    with sqlite3.connect(path / "cache.db", isolation_level=None) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        again = await reopened(path, trouble)

        assert await again.get(KEY) is None
        assert not await again.set(("other",), b"x", HOUR)
        assert trouble.reasons == ["records: locked"]
        connection.execute("ROLLBACK")
    connection.close()

    await again.mend()

    assert await again.get(KEY) == b"value"
    assert trouble.reasons == []
    assert not (path.parent / "records.aside").exists()
    await again.close()


async def test_a_call_that_hangs_keeps_nobody_waiting_for_ever(
    path: Path, trouble: Trouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client waits so long, the next one not at all; when there are answers again the book is used again."""
    monkeypatch.setattr(database, "_LOCK_SECONDS", 10.0)  # as a disk would hang, without an end in sight
    monkeypatch.setattr(module, "_ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(module, "_REST_SECONDS", 0.5)
    records = await reopened(path, trouble)
    lock = sqlite3.connect(path / "cache.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")

    assert not await records.set(KEY, b"late", HOUR)
    assert trouble.reasons == ["records: slow"]
    assert await asyncio.gather(*(records.set((str(number),), b"x", HOUR) for number in range(50))) == [False] * 50
    assert await records.get(KEY) is None

    lock.execute("ROLLBACK")
    lock.close()
    for _ in range(200):
        if await records.set(("other",), b"x", HOUR):
            break
        await asyncio.sleep(0.02)
    assert await records.get(KEY) == b"late"
    assert trouble.reasons == []
    await records.close()


async def test_a_place_that_is_no_directory_is_no_error(path: Path, trouble: Trouble) -> None:
    """The mirror serves without records, says so, and takes them up when the place is right."""
    obstruct(path)
    records = await reopened(path, trouble)
    assert await records.get(KEY) is None
    assert not await records.set(KEY, b"x", HOUR)
    assert trouble.met_by("records")
    await records.mend()

    os.unlink(path)  # noqa: PTH108 - tells ruff that a test may block
    await records.mend()

    assert await records.set(KEY, b"x", HOUR)
    assert trouble.reasons == []
    await records.close()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB of its own."""
    with volume(tmp_path / "volume", "3m") as top:
        yield top


async def test_a_full_disk_costs_writes_alone(small: Path, trouble: Trouble) -> None:
    """What is written is still read; a restart does not move it aside; room brings the writing back."""
    records = await reopened(small / "records", trouble)
    await records.set(KEY, b"value", HOUR)
    fill(small / "filler")

    written = [await records.set((str(number),), bytes(5000), HOUR) for number in range(40)]
    assert not all(written)
    assert trouble.reasons == ["records: full"]
    assert await records.get(KEY) == b"value"
    await records.close()
    again = await reopened(small / "records", trouble)
    assert not (small / "records.aside").exists()
    assert trouble.reasons in (["records: full"], [])

    (small / "filler").unlink()
    await again.mend()
    assert await again.get(KEY) == b"value"
    assert await again.set(("other",), bytes(5000), HOUR)
    assert trouble.reasons == []
    await again.close()


async def test_a_read_only_volume_costs_writes_alone(small: Path, trouble: Trouble) -> None:
    """A book that cannot be written is neither moved aside nor an error."""
    records = await reopened(small / "records", trouble)
    await records.set(KEY, b"value", HOUR)
    await records.close()
    remount(small, "ro")

    again = await reopened(small / "records", trouble)
    await again.get(KEY)
    assert not await again.set(("other",), b"x", HOUR)
    assert trouble.met_by("records")

    remount(small, "rw")
    await again.mend()
    assert await again.get(KEY) == b"value"
    assert await again.set(("other",), b"x", HOUR)
    assert trouble.reasons == []
    await again.close()


# Closing


async def test_calls_under_way_end_when_the_book_is_closed(records: Records, path: Path, trouble: Trouble) -> None:
    """What was given before the close is written, what comes later is refused quietly; nobody waits for ever."""
    before = [asyncio.create_task(records.set((str(number),), b"x", HOUR)) for number in range(200)]
    reads = [asyncio.create_task(records.get((str(number),))) for number in range(200)]
    await asyncio.sleep(0)
    closing = asyncio.create_task(records.close())
    await asyncio.sleep(0)
    after = [asyncio.create_task(records.set(("late", str(number)), b"x", HOUR)) for number in range(200)]

    await closing
    assert all(await asyncio.gather(*before))
    assert not any(await asyncio.gather(*after))
    await asyncio.gather(*reads)
    await records.close()
    await records.mend()
    assert await records.get(KEY) is None
    assert trouble.reasons == []

    again = await reopened(path, trouble)
    assert await again.get(("199",)) == b"x"
    await again.close()


async def test_a_clean_close_leaves_the_database_alone(records: Records, path: Path) -> None:
    """Its log is written into it: nothing to recover at the next start."""
    await records.set(KEY, b"value", HOUR)

    await records.close()

    assert names(path) == ["cache.db"]


async def test_a_caller_that_leaves_loses_no_record(records: Records) -> None:
    """What its request has learnt is written all the same."""
    writes = [asyncio.create_task(records.set((str(number),), b"x", HOUR)) for number in range(20)]
    await asyncio.sleep(0)
    for write in writes:
        write.cancel()
    await asyncio.gather(*writes, return_exceptions=True)
    await records.set(KEY, b"after them", HOUR)

    assert all([await records.get((str(number),)) == b"x" for number in range(20)])


async def test_closing_before_the_opening_ended_leaves_nothing_open(path: Path, trouble: Trouble) -> None:
    """A start that is cut short may stop the book while it is being opened."""
    records = Records(path, trouble)
    opening = asyncio.create_task(records.open())
    await asyncio.sleep(0)

    await records.close()
    await opening

    assert names(path) == ["cache.db"]
    assert await records.get(KEY) is None


# Size


async def test_those_nearest_their_expiry_go_first(records: Records) -> None:
    """A few at a time, in the order of their expiry, also when all of them expire within a minute."""
    for number in range(100):
        await records.set((str(number),), b"x", HOUR + number / 10)

    dropped = await records.drop_some()

    held = [number for number in range(100) if await records.get((str(number),)) is not None]
    assert held == list(range(dropped, 100))
    assert 0 < dropped < 10


async def test_the_database_shrinks_with_its_records(records: Records) -> None:
    """Room that records gave back is on the disk again."""
    for number in range(300):
        await records.set((str(number),), bytes(20_000), HOUR + number)
    before = await records.volume()

    while await records.drop_some():
        pass

    assert await records.volume() < before / 10
    assert await records.count() == 1  # the schema


async def test_what_was_moved_aside_counts_and_goes_first(records: Records, path: Path, trouble: Trouble) -> None:
    """It is of use to nobody but a curious operator."""
    for number in range(100):
        await records.set((str(number),), bytes(20_000), HOUR)
    await records.close()
    planted(path, "UPDATE Cache SET value = '99' WHERE key = ?", encode_key(("schema",)))
    again = await reopened(path, trouble)
    await again.set(KEY, b"value", HOUR)
    assert await again.volume() > 2_000_000

    assert await again.drop_some() == 1

    assert await again.volume() < 1_000_000
    assert await again.get(KEY) == b"value"
    await again.close()


async def test_a_deletion_that_the_disk_does_not_hear_of_counts_all_the_same(small: Path, trouble: Trouble) -> None:
    """From the moment it is asked for, and in the next process: the whole book goes before what was deleted stays."""
    path = small / "records"
    records = await reopened(path, trouble)
    await records.set(("link", "secret"), b"may", 1000)
    fill(small / "somebody else's")

    await records.delete(("link", "secret"))

    assert await records.get(("link", "secret")) is None
    await records.close()
    again = await reopened(path, trouble)
    assert await again.get(("link", "secret")) is None
    await again.close()


async def test_what_was_deleted_stays_deleted_after_a_kill(path: Path, trouble: Trouble, tmp_path: Path) -> None:
    """Also where the database was locked: the next process finds a mark, and asks for everything again."""
    secret = ("link", "secret")
    records = await reopened(path, trouble)
    await records.set(secret, b"may", HOUR)
    lock = sqlite3.connect(path / "cache.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    await records.delete(secret)
    shutil.copytree(path.parent, tmp_path / "killed")
    lock.execute("ROLLBACK")
    lock.close()

    after = await reopened(tmp_path / "killed" / path.name, trouble)
    assert await after.get(secret) is None
    assert await after.set(KEY, b"value", HOUR)
    await after.close()
    again = await reopened(tmp_path / "killed" / path.name, trouble)
    assert await again.get(KEY) == b"value", "one mark costs the names once"
    await again.close()
    await records.close()
    survivor = await reopened(path, trouble)
    assert await survivor.get(secret) is None
    assert await survivor.count() == 1, "and none where it was done in the end"
    await survivor.close()


async def test_a_client_that_leaves_takes_no_mark_with_it(path: Path, trouble: Trouble) -> None:
    """Others were refused meanwhile, and rely on the mark that it was the first to need."""
    records, busy = await reopened(path, trouble), threading.Event()
    lock = sqlite3.connect(path / "cache.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    records._reader.submit(busy.wait)
    leaving = asyncio.create_task(records.delete(KEY))
    await until(lambda: trouble.reasons == ["records: locked"])
    await records.delete(("other",))

    leaving.cancel()
    await asyncio.wait([leaving])
    busy.set()
    await records.volume()

    assert names(path.parent) == ["records", "records.outdated"]
    lock.execute("ROLLBACK")
    lock.close()
    await records.close()


async def test_closing_waits_once_for_a_disk_that_hangs(
    path: Path, trouble: Trouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not for each deletion that it has not heard of."""
    monkeypatch.setattr(module, "_CLOSE_SECONDS", 0.5)
    records, busy = await reopened(path, trouble), threading.Event()
    for pool in (records._reader, records._writer):
        pool.submit(busy.wait)
    monkeypatch.setattr(module, "_ANSWER_SECONDS", 0.01)
    await asyncio.gather(*(records.delete((str(number),)) for number in range(100)))

    async with asyncio.timeout(10):
        await records.close()

    busy.set()


async def test_a_deletion_is_synced(path: Path, trouble: Trouble) -> None:
    """It is in the log on the disk when `delete` returns; other changes may be lost with the power."""
    records, said = await reopened(path, trouble), list[str]()
    await records.set(KEY, b"value", HOUR)
    writer, cache = records._writer, records._cache
    writer.submit(lambda: cache._con.set_trace_callback(said.append)).result()

    await records.delete(KEY)
    await records.set(KEY, b"value", HOUR)

    settings = [number for number, text in enumerate(said) if "synchronous" in text]
    assert [said[number] for number in settings] == ["PRAGMA synchronous = FULL", "PRAGMA synchronous = NORMAL"]
    deletions = [number for number, text in enumerate(said) if text.startswith(("DELETE", "COMMIT"))][:2]
    assert settings[0] < deletions[0] < deletions[1] < settings[1]
    await records.close()


async def test_a_deletion_is_done_once_the_lock_is_gone(path: Path, trouble: Trouble) -> None:
    """`mend` tells the database what it could not hear."""
    records = await reopened(path, trouble)
    await records.set(("tag", "1"), b"was", 1000)
    lock = sqlite3.connect(path / "cache.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    await records.delete(("tag", "1"))
    assert await records.get(("tag", "1")) is None
    lock.execute("ROLLBACK")
    lock.close()

    await records.close()

    again = await reopened(path, trouble)
    assert await again.get(("tag", "1")) is None
    assert await again.count() == 1, "the schema's alone"
    await again.close()

"""The scrub: what it finds and drops, what it leaves alone, how slowly it goes and where it goes on."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from mirror.metrics import Metrics
from mirror.oci.digest import Digest
from mirror.oci.errors import StorageError
from mirror.store import scrub as module
from mirror.store.blobs import BlobStore
from mirror.store.scrub import Pace, Progress, Scrub
from mirror.store.trouble import Trouble
from tests.books import Book
from tests.clock import Clock
from tests.faulty import FaultyFiles
from tests.storing import bytes_in, content, path_of, put, read, until

DAY = 86400.0
SIZE = 1000
FAST = 1 << 50
"""Bytes a second: no test waits for the pace."""


class House:
    """A blob store with blobs in it, and all that a scrub needs."""

    def __init__(self, root: Path) -> None:
        self.disk = FaultyFiles()
        self.clock = Clock()
        self.metrics = Metrics()
        self.records = Book()
        self.trouble = Trouble(self.metrics, time.monotonic)
        self.blobs = BlobStore(root, self.disk, self.clock)

    def scrub(self, rate: int = FAST) -> Scrub:
        """As a new process makes one."""
        return Scrub(rate, self.blobs, self.records, self.trouble, self.metrics, clock=self.clock)

    async def fill(self, count: int, size: int = SIZE) -> list[Digest]:
        """Puts blobs into the store; returns their digests in order."""
        return sorted([await put(self.blobs, content(number, size)) for number in range(count)])

    def path(self, digest: Digest) -> Path:
        return path_of(self.blobs.root, digest)

    def flip(self, digest: Digest, at: int = 5) -> None:
        """Changes a bit of a blob's file, and nothing else of it."""
        with self.path(digest).open("r+b") as file:
            status = os.fstat(file.fileno())
            file.seek(at)
            byte = file.read(1)[0] ^ 1
            file.seek(at)
            file.write(bytes([byte]))
            file.flush()
            os.utime(file.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))

    def held(self, digests: list[Digest]) -> list[bool]:
        return [self.path(digest).exists() for digest in digests]

    def count(self, name: str) -> float:
        return self.metrics.registry.get_sample_value(f"mirror_scrub_{name}_total") or 0.0

    def read_paths(self) -> list[str]:
        """The names of the blobs that were read since the log was last cleared, in order."""
        return list(dict.fromkeys(path.name for method, path in self.disk.log if method == "read" and path))

    async def heal(self) -> None:
        """What a round of upkeep does to trouble that is over, again and again."""
        while True:
            self.trouble.clear("blobs")
            await asyncio.sleep(0.001)

    async def close(self) -> None:
        self.disk.clear()
        await self.blobs.close()


@pytest.fixture
async def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    monkeypatch.setattr(module, "_TROUBLE_SECONDS", 0.001)
    house = House(tmp_path / "data")
    await house.blobs.open()
    yield house
    await house.close()


@pytest.fixture
async def healing(house: House) -> AsyncIterator[None]:
    """Trouble with the disk is soon over."""
    task = asyncio.create_task(house.heal())
    yield
    task.cancel()
    await asyncio.wait([task])


async def broken_off(house: House, scrub: Scrub, at: Digest) -> None:
    """Runs the scrub until it reads this blob, and cancels it there."""
    trap = house.disk.hold("read", path=at.hex)
    task = asyncio.create_task(scrub.run())
    await trap.met()
    task.cancel()
    await asyncio.wait([task], timeout=5)
    assert task.cancelled()
    house.disk.clear()


# What is found


@pytest.mark.parametrize("at", [0, 500, SIZE - 1])
async def test_a_flipped_bit_is_found_and_the_blob_dropped(house: House, at: int) -> None:
    """Wherever it stands; counted, and off the books. The other blobs stay."""
    digests = await house.fill(20)
    house.flip(digests[7], at)

    await house.scrub().once()

    assert house.held(digests) == [number != 7 for number in range(20)]
    assert (house.count("corrupt"), house.count("bytes")) == (1, 20 * SIZE)
    assert house.blobs.net == bytes_in(house.blobs.root / "blobs") == 19 * SIZE


@pytest.mark.parametrize("size", [0, SIZE - 1, SIZE + 1])
async def test_a_file_of_another_length_has_rotted_too(house: House, size: int) -> None:
    """Shorter, longer or empty: it is not what its name says."""
    digests = await house.fill(3)
    os.truncate(house.path(digests[1]), size)

    await house.scrub().once()

    assert house.held(digests) == [True, False, True]
    assert house.count("corrupt") == 1


async def test_a_large_blob_is_hashed_in_pieces(house: House) -> None:
    """Nobody waits behind more than a piece of it; sha512 is as good as sha256."""
    large = content(1, 5_000_001)
    digest = Digest.of(large, "sha512")
    spool = await house.blobs.create_spool(digest, "registry.example")
    await house.blobs.append(spool, [large])
    await house.blobs.commit(spool)
    spool.file.release()
    house.disk.log.clear()

    await house.scrub().once()

    assert [method for method, _ in house.disk.log].count("read") == 6
    assert (house.count("corrupt"), house.count("bytes")) == (0, len(large))


async def test_an_intact_blob_is_as_it_was(house: House) -> None:
    """Being checked is no use: neither its time nor what is noted of it changes, and no file stays open."""
    digests = await house.fill(3)
    before = [house.path(digest).stat().st_mtime_ns for digest in digests]

    await house.scrub().once()

    assert [house.path(digest).stat().st_mtime_ns for digest in digests] == before
    assert house.blobs.unflushed == 0
    await until(lambda: not house.disk.open_paths)


async def test_foreign_files_are_left_alone(house: House) -> None:
    """Whatever lies among the blobs without the name of one is not ours to judge."""
    (digest,) = await house.fill(1)
    stranger = house.path(digest).with_name("notes.txt")
    stranger.write_text("keep")

    await house.scrub().once()

    assert stranger.read_text() == "keep"
    assert house.count("bytes") == SIZE


# What changes meanwhile


async def test_a_blob_replaced_meanwhile_is_not_dropped(house: House) -> None:
    """What was hashed is the old file; the new one has right bytes, and its name."""
    (digest,) = await house.fill(1)
    house.flip(digest)
    trap = house.disk.hold("read", path=digest.hex)
    task = asyncio.create_task(house.scrub().once())
    await trap.met()

    await put(house.blobs, content(0))
    trap.release()
    await task

    assert await read(house.blobs, digest) == content(0)
    assert house.count("corrupt") == 0
    assert house.blobs.net == SIZE


async def test_a_blob_evicted_meanwhile_is_not_counted_twice(house: House) -> None:
    """Neither as rot nor off the books."""
    (digest,) = await house.fill(1)
    house.flip(digest)
    trap = house.disk.hold("read", path=digest.hex)
    task = asyncio.create_task(house.scrub().once())
    await trap.met()

    await house.blobs.remove(digest)
    trap.release()
    await task

    assert (house.count("corrupt"), house.blobs.net) == (0, 0)


async def test_a_blob_evicted_before_its_turn_is_passed_over(house: House) -> None:
    """A pass reads a directory's names before it comes to the files."""
    digests = await house.fill(40)
    doomed = next(b for a, b in itertools.pairwise(digests) if a.hex[:2] == b.hex[:2])
    trap = house.disk.hold("scan", path=doomed.hex[:2])
    task = asyncio.create_task(house.scrub().once())
    await trap.met()
    reading = house.disk.hold("read", path=digests[digests.index(doomed) - 1].hex)
    trap.release()
    await reading.met()

    await house.blobs.remove(doomed)
    reading.release()
    await task

    assert house.count("bytes") == 39 * SIZE


async def test_who_is_reading_a_rotten_blob_reads_on(house: House) -> None:
    """Its name is gone, its file is not closed under anybody."""
    (digest,) = await house.fill(1)
    house.flip(digest)
    file = await house.blobs.open_blob(digest)
    assert file is not None

    await house.scrub().once()

    assert len(await house.blobs.read(file, 2 * SIZE, 0)) == SIZE
    file.release()
    assert await house.blobs.open_blob(digest) is None


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_happens_meanwhile_right_blobs_stay_and_the_count_is_exact(house: House, seed: int) -> None:
    """Commits, evictions and rot in any order under a scrub that goes round and round: in the end everything that is
    held is right, nothing is missing that nobody took, and the books agree with the disk.
    """
    chance, numbers = random.Random(seed), range(12)
    expected: dict[int, str] = {}
    digests = {number: Digest.of(content(number)) for number in numbers}

    async def rounds() -> None:
        while True:
            house.records.rows.clear()
            await house.scrub().once()

    scrubbing = asyncio.create_task(rounds())
    for _ in range(300):
        number, event = chance.choice(numbers), chance.choice(("put", "put", "evict", "flip"))
        if event == "put":
            await put(house.blobs, content(number))
            expected[number] = "right"
        elif event == "evict":
            await house.blobs.remove(digests[number])
            expected.pop(number, None)
        elif expected.get(number) == "right":
            house.flip(digests[number])
            expected[number] = "rotten"
    scrubbing.cancel()
    await asyncio.wait([scrubbing])
    house.records.rows.clear()
    await house.scrub().once()

    right = {number for number, state in expected.items() if state == "right"}
    for number in numbers:
        assert await read(house.blobs, digests[number]) == (content(number) if number in right else None)
    assert house.blobs.net == bytes_in(house.blobs.root / "blobs") == len(right) * SIZE


# A disk in trouble


@pytest.mark.usefixtures("healing")
async def test_a_read_that_fails_once_costs_no_blob(house: House) -> None:
    """The disk hiccups: the blob is read again when it is well."""
    digests = await house.fill(3)
    house.disk.fail(errno.EIO, "read", path=digests[1].hex, times=1)

    await house.scrub().once()

    assert house.held(digests) == [True] * 3
    assert (house.count("corrupt"), house.count("bytes")) == (0, 3 * SIZE)


@pytest.mark.usefixtures("healing")
async def test_a_blob_that_cannot_be_read_is_dropped(house: House) -> None:
    """Twice, with a working disk between: it would be served to nobody. The others are checked all the same."""
    digests = await house.fill(5)
    house.disk.fail(errno.EIO, "read", path=digests[1].hex)

    await house.scrub().once()

    assert house.held(digests) == [True, False, True, True, True]
    assert house.count("corrupt") == 1
    assert house.blobs.net == 4 * SIZE


@pytest.mark.usefixtures("healing")
@pytest.mark.parametrize(
    ("method", "number"), [("open", errno.EACCES), ("size", errno.EIO), ("read", errno.ENOMEM), ("unlink", errno.EROFS)]
)
async def test_a_failure_that_says_nothing_of_the_bytes_is_noted_and_passed_by(
    house: House, method: str, number: int
) -> None:
    """A blob that we may not open is not rotten, one that cannot be removed stays; the pass goes on."""
    digests = await house.fill(5)
    house.flip(digests[1])
    house.flip(digests[3])
    house.disk.fail(number, method, path=digests[1].hex)

    await house.scrub().once()

    assert house.held(digests) == [True, True, True, False, True]
    assert house.count("corrupt") == 1


@pytest.mark.usefixtures("healing")
async def test_a_directory_that_cannot_be_read_does_not_end_the_pass(house: House) -> None:
    """Its blobs have their turn in the next one."""
    digests = await house.fill(10)
    house.disk.fail(errno.EIO, "scan", path=f"sha256/{digests[4].hex[:2]}")

    await house.scrub().once()

    assert house.read_paths()[-1] == digests[-1].hex
    assert digests[4].hex not in house.read_paths()


async def test_nothing_is_read_while_the_disk_is_in_trouble(house: House) -> None:
    """What is wrong with it is for others to find out; the scrub waits, and then goes on."""
    await house.fill(3)
    error = StorageError("planted")
    error.__cause__ = OSError(errno.EIO, "planted")
    house.trouble.note("blobs", error)
    await until(lambda: not house.disk.open_paths)  # the last close runs in a thread
    before = house.disk.calls.copy()
    task = asyncio.create_task(house.scrub().once())
    await asyncio.sleep(0.05)
    assert house.disk.calls == before

    house.trouble.clear("blobs")
    await task

    assert house.count("bytes") == 3 * SIZE


async def test_a_full_disk_is_read(house: House) -> None:
    """It may stay full for long, and what has rotted on it takes room."""
    digests = await house.fill(3)
    house.flip(digests[1])
    error = StorageError("planted")
    error.__cause__ = OSError(errno.ENOSPC, "planted")
    house.trouble.note("blobs", error)

    await house.scrub().once()

    assert house.held(digests) == [True, False, True]


# Where it goes on


async def test_a_pass_goes_on_where_a_stop_broke_it_off(house: House) -> None:
    """What was checked is not checked again, nothing is left out, and rot found before and after is counted."""
    digests = await house.fill(30)
    house.flip(digests[3])
    house.flip(digests[25])
    house.disk.log.clear()
    first = house.scrub()
    await broken_off(house, first, digests[12])
    await first.finish()
    assert house.read_paths() == [digest.hex for digest in digests[:13]]
    house.disk.log.clear()

    await house.scrub().once()

    assert house.read_paths() == [digest.hex for digest in digests[12:]]
    assert house.held(digests) == [number not in (3, 25) for number in range(30)]
    assert house.count("corrupt") == 2


async def test_a_crash_costs_some_work_and_leaves_nothing_out(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the pass is, is written now and then: what came after that is done again."""
    digests = await house.fill(30)
    house.disk.log.clear()
    await broken_off(house, house.scrub(), digests[12])
    assert house.records.rows  # of the first blob
    house.disk.log.clear()

    await house.scrub().once()

    assert house.read_paths() == [digest.hex for digest in digests[1:]]

    monkeypatch.setattr(module, "_SAVE_SECONDS", 0.0)
    house.clock.forward(DAY)
    await broken_off(house, house.scrub(), digests[12])
    house.disk.log.clear()
    await house.scrub().once()

    assert house.read_paths() == [digest.hex for digest in digests[12:]]


@pytest.mark.parametrize("value", [b"", b"garbage", b"\x96\x01\xa4gone\x00\x00\x00\xc2"])
async def test_a_record_that_makes_no_sense_begins_a_pass_anew(house: House, value: bytes) -> None:
    """Nothing is left unchecked because of it."""
    await house.fill(5)
    house.records.rows[("scrub",)] = value

    await house.scrub().once()

    assert house.count("bytes") == 5 * SIZE


async def test_a_pass_begins_a_day_after_the_last_one_at_most(house: House) -> None:
    """A small cache is not read over and over; also not by one process after the other."""
    await house.fill(2)
    await house.scrub().once()
    house.clock.forward(DAY - 60)
    await house.scrub().once()
    assert house.count("bytes") == 2 * SIZE

    house.clock.forward(60)
    await house.scrub().once()

    assert house.count("bytes") == 4 * SIZE


async def test_a_clock_set_back_puts_no_pass_off(house: House) -> None:
    """Nobody knows how long ago the last one was: better one too many."""
    await house.fill(2)
    await house.scrub().once()
    house.clock.forward(-300 * DAY)

    await house.scrub().once()

    assert house.count("bytes") == 4 * SIZE


async def test_a_rate_of_0_is_no_scrub(house: House) -> None:
    """Nothing is read, nothing is written."""
    (digest,) = await house.fill(1)
    house.flip(digest)
    scrub = house.scrub(0)

    await scrub.run()
    await scrub.finish()

    assert (house.held([digest]), house.records.rows) == ([True], {})


async def test_a_disk_that_hangs_does_not_keep_the_scrub_from_ending(house: House) -> None:
    """A stop waits for no read: it ends by itself, on a file that stays open until then."""
    (digest,) = await house.fill(1)
    scrub = house.scrub()
    trap = house.disk.hold("read", path=digest.hex)
    task = asyncio.create_task(scrub.run())
    await trap.met()

    async with asyncio.timeout(5):
        task.cancel()
        await asyncio.wait([task])
        await scrub.finish()

    assert house.path(digest) in house.disk.open_paths
    trap.release()


async def test_an_unexpected_error_does_not_end_the_scrub(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is taken up again a little later."""
    await house.fill(2)
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.0)
    survey, calls = house.blobs.survey, []

    async def broken(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 1:
            raise ZeroDivisionError("unexpected")
        return await survey(*arguments)  # type: ignore[arg-type]  # as they came

    house.blobs.survey = broken  # type: ignore[assignment]  # no disk does this
    task = asyncio.create_task(house.scrub().run())
    async with asyncio.timeout(5):
        while house.count("bytes") < 2 * SIZE:  # noqa: ASYNC110 - the event would be private
            await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.wait([task])


# After an unclean stop


async def test_what_an_unclean_stop_left_in_doubt_comes_first(house: House, tmp_path: Path) -> None:
    """It is verified before anything else, and then known to be right: the next use reads nothing twice."""
    old = await house.fill(5)
    await house.blobs.close()
    house.blobs = BlobStore(house.blobs.root, house.disk, house.clock)
    assert await house.blobs.open()
    young = [await put(house.blobs, content(number)) for number in (100, 101, 102)]
    house.flip(young[1])
    crashed, house.blobs = house.blobs, BlobStore(house.blobs.root, house.disk, house.clock)
    assert not await house.blobs.open()
    house.disk.log.clear()

    await house.scrub().once()

    assert house.read_paths()[:3] == [digest.hex for digest in young]
    assert house.held(young) == [True, False, True]
    assert house.held(old) == [True] * 5
    assert house.blobs.checks.suspects == ()
    assert house.count("corrupt") == 1
    await crashed.close()


async def test_a_blob_that_is_not_there_is_in_no_doubt(house: House) -> None:
    """It was evicted before the stop: else each round would look for it, and each start begin with a warning."""
    (house.blobs.root / "unsettled").write_text(f"\n{Digest.of(b'gone')}")
    await house.blobs.reopen()
    assert house.blobs.checks.is_suspect(Digest.of(b"gone"))

    await house.scrub().once()

    assert house.blobs.checks.suspects == ()


# The page cache


@pytest.mark.parametrize("warm", [False, True])
async def test_the_page_cache_is_left_as_it_was(house: House, monkeypatch: pytest.MonkeyPatch, warm: bool) -> None:
    """What was in memory stays there, what was not does not: warm blobs are not driven out by cold ones."""
    await house.fill(1)
    monkeypatch.setattr(house.disk, "resident", lambda fd, offset, count: warm)
    told = []
    monkeypatch.setattr(house.disk, "advise", lambda fd, advice, offset=0, count=0: told.append((advice, count)))

    await house.scrub().once()

    assert (os.POSIX_FADV_DONTNEED, SIZE) in told or warm
    assert not warm or [advice for advice, _ in told] == [os.POSIX_FADV_RANDOM]


# The pace


class Steps:
    """A monotonic clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def test_the_pace_is_never_above_the_rate() -> None:
    """Piece after piece, whatever their sizes: each begins when those before are paid for."""
    steps = Steps()
    pace = Pace(100.0, steps)
    begun, done = steps.now, 0
    for count in (100, 50, 1, 1000, 0, 300) * 5:
        steps.now += pace.wait()
        assert done <= 100.0 * (steps.now - begun) + 1e-6
        pace.spend(count)
        done += count


def test_what_a_piece_takes_is_part_of_its_time() -> None:
    """The rate is reached where the disk can do it."""
    steps = Steps()
    pace = Pace(100.0, steps)
    pace.wait()
    pace.spend(100)

    steps.now += 0.75

    assert pace.wait() == pytest.approx(0.25)


def test_a_pause_is_not_made_up_for() -> None:
    """An hour of trouble, or of a suspended machine, is not followed by an hour's work at once."""
    steps = Steps()
    pace = Pace(100.0, steps)
    pace.wait()
    pace.spend(100)
    steps.now += 3600

    assert pace.wait() == 0.0
    pace.spend(100)
    assert pace.wait() == pytest.approx(1.0)


async def test_small_files_cost_more_than_their_bytes(house: House) -> None:
    """A disk finds its way to each of them: a million of them are not read as fast as their bytes alone could be."""
    await house.fill(3, 10)
    began = time.monotonic()

    await house.scrub(640 << 10).once()

    assert time.monotonic() - began >= 0.2


def test_progress_is_recorded_compactly() -> None:
    """Its shape does not change by accident: the next version of the mirror reads it."""
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(Progress(1.5, "a", 2, 3, 4))) == [1.5, "a", 2, 3, 4, False]

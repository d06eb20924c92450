"""Workers share a store: nobody is promised what another one has, and none takes anything with it when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror.channel import Channel
from mirror.metrics import Metrics
from mirror.oci.digest import Digest
from mirror.oci.errors import StorageError
from mirror.store.keeper import Keeper
from mirror.store.remote_budget import RemoteBudget
from mirror.store.room import Reservation
from mirror.store.spools import Spool
from tests.lodging import HOSTS, PATIENT, House, Worker
from tests.storing import bytes_in, content, path_of, read, until

KIB = 1 << 10
MIB = 1 << 20
NOW = 3_000_000_000.0

Open = Callable[..., Awaitable[House]]


@pytest.fixture
async def open_house(tmp_path: Path) -> AsyncIterator[Open]:
    """Opens a house with two workers."""
    houses: list[House] = []

    async def open_(**storage: Any) -> House:
        now = iter(range(10**9))
        house = House(tmp_path / "data", clock=lambda: NOW + next(now), **storage)
        houses.append(house)
        await house.start()
        for slot in range(2):
            await house.move_in(slot)
        return house

    yield open_
    for house in houses:
        await house.stop()


def on_disk(house: House) -> int:
    return bytes_in(house.storage.path / "blobs", house.storage.path / "spool")


# Room


async def test_all_workers_share_one_budget(open_house: Open) -> None:
    """What one was promised another one does not get, until it is given back."""
    house = await open_house(max_size=100 * KIB)
    one, other = house.workers.values()
    house.budget.records = 0
    first = await one.reserve(50 * KIB)
    second = await other.reserve(40 * KIB)

    assert await one.lodger.room.reserve(11 * KIB) is None
    assert house.budget.reserved == 90 * KIB
    first.end()
    first.end()
    assert await other.lodger.room.extend(second, 50 * KIB)
    assert not await other.lodger.room.extend(second, 51 * KIB)
    second.end()
    await other.told()
    await one.told()
    assert house.budget.reserved == 0


async def test_what_a_worker_fetches_counts_for_all(open_house: Open) -> None:
    """Blobs that workers bring are in the keeper's books at once, and go for those that others bring."""
    house = await open_house(max_size=100 * KIB)
    house.budget.records = 0
    one, other = house.workers.values()
    old = [await one.put(content(number, 20 * KIB)) for number in range(4)]
    assert house.budget.committed == 80 * KIB

    new = await other.put(content(9, 40 * KIB))

    assert house.budget.committed == on_disk(house) <= 100 * KIB
    assert await read(one.lodger.blobs, new) == content(9, 40 * KIB)
    assert await read(other.lodger.blobs, old[0]) is None
    assert await read(other.lodger.blobs, old[3]) is not None


async def test_what_is_written_is_not_missing_twice(open_house: Open) -> None:
    """Bytes that a fill has on the disk are gone from the free space already, and so not kept free for it again."""
    house = await open_house(max_size=64 * MIB)
    worker = house.workers[0]
    room = await worker.reserve(20 * MIB)

    room.written = 10 * MIB
    await worker.told()

    assert [held.written for held in house.budget._reservations] == [10 * MIB]
    room.end()


async def test_silence_lets_a_fill_pass_through() -> None:
    """Nobody waits for a keeper that says nothing; room that it finds later goes back."""
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    budget = RemoteBudget(channel, silence=0.01)

    assert await budget.reserve(10) is None
    assert await budget.make_room(10, "emergency") == 0

    heard: list[tuple[str, Any]] = []
    late = Channel(theirs)

    def hear(name: str) -> None:
        late.on(name, lambda payload: heard.append((name, payload)))

    for name in ("room.reserve", "room.make", "room.end"):
        hear(name)
    await until(lambda: len(heard) == 3)
    assert heard == [("room.reserve", [1, 10]), ("room.end", 1), ("room.make", [10, "emergency"])]
    await late.close()
    assert await budget.reserve(10) is None
    await channel.close()


async def test_room_that_comes_too_late_goes_back(open_house: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever left while room was being made for it holds none."""
    house = await open_house()
    worker, gate, asked = house.workers[0], asyncio.Event(), asyncio.Event()
    reserve = house.budget.reserve

    async def slow(size: int) -> Any:
        asked.set()
        await gate.wait()
        return await reserve(size)

    monkeypatch.setattr(house.budget, "reserve", slow)
    asking = asyncio.create_task(worker.lodger.room.reserve(10))
    await asked.wait()
    asking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asking
    await worker.told()
    gate.set()
    monkeypatch.undo()
    room = await worker.reserve(20)  # answered after the other one

    assert house.budget.reserved == 20
    room.end()


async def test_a_keeper_that_makes_room_is_not_silent(open_house: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eviction may take longer than the silence that a fill bears."""
    house = await open_house()
    worker = await house.move_in(1, silence=1.0)
    reserve = house.budget.reserve

    async def slow(size: int) -> Any:
        await asyncio.sleep(1.2)
        return await reserve(size)

    monkeypatch.setattr(house.budget, "reserve", slow)
    (await worker.reserve(10)).end()


async def test_a_dead_worker_gives_its_room_back(open_house: Open) -> None:
    """Its spools count instead, until the next one in its slot has looked; it can take them up."""
    house = await open_house(max_size=8 * MIB)
    house.budget.records = 0
    data = content(1, 2 * MIB)
    worker = house.workers[0]
    await worker.reserve(3 * MIB)
    (await worker.spool(data)).file.release()
    held = await house.workers[1].reserve(1 * MIB)

    await house.kill(0)
    await until(lambda: house.budget.reserved == 1 * MIB)
    assert house.budget.used == 3 * MIB == on_disk(house) + held.size

    again = await house.move_in(0)
    assert house.budget.used == 3 * MIB
    room = await again.reserve(2 * MIB)
    leftover = again.lodger.blobs.take_leftover(Digest.of(data), HOSTS[0])
    assert leftover is not None
    await again.commit(await again.lodger.blobs.resume_spool(Digest.of(data), leftover))
    room.end()
    held.end()
    await house.workers[1].told()
    await again.told()
    assert house.budget.used == house.budget.committed == on_disk(house) == 2 * MIB


async def test_a_death_while_room_is_made_leaves_no_promise(open_house: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody would give it back."""
    house = await open_house()
    gate, asked = asyncio.Event(), asyncio.Event()
    reserve = house.budget.reserve

    async def slow(size: int) -> Any:
        asked.set()
        await gate.wait()
        return await reserve(size)

    monkeypatch.setattr(house.budget, "reserve", slow)
    asking = asyncio.create_task(house.workers[0].lodger.room.reserve(10))
    await asked.wait()
    await house.kill(0)
    gate.set()

    assert await asking is None
    await until(lambda: not house.budget.reserved)


async def test_a_change_that_a_death_cut_short_is_counted(open_house: Open) -> None:
    """A blob that was in place and not in the books is found, before the room for it is given to others."""
    house = await open_house(max_size=8 * MIB)
    worker = house.workers[0]
    await worker.reserve(2 * MIB)
    spool = await worker.spool(content(1, 2 * MIB))
    blob = path_of(house.storage.path, spool.digest)
    blob.parent.mkdir(parents=True)
    spool.path.rename(blob)
    ledger = worker.lodger.blobs._part.ledger
    turn = ledger.turn((spool.digest.algorithm, spool.digest.hex[:2]))
    turn.__enter__()  # it never comes to its end
    before = bytes(ledger._numbers[ledger._ours :].cast("B"))
    turn.__exit__(None, None, None)
    ledger._numbers[ledger._ours :].cast("B")[:] = before

    await worker.channel.close()
    await until(lambda: house.budget.reserved == 0)

    spool.file.release()
    assert house.budget.committed == 2 * MIB


# Uses


async def test_what_a_worker_has_used_is_spared(open_house: Open) -> None:
    """Its uses reach whoever evicts, and are written as times of files by it alone."""
    house = await open_house(max_size=100 * KIB)
    house.budget.records = 0
    one, other = house.workers.values()
    first, second, third = [await one.put(content(number, 25 * KIB)) for number in range(3)]
    one.lodger._tell_uses()
    await one.told()
    await house.keeper.blobs.flush_uses()
    await house.budget.scan(100 * KIB)

    other.lodger.blobs.touch(first)
    other.lodger._tell_uses()
    await other.put(content(7, 50 * KIB))

    held = [path_of(house.storage.path, digest).exists() for digest in (first, second, third)]
    assert held == [True, False, True]
    assert other.lodger.blobs.unflushed == 1  # the blob that it has just put


async def test_many_uses_are_told_in_parts(open_house: Open) -> None:
    """However many there are, each comes with its moment, and none is kept."""
    house = await open_house()
    worker = house.workers[0]
    digests = [Digest.of(str(number).encode(), "sha512" if number % 2 else "sha256") for number in range(2500)]
    for digest in digests:
        worker.lodger.blobs.touch(digest)
    noted = dict(worker.lodger.blobs._uses.times)

    worker.lodger._tell_uses()
    await worker.told()

    assert house.keeper.blobs._uses.times == noted
    assert worker.lodger.blobs.unflushed == 0


# Spools


async def test_a_worker_writes_only_what_is_its_own(open_house: Open) -> None:
    """A spool from an upstream that another worker asks could be taken for a leftover by that one."""
    house = await open_house()
    with pytest.raises(StorageError, match="another process") as failed:
        await house.workers[0].lodger.blobs.create_spool(Digest.of(b""), HOSTS[1])
    assert failed.value.__cause__ is None  # no trouble of the disk


async def test_leftovers_are_found_by_their_owner(open_house: Open) -> None:
    """A worker that begins leaves alone what the other one is writing, and what that one will look for."""
    house = await open_house(max_size=20 * MIB)
    house.budget.records = 0
    data = [content(number, 2 * MIB) for number in range(2)]
    for worker, blob in zip(list(house.workers.values()), data, strict=True):
        await worker.reserve(2 * MIB)
        (await worker.spool(blob)).file.release()
    await house.kill(0)
    again = await house.move_in(0)

    assert list(again.lodger.blobs.leftovers) == [Digest.of(data[0])]
    assert len(house.left("spool")) == 2
    await until(lambda: house.budget.used == 4 * MIB)
    assert await house.budget.make_room(1, "budget") == 2 * MIB  # not the one that is being written
    assert house.left("spool")[0].startswith(f"sha256-{Digest.of(data[1]).hex}")
    assert house.budget.used == 2 * MIB


async def test_leftovers_count_before_any_worker_is_there(open_house: Open, tmp_path: Path) -> None:
    """The promise holds from the first fill on."""
    house = await open_house(max_size=20 * MIB)
    for worker in house.workers.values():
        (await worker.spool(content(worker.slot, 2 * MIB))).file.release()
    await house.kill(0)
    await house.kill(1)
    await house.keeper.close()

    after = House(tmp_path / "data", clock=house.clock, max_size=20 * MIB)
    await after.start()
    after.budget.records = 0
    assert after.budget.used == 4 * MIB
    for slot in range(2):
        await after.move_in(slot)
    assert after.budget.used == 4 * MIB
    await after.stop()


async def test_another_number_of_workers_finds_what_was_left(open_house: Open) -> None:
    """Spools go to whoever asks their upstream now: here one process alone."""
    house = await open_house(max_size=20 * MIB)
    for worker in house.workers.values():
        (await worker.spool(content(worker.slot, 2 * MIB))).file.release()
    await house.stop()
    house.workers.clear()

    alone = Keeper(house.storage, Metrics())
    await alone.open()
    assert set(alone.blobs.leftovers) == {Digest.of(content(slot, 2 * MIB)) for slot in range(2)}
    assert alone.budget.used - alone.budget.records == 4 * MIB
    await alone.close()


async def test_what_the_keeper_drops_nobody_misses(open_house: Open) -> None:
    """Who is being sent an evicted blob reads on; one that the scrub has dropped any worker fetches again."""
    house = await open_house()
    one, other = house.workers.values()
    evicted, rotten = await one.put(content(1)), await one.put(content(2))
    file = await other.lodger.blobs.open_blob(evicted)
    assert file is not None
    path_of(house.storage.path, rotten).write_bytes(b"rot")
    suspect = await house.keeper.blobs.checks.inspect(rotten)
    assert suspect is not None

    await house.keeper.blobs.remove(evicted)
    assert await house.keeper.blobs.checks.judge(rotten, suspect, intact=False)
    suspect.release()

    assert await other.lodger.blobs.read(file, file.size, 0) == content(1)
    file.release()
    for digest, number in ((evicted, 1), (rotten, 2)):
        assert await read(other.lodger.blobs, digest) is None
        assert await one.put(content(number)) == digest
        assert await read(other.lodger.blobs, digest) == content(number)


# Doubts


async def test_what_all_have_committed_is_in_doubt_after_a_crash_of_all(open_house: Open, tmp_path: Path) -> None:
    """Every worker verifies it before it serves it, and what one has verified the others believe."""
    house = await open_house()
    digests = [await worker.put(content(worker.slot)) for worker in house.workers.values()]
    shutil.copytree(tmp_path / "data", tmp_path / "after")
    path_of(tmp_path / "after", digests[1]).write_bytes(b"torn")

    after = House(tmp_path / "after", clock=house.clock)
    await after.start()
    one, other = [await after.move_in(slot) for slot in range(2)]
    assert set(one.lodger.blobs.checks.suspects) == set(other.lodger.blobs.checks.suspects) == set(digests)

    assert await read(one.lodger.blobs, digests[0]) == content(0)
    assert await read(one.lodger.blobs, digests[1]) is None
    await until(lambda: not other.lodger.blobs.checks.suspects and not after.keeper.blobs.checks.suspects)
    await after.stop()

    assert all((tmp_path / "after" / name).read_bytes() == b"" for name in ("unsettled", "unsettled.0", "unsettled.1"))


async def test_who_is_started_again_doubts_nothing(open_house: Open) -> None:
    """The machine stayed up: what a worker or its predecessor has committed is whole."""
    house = await open_house()
    digests = [await worker.put(content(worker.slot)) for worker in house.workers.values()]
    await house.kill(0)

    again = await house.move_in(0)

    assert again.lodger.blobs.checks.suspects == ()
    assert [await read(again.lodger.blobs, digest) is not None for digest in digests] == [True, True]


async def test_a_clean_stop_is_one_of_all(open_house: Open, tmp_path: Path) -> None:
    """The next start believes the books; after the death of one worker it does not."""
    house = await open_house()
    await house.workers[0].put(content(1))
    await house.workers[1].put(content(2))
    await house.stop()
    house.workers.clear()

    next_one = Keeper(house.storage, Metrics())
    await next_one.open()
    assert next_one.blobs.checks.suspects == ()
    await next_one.close()

    third = House(tmp_path / "data", clock=house.clock)
    await third.start()
    digest = await (await third.move_in(0)).put(content(3))
    await third.kill(0)
    await third.stop()
    last = Keeper(house.storage, Metrics())
    await last.open()
    assert last.blobs.checks.suspects == (digest,)
    await last.close()


async def test_books_are_believed_if_their_keeper_wrote_them_last(open_house: Open, tmp_path: Path) -> None:
    """Not those of a keeper that died, though its workers have all stopped in order after it."""
    house = await open_house()
    await house.workers[0].put(content(1, 10 * KIB))
    house.keeper.begin()  # it has chores
    await house.stop()
    house.workers.clear()
    clean = House(tmp_path / "data", clock=house.clock)
    await clean.keeper.open()
    assert clean.budget.used >= 10 * KIB
    worker = await clean.move_in(1)
    await worker.put(content(2, 20 * KIB))
    await clean.keeper.upkeep.round()
    shutil.copytree(tmp_path / "data", tmp_path / "killed")
    await worker.theirs.close()  # the keeper dies
    await worker.channel.closed.wait()
    await worker.stop()
    shutil.copy(tmp_path / "data" / "unsettled.1", tmp_path / "killed" / "unsettled.1")

    after = House(tmp_path / "killed", clock=house.clock)
    await after.keeper.open()
    assert len(after.keeper.blobs.checks.suspects) == 1
    assert not after.budget.committed  # nothing is believed before the count
    await after.stop()
    clean.workers.clear()
    await clean.stop()


# The disk


async def test_another_directory_is_taken_up_by_all(open_house: Open, tmp_path: Path) -> None:
    """Where a volume came back as another one, workers use it once the keeper does, and nothing else before."""
    house = await open_house()
    worker = house.workers[0]
    path = house.storage.path
    path.rename(tmp_path / "away")
    await worker.lodger.round()
    assert worker.lodger.trouble.met_by("blobs") == "lost"
    shutil.copytree(tmp_path / "away", path)
    await worker.lodger.round()
    assert worker.lodger.trouble.met_by("blobs") == "lost"  # nobody has looked at it yet

    await house.keeper.upkeep.round()
    await worker.told()
    await worker.lodger.round()

    assert worker.lodger.trouble.met_by("blobs") is None
    digest = await worker.put(content(5))
    assert path_of(path, digest).exists()


async def test_a_worker_makes_again_what_is_missing(open_house: Open) -> None:
    """Its trouble is its own; it looks for itself whether the disk works."""
    house = await open_house()
    worker = house.workers[0]
    shutil.rmtree(house.storage.path / "spool")
    with pytest.raises(StorageError) as failed:
        await worker.spool(content(1))
    worker.lodger.trouble.note("blobs", failed.value)
    worker.lodger._tell_trouble()
    await worker.told()
    assert house.keeper.reasons == ["worker 0: blobs: lost"]

    await worker.lodger.round()
    worker.lodger._tell_trouble()
    await worker.told()

    assert house.keeper.reasons == []
    await worker.put(content(1))


async def test_news_from_before_a_worker_began_are_no_news(open_house: Open) -> None:
    """What others settle or begin anew while it opens is in what it is told then."""
    house = await open_house()
    worker = Worker(house, 1)
    for name, payload in (("store.settled", str(Digest.of(b""))), ("records.mend", None), ("store.home", {})):
        await worker.theirs.call(name, payload, PATIENT)
    assert worker.lodger.records._cache is None
    await worker.stop()


async def test_without_a_keeper_nothing_begins(open_house: Open) -> None:
    """A worker whose supervisor is gone opens nothing."""
    house = await open_house()
    worker = Worker(house, 1)
    await worker.theirs.close()
    with pytest.raises(StorageError, match="nobody keeps the store"):
        await worker.lodger.open()
    await worker.stop()


# Everything at once


class Course:
    """Does whatever it is told, for as long as it makes sense, and can say what should be there then."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.fills: list[tuple[Worker, Spool, Reservation]] = []
        self.scans: list[asyncio.Task[None]] = []
        self.number = 0

    async def step(self, what: str, slot: int, size: int) -> None:
        """One step, of the worker in this slot where it is one for a worker."""
        worker = self.house.workers[slot]
        self.number += 1
        if what == "begin" and (room := await worker.lodger.room.reserve(size)) is not None:
            self.fills.append((worker, await worker.spool(content(self.number, size)), room))
        elif what == "put":
            await self.step("begin", slot, size)
            await self.end(len(self.fills) - 1, commit=True)
        elif what in ("commit", "discard"):
            await self.end(size % max(1, len(self.fills)), commit=what == "commit")
        elif what == "scan":
            self.scans.append(asyncio.create_task(self.house.budget.scan(size)))
        elif what == "evict":
            await self.house.budget.make_room(size, "budget")
        elif what == "kill":
            for _, spool, _ in [fill for fill in self.fills if fill[0] is worker]:
                spool.file.release()
            self.fills = [fill for fill in self.fills if fill[0] is not worker]
            await self.house.kill(slot)
            await self.house.move_in(slot)

    async def end(self, number: int, *, commit: bool) -> None:
        """Of one of the fills under way, if there is one."""
        if not 0 <= number < len(self.fills):
            return
        worker, spool, room = self.fills.pop(number)
        if commit:
            await worker.commit(spool)
        else:
            await worker.lodger.blobs.discard(spool)
            spool.file.release()
        room.end()

    async def come_to_rest(self) -> None:
        """Until all have heard of everything."""
        await asyncio.gather(*self.scans)
        for worker in self.house.workers.values():
            worker.lodger._tell_leftovers()
            await worker.told()
        promised = sum(room.size for _, _, room in self.fills)
        await until(lambda: self.house.budget.reserved == promised)


STEPS = st.tuples(
    st.sampled_from(["begin", "begin", "put", "put", "commit", "discard", "scan", "evict", "kill"]),
    st.integers(0, 1),
    st.integers(1, 3 * MIB),
)


@settings(max_examples=12)
@given(steps=st.lists(STEPS, min_size=5, max_size=20))
def test_the_books_are_what_is_on_the_disk(steps: list[tuple[str, int, int]]) -> None:
    """Whatever workers fetch, drop and leave behind, and whoever dies when: nothing counts twice or not at all."""

    async def run(path: Path) -> None:
        house = House(path, clock=lambda: NOW, max_size=16 * MIB)
        await house.start()
        for slot in range(2):
            await house.move_in(slot)
        course = Course(house)
        for step in steps:
            await course.step(*step)
            assert bytes_in(path / "blobs", path / "spool") <= 16 * MIB
        await course.come_to_rest()

        writing = sum(spool.written for _, spool, _ in course.fills)
        assert house.budget.committed == bytes_in(path / "blobs")
        assert house.budget.used - house.budget.reserved - house.budget.records == (
            bytes_in(path / "blobs", path / "spool") - writing
        )
        for _, spool, _ in course.fills:
            spool.file.release()
        await house.stop()

    with tempfile.TemporaryDirectory() as path:
        asyncio.run(run(Path(path) / "data"))

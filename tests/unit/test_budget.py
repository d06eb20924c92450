"""The budget: what counts, who gets room, who must go for it; and that the count is exact whatever happens at once."""

from __future__ import annotations

import asyncio
import errno
import functools
import random
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from mirror.config import Storage
from mirror.metrics import Metrics
from mirror.oci.digest import Digest
from mirror.oci.errors import StorageError
from mirror.store import budget as module
from mirror.store.blobs import BlobStore
from mirror.store.budget import Budget
from mirror.store.room import Reservation
from mirror.store.shelves import Directory
from mirror.store.trouble import Trouble
from mirror.store.victims import Oldest
from tests.faulty import FaultyFiles
from tests.storing import HOST, bytes_in, content, path_of, put, spool

KIB = 1 << 10
MIB = 1 << 20


class Disk(FaultyFiles):
    """Says what it is told to say of its free space."""

    free_bytes = 1 << 40
    total_bytes = 1 << 40

    def free(self, path: Path) -> tuple[int, int]:
        super().free(path)
        return self.free_bytes, self.total_bytes


class Shop:
    """A store with a budget, whose clock stands still until it is moved."""

    def __init__(self, path: Path, **storage: Any) -> None:
        self.disk = Disk()
        self.now = 3_000_000_000.0  # later than any file that a test makes
        self.metrics = Metrics()
        self.trouble = Trouble(self.metrics, time.monotonic)
        self.settings = Storage(**{"path": path, "max_size": 100 * KIB, "min_free": "0%", **storage})
        self.blobs = BlobStore(path, self.disk, lambda: self.now)
        self.budget = Budget(self.settings, self.blobs, self.trouble, self.metrics, clock=lambda: self.now)

    async def put(self, *sizes: int, seed: int = 0) -> list[Digest]:
        """Blobs of these sizes, each used a minute after the one before."""
        digests = []
        for number, size in enumerate(sizes):
            digests.append(await put(self.blobs, content(seed + number, size)))
            self.now += 60
            self.blobs.touch(digests[-1])
        return digests

    def held(self, digests: list[Digest]) -> list[bool]:
        return [path_of(self.blobs.root, digest).exists() for digest in digests]

    @property
    def on_disk(self) -> int:
        return bytes_in(self.blobs.root / "blobs", self.blobs.root / "spool")

    def evicted(self, reason: str) -> float:
        return self.metrics.registry.get_sample_value("mirror_evictions_total", {"reason": reason}) or 0.0


Open = Callable[..., Awaitable[Shop]]


@pytest.fixture
async def open_shop(tmp_path: Path) -> Any:
    shops: list[Shop] = []

    async def open_(**storage: Any) -> Shop:
        shop = Shop(tmp_path / str(len(shops)), **storage)
        shops.append(shop)
        await shop.blobs.open()
        return shop

    yield open_
    for shop in shops:
        shop.disk.clear()
        await shop.budget.close()
        await shop.blobs.close()


async def reserved(shop: Shop, size: int) -> Reservation:
    room = await shop.budget.reserve(size)
    assert room is not None
    return room


# Who gets room


async def test_what_is_promised_counts_until_it_is_returned(open_shop: Open) -> None:
    """Two fills never get the same room."""
    shop = await open_shop()
    first = await reserved(shop, 50 * KIB)
    second = await reserved(shop, 40 * KIB)
    assert shop.budget.used == 90 * KIB
    assert await shop.budget.reserve(11 * KIB) is None

    first.end()
    first.end()  # a second time takes nothing from anybody

    assert shop.budget.used == 40 * KIB
    second.end()
    assert shop.budget.used == shop.budget.reserved == 0
    assert shop.metrics.registry.get_sample_value("mirror_cache_bytes") == 0


async def test_nothing_larger_than_half_the_budget_is_kept(open_shop: Open) -> None:
    """One blob must not sweep out all the others."""
    shop = await open_shop()
    held = await shop.put(10 * KIB)

    assert await shop.budget.reserve(50 * KIB + 1) is None
    assert (await reserved(shop, 50 * KIB)).size == 50 * KIB

    assert shop.held(held) == [True]


async def test_the_least_recently_used_make_room(open_shop: Open) -> None:
    """As many as are needed, the oldest first; a use since the last scan counts."""
    shop = await open_shop()
    held = await shop.put(*[20 * KIB] * 5)
    await shop.budget.scan(0)
    shop.now += 60
    shop.blobs.touch(held[0])

    await reserved(shop, 30 * KIB)

    assert shop.held(held) == [True, False, False, True, True]
    assert shop.evicted("budget") == 2
    assert shop.budget.used == 90 * KIB


async def test_nobody_goes_where_all_of_them_would_not_suffice(open_shop: Open) -> None:
    """A cache is not emptied for a fill that passes through all the same."""
    shop = await open_shop()
    held = await shop.put(10 * KIB, 10 * KIB)
    await reserved(shop, 40 * KIB)
    await reserved(shop, 40 * KIB)

    assert await shop.budget.reserve(45 * KIB) is None

    assert shop.held(held) == [True, True]


async def test_leftover_spools_go_before_blobs(open_shop: Open) -> None:
    """What nobody has asked for since the last start is worth least; it counts until it is gone."""
    shop = await open_shop(max_size=10 * MIB)
    for number in (1, 2):
        (await spool(shop.blobs, content(number, 2 * MIB))).file.release()
    held = await shop.put(4 * MIB, seed=9)
    after = Shop(shop.blobs.root, max_size=10 * MIB)
    await after.blobs.open()
    await after.budget.scan(0)
    assert after.budget.used == 8 * MIB

    await reserved(after, 4 * MIB)

    assert after.held(held) == [True]
    assert after.budget.used == 10 * MIB
    assert len(after.blobs.leftovers) == 1
    await reserved(after, 2 * MIB)
    assert after.blobs.leftovers == {}
    assert after.held(held) == [True]
    await after.blobs.close()


async def test_a_disk_with_plenty_of_room_is_not_looked_at_for_each_fill(open_shop: Open) -> None:
    """Many blobs that come at once cost one look; where room is scarce, each of them is one."""
    shop = await open_shop()
    for _ in range(5):
        await reserved(shop, KIB)
    assert shop.disk.calls["free"] < 5  # once, unless this machine took a second for it

    scarce = Shop(shop.blobs.root, max_size=100 * KIB)
    scarce.disk.free_bytes = 1 << 30
    await scarce.budget.scan(0)
    for _ in range(5):
        await reserved(scarce, KIB)
    assert scarce.disk.calls["free"] == 5
    await scarce.blobs.close()


async def test_records_count(open_shop: Open) -> None:
    """What the book takes is not there for blobs."""
    shop = await open_shop()
    shop.budget.records = 80 * KIB

    assert await shop.budget.reserve(30 * KIB) is None


async def test_many_at_once_never_get_more_than_there_is(open_shop: Open) -> None:
    """However many ask in one moment."""
    shop = await open_shop()
    held = await shop.put(*[10 * KIB] * 8)
    rooms = await asyncio.gather(*(shop.budget.reserve(15 * KIB) for _ in range(20)))

    given = [room for room in rooms if room is not None]
    assert len(given) == 6
    assert shop.budget.used <= 100 * KIB
    assert shop.held(held) == [False] * 7 + [True]


async def test_a_blob_of_unknown_length_grows_while_there_is_room(open_shop: Open) -> None:
    """Step by step, to half the budget at most."""
    shop = await open_shop()
    room = await reserved(shop, 10 * KIB)
    other = await reserved(shop, 50 * KIB)

    assert await shop.budget.extend(room, 40 * KIB)
    assert (room.size, shop.budget.used) == (40 * KIB, 90 * KIB)
    assert not await shop.budget.extend(room, 51 * KIB)
    assert not await shop.budget.extend(room, 50 * KIB + 1)
    other.end()
    assert await shop.budget.extend(room, 50 * KIB)
    room.end()
    assert shop.budget.reserved == 0


# The file system's own limit


async def test_free_space_counts_all_that_is_promised(open_shop: Open) -> None:
    """`min_free` stays free even when everybody has written all that he may."""
    shop = await open_shop(min_free="10%")
    shop.disk.total_bytes, shop.disk.free_bytes = 100 * KIB, 50 * KIB
    first = await reserved(shop, 30 * KIB)
    assert await shop.budget.reserve(11 * KIB) is None
    first.written = 20 * KIB
    shop.disk.free_bytes -= 20 * KIB

    assert await shop.budget.reserve(11 * KIB) is None
    assert await shop.budget.reserve(10 * KIB) is not None


async def test_blobs_go_for_free_space(open_shop: Open) -> None:
    """Others may fill the disk too; ours go as far as that helps, and not at all where it does not."""
    shop = await open_shop(min_free="10%")
    held = await shop.put(*[10 * KIB] * 4)
    shop.disk.total_bytes = 100 * KIB
    shop.disk.free_bytes = 0
    assert await shop.budget.reserve(45 * KIB) is None
    assert shop.held(held) == [True] * 4

    def freed(method: str, path: Path | None) -> None:
        shop.disk.free_bytes += 10 * KIB * (method == "unlink")

    shop.disk.watch = freed
    assert await shop.budget.reserve(10 * KIB) is not None

    assert shop.held(held) == [False, False, True, True]
    assert shop.evicted("min_free") == 2


async def test_space_that_does_not_come_is_not_given(open_shop: Open) -> None:
    """A blob that is being sent keeps its blocks after its eviction: the fill passes through."""
    shop = await open_shop(min_free="10%")
    await shop.put(10 * KIB)
    shop.disk.total_bytes, shop.disk.free_bytes = 100 * KIB, 10 * KIB

    assert await shop.budget.reserve(5 * KIB) is None
    assert shop.budget.reserved == 0


# Asking that comes to nothing


@pytest.mark.parametrize("method", ["free", "scan", "unlink"])
async def test_a_cancelled_asking_leaves_no_reservation(open_shop: Open, method: str) -> None:
    """Wherever the client left, the room is there for the next one."""
    shop = await open_shop()
    await shop.put(*[20 * KIB] * 5)
    trap = shop.disk.hold(method)
    asking = asyncio.create_task(shop.budget.reserve(20 * KIB))
    await trap.met()
    waiting = asyncio.create_task(shop.budget.reserve(30 * KIB))
    await asyncio.sleep(0)

    asking.cancel()
    waiting.cancel()
    await asyncio.gather(asking, waiting, return_exceptions=True)
    trap.release()

    assert shop.budget.reserved == 0
    await reserved(shop, 50 * KIB)
    assert shop.budget.reserved == 50 * KIB


@pytest.mark.parametrize("method", ["free", "scan", "unlink"])
async def test_a_slow_disk_makes_fills_pass_through(
    open_shop: Open, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room is waited for so long and no longer; what was begun goes on, and nothing stays reserved."""
    monkeypatch.setattr(module, "_RESERVE_SECONDS", 0.05)
    shop = await open_shop()
    await shop.put(*[20 * KIB] * 5)
    trap = shop.disk.hold(method)

    assert await asyncio.gather(*(shop.budget.reserve(20 * KIB) for _ in range(5))) == [None] * 5

    trap.release()
    monkeypatch.setattr(module, "_RESERVE_SECONDS", 5.0)
    assert shop.budget.reserved == 0
    await reserved(shop, 20 * KIB)


@pytest.mark.parametrize("method", ["free", "scan", "unlink", "stat"])
async def test_a_failing_disk_makes_fills_pass_through(open_shop: Open, method: str) -> None:
    """It is told, it is no error of anybody's, and it is over when the disk works again."""
    shop = await open_shop()
    await shop.put(*[20 * KIB] * 5)
    shop.disk.fail(errno.EIO, method)

    assert await shop.budget.reserve(20 * KIB) is None
    assert shop.trouble.reasons == ["blobs: io_error"]

    shop.disk.clear()
    assert shop.budget.reserved == 0
    await reserved(shop, 20 * KIB)


# Before the first count


async def test_what_is_kept_while_room_is_made_costs_nobody_a_place(
    open_shop: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A blob counts beside its reservation for a moment; whoever asks for room then gets it all the same."""
    shop = await open_shop()
    await shop.put(*[20 * KIB] * 4)
    first, data = await reserved(shop, 20 * KIB), content(9, 20 * KIB)
    made = await spool(shop.blobs, data)
    remove = shop.blobs.remove_unused

    async def meanwhile(victims: Any) -> list[int]:
        if not path_of(shop.blobs.root, made.digest).exists():
            await shop.blobs.commit(made)
        return await remove(victims)

    monkeypatch.setattr(shop.blobs, "remove_unused", meanwhile)
    second = await reserved(shop, 20 * KIB)

    assert shop.budget.used <= 100 * KIB
    first.end()
    second.end()
    made.file.release()
    assert shop.budget.used == shop.on_disk == 60 * KIB


async def test_nothing_is_reserved_before_anything_is_known(open_shop: Open) -> None:
    """The first fill waits for the count, which goes on for all."""
    shop = await open_shop()
    await shop.put(*[30 * KIB] * 3)
    after = Shop(shop.blobs.root)
    await after.blobs.open()

    rooms = await asyncio.gather(after.budget.reserve(10 * KIB), after.budget.reserve(10 * KIB))

    assert after.budget.committed == bytes_in(after.blobs.root / "blobs")
    assert all(rooms)
    assert after.budget.used <= 100 * KIB
    assert after.disk.calls["scan"] <= 2 * len(after.blobs.directories()) + 2
    await after.blobs.close()


async def test_the_last_process_is_believed_until_the_count(open_shop: Open) -> None:
    """Its total counts from the start, what changes since is added to it, and the count replaces it."""
    shop = await open_shop()
    shop.budget.believe(60 * KIB)
    assert shop.budget.used == 60 * KIB
    await reserved(shop, 20 * KIB)
    await shop.put(10 * KIB)
    assert shop.budget.committed == 70 * KIB
    assert shop.disk.calls["scan"] == 2  # of journals and spools, at the start

    await shop.budget.scan(0)
    assert shop.budget.committed == 10 * KIB

    shop.budget.believe(90 * KIB)
    assert shop.budget.committed == 10 * KIB


async def test_nobody_is_evicted_on_the_word_of_the_last_process(open_shop: Open) -> None:
    """It may have crashed, or somebody may have tidied up: it is counted first."""
    shop = await open_shop()
    held = await shop.put(30 * KIB)
    after = Shop(shop.blobs.root)
    await after.blobs.open()
    after.budget.believe(10_000 * KIB)

    assert await after.budget.reserve(40 * KIB) is not None

    assert after.held(held) == [True]
    await after.blobs.close()


async def test_a_scan_finds_what_somebody_did_behind_our_back(open_shop: Open) -> None:
    """Files removed or added by hand are counted at the next scan."""
    shop = await open_shop()
    held = await shop.put(10 * KIB, 20 * KIB)
    await shop.budget.scan(0)
    path_of(shop.blobs.root, held[0]).unlink()
    by_hand = path_of(shop.blobs.root, Digest.of(b"by hand"))
    by_hand.parent.mkdir(exist_ok=True)
    by_hand.write_bytes(bytes(5 * KIB))

    await shop.budget.scan(0)

    assert shop.budget.committed == 25 * KIB
    assert shop.metrics.registry.get_sample_value("mirror_cache_objects", {"kind": "blob"}) == 2


# Making room


async def test_room_is_made_in_more_than_one_scan(open_shop: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where more must go than a scan remembers, the next one finds the next."""
    monkeypatch.setattr(module, "Oldest", functools.partial(Oldest, most=3))
    shop = await open_shop()
    held = await shop.put(*[1 * KIB] * 20)
    await shop.budget.scan(0)

    assert await shop.budget.make_room(10 * KIB, "budget") == 10 * KIB

    assert shop.held(held) == [False] * 10 + [True] * 10


async def test_a_count_under_way_is_no_reason_to_find_nobody(open_shop: Open) -> None:
    """It looks for no victims; who needs room scans again."""
    shop = await open_shop()
    held = await shop.put(*[10 * KIB] * 4)
    trap = shop.disk.hold("scan", path="blobs", times=1)
    counting = asyncio.create_task(shop.budget.scan(0))
    await trap.met()
    making = asyncio.create_task(shop.budget.make_room(15 * KIB, "budget"))
    await asyncio.sleep(0)
    trap.release()
    await counting

    assert await making == 20 * KIB
    assert shop.held(held) == [False, False, True, True]


async def test_a_sweep_stops_where_others_made_room_meanwhile(open_shop: Open) -> None:
    """Two at once free no more than one would."""
    shop = await open_shop()
    held = await shop.put(*[1 * KIB] * 100)
    await shop.budget.scan(0)

    await asyncio.gather(shop.budget.sweep(), shop.budget.sweep(), shop.budget.sweep())

    assert 87 <= sum(shop.held(held)) <= 90
    assert shop.held(held) == sorted(shop.held(held))


async def test_making_room_comes_to_an_end(open_shop: Open) -> None:
    """Also where nothing is left to go, or all of it is in use."""
    shop = await open_shop()
    held = await shop.put(10 * KIB, 10 * KIB)
    await put(shop.blobs, b"")
    await shop.budget.scan(5 * KIB)
    shop.now += 60
    for digest in held:
        shop.blobs.touch(digest)

    assert await shop.budget.make_room(10**9, "emergency") == 20 * KIB
    assert await shop.budget.make_room(10**9, "emergency") == 0


async def test_an_image_ages_as_a_whole(open_shop: Open) -> None:
    """Uses that are only noted in memory count in the choice, flushed or not."""
    shop = await open_shop()
    old, new = await shop.put(20 * KIB, 20 * KIB), await shop.put(20 * KIB, 20 * KIB, seed=10)
    await shop.blobs.flush_uses()
    shop.now += 60
    for digest in old:
        shop.blobs.touch(digest)

    assert await shop.budget.make_room(40 * KIB, "budget") == 40 * KIB

    assert shop.held(old) == [True, True]
    assert shop.held(new) == [False, False]


# Exactness


class Jittery(Disk):
    """Lets calls overlap in ever different ways."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._chance = random.Random(seed)
        self._drawing = threading.Lock()

    def _before(self, method: str, path: Path | None) -> None:
        with self._drawing:
            pause = self._chance.random()
        if method in ("rename", "unlink", "stat", "scan") and pause < 0.1:
            time.sleep(pause / 100)
        super()._before(method, path)


class FewDirectories(BlobStore):
    """Scans only where something can be, so that many scans fit into a test."""

    def __init__(self, blobs: list[bytes], *arguments: Any) -> None:
        super().__init__(*arguments)
        self._few = tuple({("sha256", Digest.of(data).hex[:2]) for data in blobs})

    def directories(self) -> tuple[Directory, ...]:
        return self._few


@pytest.mark.parametrize("seed", range(3))
async def test_the_count_is_exact_whatever_happens_at_once(tmp_path: Path, seed: int) -> None:
    """Commits, recommits, evictions, sweeps, failures and scans over each other: the total is that of the files."""
    shop = Shop(tmp_path, max_size=20 * KIB)
    blobs = [content(number, 100 + 37 * number) for number in range(40)]
    chance = random.Random(seed)
    shop.disk = Jittery(seed)
    shop.blobs = FewDirectories(blobs, tmp_path, shop.disk, lambda: shop.now)
    shop.budget = Budget(shop.settings, shop.blobs, shop.trouble, shop.metrics, clock=lambda: shop.now)
    await shop.blobs.open()

    async def store() -> None:
        data = chance.choice(blobs)
        room = await shop.budget.reserve(len(data))
        if room is None:
            return
        try:
            await put(shop.blobs, data)
        finally:
            room.end()

    async def evict() -> None:
        await shop.blobs.remove(Digest.of(chance.choice(blobs)))

    async def fail() -> None:
        shop.disk.fail(errno.EIO, chance.choice(("rename", "unlink", "stat", "fsync")), times=1)

    async def work() -> None:
        for _ in range(40):
            shop.now += 1
            shop.blobs.touch(Digest.of(chance.choice(blobs)))
            choice = chance.choices(
                (store, evict, fail, lambda: shop.budget.scan(0), lambda: shop.budget.make_room(500, "test")),
                (50, 20, 3, 5, 10),
            )[0]
            try:
                await choice()
            except StorageError:
                pass

    await asyncio.gather(*(work() for _ in range(8)))
    shop.disk.clear()

    await shop.budget.close()
    files = bytes_in(tmp_path / "blobs")
    if shop.budget.counted:
        assert shop.budget.committed == files
    await shop.budget.scan(0)
    assert shop.budget.committed == files
    assert shop.budget.reserved == 0
    assert files <= 20 * KIB
    await shop.blobs.close()


async def test_a_spool_counts_by_its_reservation(open_shop: Open) -> None:
    """What is being written is promised, so never counted twice nor forgotten."""
    shop = await open_shop()
    room = await reserved(shop, 20 * KIB)
    made = await shop.blobs.create_spool(Digest.of(content(1, 20 * KIB)), HOST)
    await shop.blobs.append(made, [content(1, 20 * KIB)])
    assert shop.on_disk <= shop.budget.used == 20 * KIB

    await shop.blobs.commit(made)
    room.end()
    made.file.release()

    assert shop.on_disk == shop.budget.used == 20 * KIB

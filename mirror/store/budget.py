"""The disk budget: what counts against it, who may write how much, and making room by eviction."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

import structlog

from mirror.config import Storage
from mirror.metrics import Metrics
from mirror.oci.errors import StorageError
from mirror.singleflight import SingleFlight
from mirror.store.blobs import BlobStore
from mirror.store.room import Holder, Reservation
from mirror.store.shelves import BlobEntry
from mirror.store.trouble import Trouble
from mirror.store.victims import Oldest, Victims

_RESERVE_SECONDS = 2.0
"""How long a fill waits for room before it passes through."""
_SCANNED_AT_ONCE = 8
"""Directories; other work of the disk has its turn between."""
_AMPLE = 4 << 30
"""Bytes: with so many free beyond what is asked for, the file system need not be looked at each time ..."""
_AMPLE_SECONDS = 1.0
"""... but within this time, in which nothing fills them."""
_EVICTED_AT_ONCE = 64
_SWEPT_AT_ONCE = 0.01
"""Of `max_size`."""
_log = structlog.get_logger()


class Budget:
    """Holds `max_size` over blobs, reserved spools and records, and `min_free` over the file system.

    Until the first scan has counted the blobs, `committed` is what the last process wrote down: good enough to refuse
    by, never a reason to evict. Without it the first fills wait for the scan, for as long as they wait for room.
    """

    def __init__(
        self,
        storage: Storage,
        blobs: BlobStore,
        trouble: Trouble,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._storage = storage
        self._blobs = blobs
        self._trouble = trouble
        self._metrics = metrics
        self._clock = clock
        self._base = 0
        self._reservations: set[Reservation] = set()
        self._victims = Victims()
        self._scanned_for = 0
        self._free: tuple[int, int] = (0, 0)
        """Of the file system, when it was last looked at: bytes free, and all."""
        self._looked_at = -math.inf
        self._one_at_a_time = asyncio.Lock()
        self._asking = 0
        """Fills that wait for room: a scan is in a hurry then."""
        self._scans = SingleFlight()
        self._known = False
        self.counted = False
        """Whether a scan of this process has counted the blobs."""
        self.holders: list[Holder] = [blobs]
        """Who has leftover spools."""
        self.records = 0
        """Bytes that the records take, as last measured."""
        metrics.cache_max_bytes.set(storage.max_size)

    def adjust(self, storage: Storage) -> None:
        """Takes other limits; what is too much for them goes with the next sweep."""
        self._storage = storage
        self._metrics.cache_max_bytes.set(storage.max_size)

    # What counts.

    @property
    def committed(self) -> int:
        """Bytes of blobs held."""
        return max(0, self._base + self._blobs.net)

    @property
    def reserved(self) -> int:
        """Bytes promised to fills under way."""
        return sum(held.size for held in self._reservations)

    @property
    def used(self) -> int:
        """Bytes that count against `max_size`: blobs, everything reserved, leftover spools and records."""
        return self.committed + self.reserved + self._left_over + self.records

    @property
    def above_watermark(self) -> int:
        """Bytes to free until the low watermark is reached."""
        return max(0, self.used - int(self._storage.low_watermark * self._storage.max_size))

    @property
    def wants_sweep(self) -> bool:
        """Whether more is held than halfway between the watermark and the limit."""
        return self.used > self._storage.max_size * (1 + self._storage.low_watermark) / 2

    def believe(self, committed: int) -> None:
        """Takes the last process's word for the bytes held, until the first scan."""
        if not self.counted:
            self._base = committed - self._blobs.net
            self._known = True

    # Room.

    async def reserve(self, size: int) -> Reservation | None:
        """Room for a blob of `size` bytes, evicting for it if need be; None where it must pass through.

        Bounded: whoever gets no room within two seconds passes through.
        """
        if size > self._storage.max_size // 2:
            return None
        self._asking += 1
        try:
            async with asyncio.timeout(_RESERVE_SECONDS):
                if not self._known:
                    await self.scan(self.above_watermark)
                async with self._one_at_a_time:
                    return await self._reserve(size)
        except TimeoutError:
            _log.warning("no room could be made in time for a blob", size=size)
        except StorageError as error:
            self._trouble.note("blobs", error)
        finally:
            self._asking -= 1
        return None

    async def extend(self, reservation: Reservation, size: int) -> bool:
        """Enlarges a reservation to `size` bytes, for a blob whose length nobody told us; False where it may not."""
        if size > self._storage.max_size // 2:
            return False
        more = await self.reserve(size - reservation.size)
        if more is None:
            return False
        self._reservations.discard(more)
        reservation.size = size
        self.show()
        return True

    async def make_room(self, need: int, reason: str) -> int:
        """Evicts the least recently used blobs of together at least `need` bytes; returns what was freed.

        Raises StorageError.
        """
        freed = 0
        for holder in self.holders:
            freed += await holder.drop_leftovers(need - freed) if freed < need else 0
        scanned_in_vain = False
        while freed < need:
            if self._victims:
                size = await self._evict_some(need - freed, reason)
                freed += size
                scanned_in_vain = scanned_in_vain and not size
            elif scanned_in_vain:
                break
            else:
                wanted = max(need - freed, self.above_watermark)
                await self.scan(wanted)
                scanned_in_vain = self._scanned_for >= wanted  # else it was somebody else's scan, who wanted less
        return freed

    async def sweep(self) -> None:
        """Evicts down to the low watermark, a part at a time: others make room meanwhile. Raises StorageError."""
        while (above := self.above_watermark) > 0:
            part = max(1, int(self._storage.max_size * _SWEPT_AT_ONCE))
            if await self.make_room(min(above, part), "budget") == 0:
                break

    async def scan(self, need: int) -> None:
        """Counts every blob and remembers victims for at least `need` bytes; one scan at a time, whoever asks.

        Raises StorageError.
        """
        await self._scans.run("scan", lambda: self._scan(need))

    async def close(self) -> None:
        """Stops a running scan."""
        await self._scans.close()

    def show(self) -> None:
        """Puts what is used into the metric."""
        self._metrics.cache_bytes.set(self.used)

    # Inside.

    @property
    def _left_over(self) -> int:
        return sum(holder.left_over for holder in self.holders)

    def _end(self, reservation: Reservation) -> None:
        """Takes a reservation off the books: its bytes are a blob now, or nothing."""
        self._reservations.discard(reservation)
        self.show()

    async def _scan(self, need: int) -> None:
        base = objects = 0
        oldest = Oldest(need)
        directories = self._blobs.directories()
        for start in range(0, len(directories), _SCANNED_AT_ONCE):
            part = directories[start : start + _SCANNED_AT_ONCE]
            count, size = await self._blobs.survey(part, oldest, hurried=lambda: self._asking > 0)
            objects += count
            base += size
        self._base = base
        self._victims = await self._blobs.compute(oldest.chosen)
        self._scanned_for = need
        self.counted = self._known = True
        self._metrics.cache_objects.labels(kind="blob").set(objects)
        self.show()

    async def _reserve(self, size: int) -> Reservation | None:
        if self._over_budget(size) > 0 and not self.counted:
            await self.scan(self._over_budget(size))
        # Again where that was not enough: a blob that is committed meanwhile counts twice for a moment.
        while await self._make_room_for(self._over_budget(size), "budget"):
            pass
        short_of_free = await self._below_free(size)
        if short_of_free > 0:
            await self._make_room_for(short_of_free, "min_free")
            short_of_free = await self._below_free(size)
        if short_of_free > 0 or self._over_budget(size) > 0:
            return None
        reservation = Reservation(size, self._end)
        self._reservations.add(reservation)
        self.show()
        return reservation

    async def _make_room_for(self, shortfall: int, reason: str) -> int:
        """Frees `shortfall` bytes, or nothing where all that is held would not be enough; returns what was freed."""
        if 0 < shortfall <= self.committed + self._left_over:
            return await self.make_room(shortfall, reason)
        return 0

    def _over_budget(self, size: int) -> int:
        return self.used + size - self._storage.max_size

    async def _below_free(self, size: int) -> int:
        """Bytes that must go before `size` more leave `min_free`, counting what is promised and not yet written."""
        missing = self._missing(size)
        if missing > -_AMPLE or time.monotonic() - self._looked_at > _AMPLE_SECONDS:
            self._free, self._looked_at = await self._blobs.free(), time.monotonic()
            missing = self._missing(size)
        return missing

    def _missing(self, size: int) -> int:
        free, total = self._free
        promised = sum(max(0, held.size - held.written) for held in self._reservations)
        return size + promised + self._storage.min_free.of(total) - free

    async def _evict_some(self, need: int, reason: str) -> int:
        """Removes the next victims, unless they were used since they were surveyed; returns the bytes they had."""
        victims: list[BlobEntry] = []
        size = 0
        while self._victims and size < need and len(victims) < _EVICTED_AT_ONCE:
            victims.append(next(self._victims))
            size += victims[-1].size
        sizes = await self._blobs.remove_unused(victims)
        gone = [victim for victim, freed in zip(victims, sizes, strict=False) if freed]
        now = self._clock()
        for victim in gone:
            self._metrics.eviction_age.observe(max(0.0, now - victim.used_at))
        if gone:
            self._metrics.evictions.labels(reason=reason).inc(len(gone))
            self._metrics.evicted_bytes.inc(sum(sizes))
        self.show()
        return sum(sizes)

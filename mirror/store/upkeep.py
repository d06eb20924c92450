"""The store's chores in the background: counting, sweeping, writing uses out, keeping the records small."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from mirror.config import Storage
from mirror.metrics import Metrics
from mirror.oci.errors import StorageError
from mirror.store.blobs import BlobStore
from mirror.store.budget import Budget
from mirror.store.home import Home
from mirror.store.records import Records
from mirror.store.trouble import LOST, Trouble

_USED = ("used",)
_FOREVER = 100 * 365 * 86400.0
_ROUND_SECONDS = 5.0
_FINISH_SECONDS = 5.0
_FLUSH_ROUNDS = 6
_FLUSH_USES = 10_000
_RECOUNT_ROUNDS = 720  # an hour: somebody may have deleted files behind our back
_RETRY_ROUNDS = 12
_RECORDS_SHARE = 0.10
_RECORDS_FLOOR = 2 << 20
"""Bytes that an empty database with its log may take; dropping records would not make it smaller."""
_RECORDS_AHEAD = 0.05
"""Of `max_size`, and at most `_RECORDS_FLOOR`: what records and log may grow by before they are measured again."""
_log = structlog.get_logger()


class Upkeep:
    """Runs the chores until it is cancelled; `finish` does the last of them at a clean stop."""

    def __init__(
        self,
        storage: Storage,
        home: Home,
        blobs: BlobStore,
        budget: Budget,
        records: Records,
        trouble: Trouble,
        metrics: Metrics,
        *,
        shared: bool = False,
    ) -> None:
        """`shared`: other processes bring blobs, too; what is written down of them is true once the last has gone."""
        self._storage = storage
        self._home = home
        self._blobs = blobs
        self._budget = budget
        self._records = records
        self._trouble = trouble
        self._metrics = metrics
        self._shared = shared
        self._written: int | None = None
        self._rounds = 0
        self._next_count = 0
        self.moved: Callable[[], object] = lambda: None
        """Called when another directory was taken up in the old one's place."""

    def adjust(self, storage: Storage) -> None:
        """Takes other limits."""
        self._storage = storage

    async def begin(self, *, clean: bool) -> None:
        """Takes up what the last process wrote down, so that fills need not wait for the first count.

        Not after a stop that was not `clean`: more may have come since than was written down.
        """
        written = await self._records.get(_USED)
        self._budget.records = self._ahead(await self._records.volume())
        if clean and written is not None and written.isdigit():
            self._budget.believe(int(written))
        if self._shared:
            await self._records.set(_USED, b"", _FOREVER)

    def recount(self) -> None:
        """Has the next round count the blobs."""
        self._next_count = self._rounds

    async def run(self) -> None:
        """Counts, then does a round every few seconds."""
        while True:
            await self.round()
            await asyncio.sleep(_ROUND_SECONDS)

    async def round(self) -> None:
        """Every chore that is due. One that fails keeps no other from being done, and is done again next time.

        Nothing is done while the data directory is gone: what stands in its place is not ours.
        """
        if not await self._do(self._find_home):
            return
        healthy = True
        chores = (self._count, self._flush_uses, self._tend_records, self._sweep)
        for chore in chores if self._shared else (*chores, self._write_used):
            healthy = await self._do(chore) and healthy
        if healthy and self._trouble.met_by("blobs") and await self._do(self._blobs.probe):
            self._trouble.clear("blobs")
        self._rounds += 1

    async def finish(self) -> None:
        """The last round of a clean stop."""
        try:
            async with asyncio.timeout(_FINISH_SECONDS):
                await self._do(self._blobs.flush_uses)
                await self._do(self._write_used)
        except TimeoutError:
            _log.warning("the last uses were not written: the disk does not answer")

    async def _do(self, chore: Callable[[], Awaitable[None]]) -> bool:
        try:
            await chore()
        except StorageError as error:
            self._trouble.note("blobs", error)
            return False
        except Exception:
            _log.exception("upkeep failed; the next round goes on")
            return False
        return True

    async def _find_home(self) -> None:
        """Takes the data directory up again where a volume came back, as it was or as another one. Raises StorageError.

        While it is gone nothing is to be counted; what was counted all the same was not there.
        """
        if await self._home.find():
            await self._blobs.reopen()
            self._home.accept()
            self.recount()
            self.moved()
            _log.warning("another data directory than before; it is used as it is", path=str(self._storage.path))
        elif self._trouble.met_by("blobs") == LOST:
            await self._blobs.make_directories()
            self.recount()

    async def _count(self) -> None:
        if self._rounds >= self._next_count:
            self._next_count = self._rounds + (_RETRY_ROUNDS if self._budget.counted else 1)
            await self._budget.scan(self._budget.above_watermark)
            self._next_count = self._rounds + _RECOUNT_ROUNDS

    async def _flush_uses(self) -> None:
        if self._rounds % _FLUSH_ROUNDS == 0 or self._blobs.unflushed > _FLUSH_USES:
            await self._blobs.flush_uses()

    async def _sweep(self) -> None:
        if self._budget.counted and self._budget.wants_sweep:
            await self._budget.sweep()

    async def _write_used(self) -> None:
        """Reservations included: after a crash their spools are still there, until the scan has looked."""
        used = self._budget.committed + self._budget.reserved
        if not self._budget.counted or used == self._written:
            return
        if await self._records.set(_USED, str(used).encode(), _FOREVER):
            self._written = used

    async def _tend_records(self) -> None:
        """Drops expired records, and those nearest their expiry while the records take more than their share."""
        await self._records.mend()
        if self._trouble.met_by("records") == "full":  # a few blobs are worth less than all names
            await self._budget.make_room(_RECORDS_FLOOR, "emergency")
            await self._records.mend()
        while await self._records.drop_expired():
            pass
        limit = max(_RECORDS_FLOOR, int(self._storage.max_size * _RECORDS_SHARE))
        while (volume := await self._records.volume()) > limit + self._records.kept and await self._records.drop_some():
            pass
        self._budget.records = self._ahead(volume)
        self._metrics.cache_objects.labels(kind="record").set(await self._records.count())
        self._budget.show()

    def _ahead(self, volume: int) -> int:
        """What to count for records that take `volume` bytes now: a promise has to hold between two looks, too."""
        return volume + min(_RECORDS_FLOOR, int(self._storage.max_size * _RECORDS_AHEAD))

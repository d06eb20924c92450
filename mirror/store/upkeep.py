"""The store's chores in the background: counting, sweeping, writing uses out, keeping the records small."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import structlog

from mirror.config import Storage
from mirror.metrics import Metrics
from mirror.oci.errors import StorageError
from mirror.store.blobs import BlobStore
from mirror.store.budget import Budget
from mirror.store.records import Records
from mirror.store.trouble import Trouble

_USED = ("used",)
_YEAR = 365 * 86400.0
_ROUND_SECONDS = 5.0
_FLUSH_ROUNDS = 6
_FLUSH_USES = 10_000
_RECOUNT_ROUNDS = 720  # an hour: somebody may have deleted files behind our back
_RECORDS_SHARE = 0.10
_RECORDS_FLOOR = 2 << 20
"""Bytes that an empty database with its log may take; dropping records would not make it smaller."""
_log = structlog.get_logger()


class Upkeep:
    """Runs the chores until it is cancelled; `finish` does the last of them at a clean stop."""

    def __init__(
        self, storage: Storage, blobs: BlobStore, budget: Budget, records: Records, trouble: Trouble, metrics: Metrics
    ) -> None:
        self._storage = storage
        self._blobs = blobs
        self._budget = budget
        self._records = records
        self._trouble = trouble
        self._metrics = metrics
        self._written: int | None = None

    async def begin(self) -> None:
        """Takes up what the last process wrote down, so that fills need not wait for the first count."""
        written = await self._records.get(_USED)
        self._budget.records = await self._records.volume()
        if written is not None and written.isdigit():
            self._budget.believe(int(written))

    async def run(self) -> None:
        """Counts, then does a round every few seconds."""
        round_number = 0
        while True:
            try:
                if round_number % _RECOUNT_ROUNDS == 0:
                    await self._budget.scan(self._budget.above_watermark)
                await self.round(flush=round_number % _FLUSH_ROUNDS == 0)
            except StorageError as error:
                self._trouble.note("blobs", error)
            except Exception:
                _log.exception("upkeep failed; the next round goes on")
            round_number += 1
            await asyncio.sleep(_ROUND_SECONDS)

    async def round(self, *, flush: bool) -> None:
        """One round. Raises StorageError."""
        if flush or self._blobs.unflushed > _FLUSH_USES:
            await self._blobs.flush_uses()
        await self._trim_records()
        if self._budget.wants_sweep:
            await self._budget.make_room(self._budget.above_watermark, "budget")
        await self._write_used()

    async def finish(self) -> None:
        """The last round of a clean stop."""
        try:
            await self._blobs.flush_uses()
        except StorageError as error:
            self._trouble.note("blobs", error)
        await self._write_used()

    async def _write_used(self) -> None:
        committed = self._budget.committed
        if committed != self._written and self._budget.counted:
            self._written = committed
            await self._records.set(_USED, str(committed).encode(), _YEAR)

    async def _trim_records(self) -> None:
        """Drops expired records, and those nearest their expiry while the records take more than their share."""
        limit = max(_RECORDS_FLOOR, int(self._storage.max_size * _RECORDS_SHARE))
        for within in _horizons():
            await self._records.expire(within)
            self._budget.records = await self._records.volume()
            if self._budget.records <= limit:
                break
        self._metrics.cache_objects.labels(kind="record").set(await self._records.count())
        self._budget.show()


def _horizons() -> Iterator[float]:
    """Seconds ahead, from now to farther than any record lives, in steps small enough to keep most."""
    yield 0.0
    step = 3600.0
    while step < 60 * 86400:
        yield step
        step *= 1.5

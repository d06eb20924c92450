"""What one process does for the whole store: the lock on it, its budget, and the chores in the background."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from mirror.config import Storage
from mirror.metrics import Metrics
from mirror.oci.errors import StorageError
from mirror.store.blobs import BlobStore
from mirror.store.budget import Budget
from mirror.store.files import Files
from mirror.store.generations import Generations
from mirror.store.home import Home, mistake
from mirror.store.records import Records
from mirror.store.scrub import Scrub
from mirror.store.trouble import Trouble
from mirror.store.upkeep import Upkeep

_log = structlog.get_logger()


class Keeper:
    """The store as the one process sees it that keeps it: `open` it, let it `begin` its chores, `close` it.

    `patience`: how long in seconds a client waits for our disk before the disk counts as failed.
    """

    def __init__(
        self,
        storage: Storage,
        metrics: Metrics,
        *,
        files: Files | None = None,
        clock: Callable[[], float] = time.time,
        patience: float = 10.0,
    ) -> None:
        self._storage = storage
        self.trouble = Trouble(metrics, time.monotonic)
        self.blobs = BlobStore(storage.path, files or Files(), clock, patience=patience)
        self._home = Home(storage.path, patience=patience)
        self.records = Records(storage.path / "records", self.trouble, check_home=self._home.check)
        self.generations = Generations()
        self.room = self.budget = Budget(storage, self.blobs, self.trouble, metrics, clock=clock)
        self.upkeep = Upkeep(storage, self._home, self.blobs, self.budget, self.records, self.trouble, metrics)
        self.scrub = Scrub(storage.scrub_rate, self.blobs, self.records, self.trouble, metrics, clock=clock)
        self._chores: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Takes the directory and opens what is in it. Raises StorageError where it is not ours, or cannot be used."""
        await self._home.take()
        try:
            clean = await self.blobs.open()
        except StorageError as error:
            if isinstance(error.__cause__, OSError):
                raise mistake(self._storage.path, error.__cause__) from error
            raise
        if not clean:
            _log.warning("the last stop was not clean; the youngest blobs are verified before they are served")
        await self.records.open()
        await self.upkeep.begin(clean=clean)

    def begin(self) -> None:
        """Begins the chores."""
        chores = (self.upkeep, self.scrub)
        self._chores = [asyncio.create_task(chore.run(), name=type(chore).__name__) for chore in chores]

    async def close(self) -> None:
        """Ends the chores and writes out what is to be found again; after the last download. Idempotent, and safe after
        an `open` that went half way.
        """
        chores, self._chores = self._chores, []
        if chores:
            for task in chores:
                task.cancel()
            await asyncio.wait(chores)
            await self.budget.close()
            await self.upkeep.finish()
            await self.scrub.finish()
        try:
            await self.blobs.close()
        except StorageError as error:
            self.trouble.note("blobs", error)
        await self.records.close()
        await self._home.release()

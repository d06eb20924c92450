"""What one process does for the whole store: the lock on it, its budget, and the chores in the background."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable

import structlog

from mirror.channel import Channel
from mirror.config import Storage
from mirror.metrics import Metrics
from mirror.oci.errors import StorageError
from mirror.store.blobs import BlobStore
from mirror.store.budget import Budget
from mirror.store.files import Files
from mirror.store.generations import Generations
from mirror.store.home import Home, mistake
from mirror.store.landlord import Landlord
from mirror.store.ledger import Ledger, share
from mirror.store.part import Part
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
        workers: int = 1,
    ) -> None:
        """`workers`: how many processes it is kept for, each of which comes in by `admit`; 1: this one alone."""
        self._storage = storage
        self.shared_fd = share(workers + 1) if workers > 1 else None
        """Memory that every worker's `Lodger` needs, for it to inherit."""
        part = Part(Ledger(self.shared_fd), slots=workers) if workers > 1 else Part()
        self.trouble = Trouble(metrics, time.monotonic)
        self.blobs = BlobStore(storage.path, files or Files(), clock, patience=patience, part=part)
        self._home = Home(storage.path, patience=patience)
        self.records = Records(storage.path / "records", self.trouble, check_home=self._home.check, part=part)
        self.generations = Generations(self.shared_fd)
        self.room = self.budget = Budget(storage, self.blobs, self.trouble, metrics, clock=clock)
        self.upkeep = Upkeep(
            storage, self._home, self.blobs, self.budget, self.records, self.trouble, metrics, shared=workers > 1
        )
        self.scrub = Scrub(storage.scrub_rate, self.blobs, self.records, self.trouble, metrics, clock=clock)
        self._landlord = Landlord(self._home, self.blobs, self.budget, self.records, self.upkeep, self.trouble)
        self._workers = workers if workers > 1 else 0
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
        await self._landlord.open(self._workers)
        await self.records.open()
        await self.upkeep.begin(clean=clean)

    def admit(self, slot: int, channel: Channel) -> None:
        """Lets a worker's lodger in, by the channel to its process, until that is closed; after `open`."""
        self._landlord.admit(slot, channel)

    @property
    def lock_fd(self) -> int:
        """What every worker inherits, so that nobody else takes the directory while one of them is left."""
        return self._home.lock_fd

    @property
    def reasons(self) -> list[str]:
        """What is wrong with the disk, as we see it and as the workers do."""
        return self.trouble.reasons + self._landlord.reasons

    def adjust(self, storage: Storage) -> None:
        """Takes other limits, for what is held from now on; the path and the rate of the scrub stay as they are."""
        self.budget.adjust(storage)
        self.upkeep.adjust(storage)

    def begin(self) -> None:
        """Begins the chores."""
        chores = (self.upkeep, self.scrub)
        self._chores = [asyncio.create_task(chore.run(), name=type(chore).__name__) for chore in chores]

    async def close(self) -> None:
        """Ends the chores and writes out what is to be found again; after the last download and the last worker.

        Idempotent, and safe after an `open` that went half way.
        """
        await self._landlord.close()
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
        shared_fd, self.shared_fd = self.shared_fd, None
        if shared_fd is not None:
            os.close(shared_fd)

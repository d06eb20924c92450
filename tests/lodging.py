"""A store that is kept for two workers, all three in one process, which talk over real sockets."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mirror.channel import Channel
from mirror.config import Storage
from mirror.metrics import Metrics
from mirror.oci.digest import Digest
from mirror.store.files import Files
from mirror.store.keeper import Keeper
from mirror.store.lodger import Lodger
from mirror.store.owners import owner_of
from mirror.store.room import Reservation
from mirror.store.spools import Spool, origin_of

WORKERS = 2


def _host_of(slot: int) -> str:
    hosts = (f"host{number}.example" for number in range(1000))
    return next(host for host in hosts if owner_of(origin_of(host), WORKERS) == slot)


HOSTS = [_host_of(slot) for slot in range(WORKERS)]
"""One for each worker to ask."""
PATIENT = 20.0
"""Seconds in which the keeper has to show that it is alive: in a test it shares a loop with everybody."""


class Worker:
    """One worker's life; `channel` is its end, `theirs` the keeper's."""

    def __init__(self, house: House, slot: int, **options: Any) -> None:
        ours, theirs = socket.socketpair()
        self.channel, self.theirs = Channel(ours), Channel(theirs)
        self.slot = slot
        self.host = HOSTS[slot]
        self._fd = os.dup(house.shared_fd)
        options = {"silence": PATIENT, "clock": house.clock, "files": Files(), **options}
        self.lodger = Lodger(house.storage, Metrics(), self.channel, self._fd, slot, WORKERS, **options)

    async def spool(self, data: bytes) -> Spool:
        """A spool of its own with `data` in it. The caller releases its file."""
        made = await self.lodger.blobs.create_spool(Digest.of(data), self.host)
        await self.lodger.blobs.append(made, [data])
        return made

    async def commit(self, spool: Spool) -> Digest:
        """Makes it a blob."""
        await self.lodger.blobs.commit(spool)
        spool.file.release()
        self.lodger.blobs.touch(spool.digest)
        return spool.digest

    async def put(self, data: bytes) -> Digest:
        """A fill from beginning to end."""
        room = await self.reserve(len(data))
        digest = await self.commit(await self.spool(data))
        room.end()
        return digest

    async def reserve(self, size: int) -> Reservation:
        """Room that is there."""
        room = await self.lodger.room.reserve(size)
        assert room is not None
        return room

    async def told(self) -> None:
        """The keeper has heard all that we have said, and we what it has."""
        await self.channel.call("store.hello", None, PATIENT)

    async def stop(self) -> None:
        """A clean end."""
        await self.lodger.close()
        await self.close()

    async def die(self) -> None:
        """As by a kill: nothing is told any more, nothing is tidied. What threads have begun comes to an end."""
        await self.channel.close()
        chore, self.lodger._chore = self.lodger._chore, None
        if chore is not None:
            chore.cancel()
        self.lodger.blobs._opened = False
        await self.stop()

    async def close(self) -> None:
        """Both ends of the channel."""
        await self.channel.close()
        await self.theirs.close()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class House:
    """`start` it, `move_in` workers, `stop` it."""

    def __init__(self, path: Path, *, clock: Callable[[], float], files: Files | None = None, **storage: Any) -> None:
        self.storage = Storage(**{"path": path, "max_size": 1 << 20, "min_free": "0%", "scrub_rate": 0, **storage})
        self.clock = clock
        self.keeper = Keeper(self.storage, Metrics(), files=files or Files(), clock=clock, workers=WORKERS)
        self.budget = self.keeper.budget
        self.workers: dict[int, Worker] = {}

    @property
    def shared_fd(self) -> int:
        """What workers inherit."""
        assert self.keeper.shared_fd is not None
        return self.keeper.shared_fd

    async def start(self) -> None:
        """The keeper alone."""
        await self.keeper.open()
        await self.budget.scan(0)

    async def move_in(self, slot: int, **options: Any) -> Worker:
        """A new worker in the slot, let in and opened."""
        worker = self.workers[slot] = Worker(self, slot, **options)
        self.keeper.admit(slot, worker.theirs)
        await worker.lodger.open()
        return worker

    async def kill(self, slot: int) -> None:
        """A worker dies, and the keeper hears of it."""
        worker = self.workers.pop(slot)
        await worker.die()
        await worker.theirs.closed.wait()

    async def stop(self) -> None:
        """A clean end, or what is left of one."""
        for worker in self.workers.values():
            await worker.stop()
        await self.keeper.close()

    def left(self, name: str) -> list[str]:
        """The names of what lies in a directory of the store."""
        return sorted(path.name for path in (self.storage.path / name).iterdir())

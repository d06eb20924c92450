"""Several workers over one data directory, all in the test's own event loop, which ask each other over real sockets."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from mirror.channel import Channel
from mirror.config import Address, Timeouts, UpstreamSettings
from mirror.metrics import Metrics
from mirror.server import Post
from mirror.sockets import bind, meeting_point, new_crowd
from mirror.store.keeper import Keeper
from mirror.store.lodger import Lodger
from mirror.store.owners import owner_of
from mirror.store.spools import origin_of
from tests.harness import Reply, RunningMirror, short_timeouts
from tests.upstream import FakeRegistry

PATIENT = 20.0
"""Seconds in which workers have to show that they are alive: in a test they share a loop with everybody."""


class Worker(RunningMirror):
    """A mirror that lodges with others, and has a port of its own, so that a test may choose whom it asks."""

    def __init__(self, crowd: Crowd, slot: int, **options: Any) -> None:
        super().__init__(crowd.path, crowd.upstreams, storage=crowd.storage, **options)
        self.slot = slot
        self._crowd = crowd
        self._channels: tuple[Channel, ...] = ()
        self._port = 0

    @property
    def url(self) -> str:
        """Of the registry API of this worker alone."""
        return f"http://127.0.0.1:{self._port}"

    async def start(self) -> None:
        """A worker in its slot."""
        crowd = self._crowd
        metrics = Metrics()
        ours, theirs = socket.socketpair()
        channel, others = self._channels = Channel(ours), Channel(theirs)
        crowd.keeper.admit(self.slot, others)
        assert crowd.keeper.shared_fd is not None
        lodger = Lodger(
            self.settings.storage,
            metrics,
            channel,
            os.dup(crowd.keeper.shared_fd),
            self.slot,
            len(crowd.names),
            silence=PATIENT,
            clock=crowd.clock,
        )
        self._wiring["clock"] = crowd.clock
        listening = await bind(Address("127.0.0.1", 0))
        self._port = listening[0].getsockname()[1]
        asked = crowd.listening[self.slot].dup()
        self._wiring["post"] = Post(self.slot, tuple(crowd.names), asked, listening, lodger)
        await super().start()

    async def stop(self, **how: float) -> None:
        """A clean stop."""
        await super().stop(**how)
        for channel in self._channels:
            await channel.close()


class Crowd:
    """Workers in front of `upstreams`; options are those of RunningMirror, for each of them.

    The first of these upstreams is the `owner`'s to ask; `other` is somebody else.
    """

    def __init__(
        self,
        path: Path,
        upstreams: Mapping[str, FakeRegistry | UpstreamSettings],
        *,
        workers: int = 2,
        storage: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = time.time,
        timeouts: Timeouts | None = None,
        **options: Any,
    ) -> None:
        self.path = path
        self.upstreams = upstreams
        self.storage = storage
        self.clock = clock
        crowd = new_crowd()
        meetings = [meeting_point(slot, crowd) for slot in range(workers)]
        self.names = [name for _, name in meetings]
        self.listening = [listening for listening, _ in meetings]
        options["timeouts"] = timeouts or short_timeouts(peer=PATIENT)
        self.workers = [Worker(self, slot, **options) for slot in range(workers)]
        self.keeper = Keeper(self.workers[0].settings.storage, Metrics(), clock=clock, workers=workers)

    async def __aenter__(self) -> Self:
        await self.keeper.open()
        for worker in self.workers:
            await worker.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(worker.stop() for worker in self.workers))
        await self.keeper.close()
        for listening in self.listening:
            listening.close()

    def owner_of(self, host: str) -> Worker:
        """Who asks the upstream `host`."""
        return self.workers[owner_of(origin_of(host), len(self.workers))]

    @property
    def owner(self) -> Worker:
        """Who asks the first upstream."""
        return self.owner_of(next(iter(self.upstreams)))

    @property
    def other(self) -> Worker:
        """Who has to ask the owner."""
        return next(worker for worker in self.workers if worker is not self.owner)

    async def together(self, clients: int, path: str, **how: Any) -> list[Reply]:
        """The same request by many clients at once, spread over the workers."""
        count = len(self.workers)
        return await asyncio.gather(*(self.workers[number % count].get(path, **how) for number in range(clients)))

    def metric(self, name: str, **labels: str) -> float:
        """As of RunningMirror, of all workers together."""
        return sum(worker.metric(name, **labels) for worker in self.workers)

    async def restart(self) -> None:
        """A clean stop of all, and a start."""
        await asyncio.gather(*(worker.stop() for worker in self.workers))
        for worker in self.workers:
            await worker.start()

    async def quiet(self) -> None:
        """Waits until no download is under way anywhere."""
        for worker in (self.other, self.owner):
            await worker.quiet()

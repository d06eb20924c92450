"""Several processes that serve as one: what they share is opened here, they are begun, watched, and summed up.

The supervisor answers no client. It keeps the store, has the admin port, and is gone only after the last worker.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import structlog

from mirror import allocator, log
from mirror.aggregate import Totals
from mirror.api.admin import AdminApi, State, admin_listener
from mirror.api.admission import places, share
from mirror.api.forwarded import Proxies
from mirror.api.middleware import Traffic
from mirror.config import Settings, pack, take_over
from mirror.crew import Crew, Tools
from mirror.metrics import Metrics
from mirror.process import raise_descriptor_limit, run
from mirror.sockets import Listening, bind, meeting_point, new_crowd
from mirror.store.files import Files
from mirror.store.keeper import Keeper

_log = structlog.get_logger()


class Supervisor:
    """One application in `slots` processes besides this one: build it, `start` it, `stop` it, as a `Mirror`.

    `turns`: see `Handover`.
    """

    def __init__(
        self, settings: Settings, slots: int, turns: int, *, metrics: Metrics | None = None, files: Files | None = None
    ) -> None:
        self.settings = self._begun = settings
        self.port = 0
        self.admin_port = 0
        self._slots = slots
        self._turns = turns
        self._metrics = metrics or Metrics()
        self._totals = Totals(self._metrics.registry)
        self._keeper = Keeper(settings.storage, self._metrics, files=files, workers=slots)
        self._crew: Crew | None = None
        self._draining = False
        self._port: list[Listening] = []
        self._stopping = asyncio.Lock()
        self._closing = AsyncExitStack()
        """What is to be let go of, in the reverse order of its making."""
        self._closing.push_async_callback(self._keeper.close)

    async def start(self) -> None:
        """Serves, with all workers. Raises StorageError where the data directory is not ours, OSError for a port, and
        ChildProcessError for a worker that cannot serve. A start that fails or is cancelled leaves nothing behind.
        """
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise
        self._metrics.start_time.set(time.time())
        _log.info(
            "serving",
            listen=str(self.settings.listen),
            port=self.port,
            admin_port=self.admin_port,
            max_connections=self._slots * places(share(self.settings.max_connections, self._slots)),
            workers=self._slots,
        )

    async def stop(self, *, drain: float = 0.0, grace: float = 0.0) -> None:
        """Has the workers leave as a `Mirror` does, then writes state out. Idempotent, also after half a start."""
        self._draining = True
        async with self._stopping:
            if self._crew is not None:
                closing = asyncio.get_running_loop().call_later(drain, self._close_port)
                await self._crew.stop(drain=drain, grace=grace)
                closing.cancel()
            self._close_port()
            await self._closing.aclose()

    async def reload(self, settings: Settings) -> list[str]:
        """Has all workers go on under another configuration, each as a `Mirror` does; returns what needs a restart."""
        # A worker that is begun later must find what was begun with, above all the data directory.
        settings, restart = take_over(self._begun, settings)
        self._keeper.adjust(settings.storage)
        if self._crew is not None:
            self._crew.reload(pack(settings))
        self.settings = settings
        return restart

    def hurry(self) -> None:
        """Cuts the waiting of a running `stop` short."""
        self._close_port()
        if self._crew is not None:
            self._crew.tell("hurry")

    async def _start(self) -> None:
        await self._keeper.open()
        self._keeper.begin()
        self._port = await bind(self.settings.listen)
        self.port = self._port[0].getsockname()[1]
        crowd = new_crowd()
        met = [meeting_point(slot, crowd) for slot in range(self._slots)]
        for each, _ in met:
            self._closing.callback(each.close)
        traffic = Traffic(self._metrics, Proxies(()))
        admin = admin_listener(AdminApi(self._scrape, self._state), self.settings.timeouts, self._metrics, traffic)
        self._closing.push_async_callback(admin.close)
        self.admin_port = await admin.open(self.settings.admin_listen)
        assert self._keeper.shared_fd is not None, "kept for no workers"
        tools = Tools(
            peers=[name for _, name in met],
            sockets=[one for one, _ in met],
            listening=list(self._port),
            shared=self._keeper.shared_fd,
            lock=lambda: self._keeper.lock_fd,
            turns=self._turns,
        )
        self._crew = Crew(tools, pack(self.settings), self._totals, self._metrics, admit=self._keeper.admit)
        await self._crew.start()

    def _close_port(self) -> None:
        """Lets go of the registry port: whoever comes when the last worker has let go of it is not left waiting."""
        sockets, self._port = self._port, []
        for each in sockets:
            each.close()

    async def _scrape(self) -> Totals:
        if self._crew is not None:
            await self._crew.report()
        return self._totals

    def _state(self) -> State:
        """Ready while one worker serves: the others' connections come to it."""
        serving = self._crew.serving if self._crew is not None else 0
        return State(
            ready=bool(serving) and not self._draining,
            draining=self._draining,
            degraded=self._keeper.reasons,
            workers={"serving": serving, "of": self._slots},
        )


def slots_of(settings: Settings, quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """How many processes serve: for 0 one for each CPU that we may use, also where a container has a share of them."""
    if settings.workers:
        return settings.workers
    cpus = len(os.sched_getaffinity(0))
    try:
        most, _, period = quota.read_text().partition(" ")
        return max(1, min(cpus, -(-int(most) // int(period))))
    except (OSError, ValueError):  # no such file, or "max": no limit
        return cpus


def serve(
    settings: Settings,
    slots: int,
    read: Callable[[], Settings] | None = None,
    *,
    watched: Path | None = None,
    files: Files | None = None,
) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit code. Raises StorageError and OSError where it cannot start.

    `read` gives the configuration again on SIGHUP, or raises ConfigError; without it, only what it names is read again.
    So does a change of `watched`, the configuration's file, or of a file that it names.
    """
    allocator.set_up()
    metrics = Metrics()
    turns = os.memfd_create("mirror-log")
    log.configure(level=settings.log_level, metrics_dropped=metrics.log_lines_dropped, turns=turns)
    raise_descriptor_limit()
    wanted = share(settings.max_connections, slots)
    if places(wanted) < wanted:
        _log.warning(
            "the limit on open files allows fewer connections",
            max_connections=settings.max_connections,
            connections=slots * places(wanted),
        )
    return asyncio.run(run(Supervisor(settings, slots, turns, metrics=metrics, files=files), read, watched=watched))

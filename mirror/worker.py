"""One of several processes that serve as one: given everything by its supervisor, and gone with it."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from typing import Any

import structlog

from mirror import allocator, log
from mirror.aggregate import report
from mirror.channel import Channel, ChannelClosed, Refused
from mirror.config import Settings, unpack
from mirror.crew import WORKERS_IGNORE
from mirror.handover import Handover
from mirror.metrics import Metrics
from mirror.oci.errors import MirrorError
from mirror.process import leave_hanging_threads_behind
from mirror.reloading import Reloading
from mirror.server import Mirror, Post
from mirror.sockets import Listening
from mirror.store.lodger import Lodger

_REPORT_SECONDS = 1.0
_LAST_REPORT_SECONDS = 2.0
_ORPHAN_SECONDS = 5.0
"""That transfers have left when the supervisor is gone: nobody else can have the data directory until we are, too."""
_log = structlog.get_logger()


def work(fd: int) -> int:
    """Serves with what was put down at `fd` until told to stop; returns the exit code."""
    for number in WORKERS_IGNORE:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, WORKERS_IGNORE)  # held back until now
    handover = Handover.pick_up(fd)
    settings = unpack(handover.settings)
    allocator.set_up()
    metrics = Metrics()
    log.configure(
        level=settings.log_level,
        metrics_dropped=metrics.log_lines_dropped,
        worker=handover.slot,
        turns=handover.turns,
    )
    try:
        return asyncio.run(_work(handover, settings, metrics))
    finally:
        log.close()


async def _work(handover: Handover, settings: Settings, metrics: Metrics) -> int:
    channel = Channel(socket.socket(fileno=handover.channel))
    code = await _Worker(handover, settings, metrics, channel).run()
    await channel.close()
    leave_hanging_threads_behind()
    return code


class _Worker:
    def __init__(self, handover: Handover, settings: Settings, metrics: Metrics, channel: Channel) -> None:
        self._metrics = metrics
        self._channel = channel
        self._stop = asyncio.Event()
        self._drain = self._grace = 0.0
        self._settings = settings
        """As the supervisor has last said."""
        store = Lodger(settings.storage, metrics, channel, handover.shared, handover.slot, len(handover.peers))
        post = Post(
            slot=handover.slot,
            peers=tuple(handover.peers),
            store=store,
            listening=[Listening(fileno=number) for number in handover.listening],
            asked=Listening(fileno=handover.asked),
        )
        self._mirror = Mirror(settings, metrics=metrics, post=post)
        self._reloading = Reloading(lambda: self._settings, self._adopt)
        handlers: dict[str, Callable[[Any], Any]] = {
            "stop": self._hear_stop,
            "settings": self._hear_settings,
            "hurry": lambda _: self._mirror.hurry(),
            "report": lambda _: self._report(),
        }
        for name, handler in handlers.items():
            channel.on(name, handler)
        channel.when_closed(self._be_orphaned)

    async def run(self) -> int:
        """Serves until told to stop; returns the exit code."""
        starting, stop = asyncio.create_task(self._mirror.start()), asyncio.create_task(self._stop.wait())
        await asyncio.wait((starting, stop), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.wait([starting])
            return 0
        try:
            await starting
        except (MirrorError, OSError, ValueError) as error:  # the last one is of files for TLS
            self._channel.tell("failed", str(error))
            stop.cancel()
            return 1
        self._channel.tell("serving", None)
        reporting = asyncio.create_task(self._report_for_ever(), name="report")
        reloading = asyncio.create_task(self._reloading.run(), name="reloading")
        await stop
        reloading.cancel()
        await asyncio.wait([reloading])
        await self._mirror.stop(drain=self._drain, grace=self._grace)
        reporting.cancel()
        await self._report_at_last()
        return 0

    def _hear_stop(self, said: Any) -> None:
        self._drain, self._grace = said
        self._stop.set()

    def _hear_settings(self, said: Any) -> None:
        self._settings = unpack(said)
        self._reloading.ask()

    async def _adopt(self, settings: Settings) -> list[str]:
        await self._mirror.reload(settings)
        return []  # the supervisor has named them

    def _be_orphaned(self) -> None:
        if not self._stop.is_set():
            _log.warning("the supervisor is gone; what is being sent has a moment to end", seconds=_ORPHAN_SECONDS)
        self._grace = self._grace if self._stop.is_set() else _ORPHAN_SECONDS
        self._stop.set()
        asyncio.get_running_loop().call_later(_ORPHAN_SECONDS, self._mirror.hurry)

    def _report(self) -> None:
        """Tells, also where it was asked: what it says is heard in the order in which it was counted."""
        self._channel.tell("report", report(self._metrics.registry))

    async def _report_for_ever(self) -> None:
        while True:
            await asyncio.sleep(_REPORT_SECONDS)
            self._report()

    async def _report_at_last(self) -> None:
        self._report()
        try:
            # Behind the report: when this is refused the other end has heard it.
            await self._channel.call("gone", None, _LAST_REPORT_SECONDS)
        except (TimeoutError, ChannelClosed, Refused):
            pass

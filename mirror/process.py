"""A process from its start to its end: how many files it may open, which signals it hears, when it may go."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import structlog

from mirror import __version__
from mirror.config import Settings, warnings
from mirror.reloading import Reloading
from mirror.watching import Watching, named_files

_MOST_DESCRIPTORS = 1 << 20
_HANGING_SECONDS = 5.0
_log = structlog.get_logger()


class Application(Protocol):
    """What serves in this process."""

    settings: Settings

    async def start(self) -> None:
        """Serves from then on."""

    async def stop(self, *, drain: float = 0.0, grace: float = 0.0) -> None:
        """Says that it is leaving for `drain` seconds, lets transfers run for `grace` seconds, and ends."""

    async def reload(self, settings: Settings) -> list[str]:
        """Goes on under another configuration; returns the keys that need a restart."""

    def hurry(self) -> None:
        """Cuts the waiting of a running `stop` short."""


async def run(
    application: Application, read: Callable[[], Settings] | None = None, *, watched: Path | None = None
) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit code. Raises what `start` raises.

    `read` gives the configuration again on SIGHUP, or raises ConfigError; without it, only what it names is read again.
    So does a change of `watched`, the configuration's file, or of a file that it names.
    """
    stopping = asyncio.Event()
    reloading = Reloading(read or (lambda: application.settings), application.reload)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    # A second Ctrl-C means now. A second SIGTERM does not: it may be the same one, sent to us and to our group.
    loop.add_signal_handler(signal.SIGINT, lambda: application.hurry() if stopping.is_set() else stopping.set())
    loop.add_signal_handler(signal.SIGHUP, reloading.ask)
    _log.info("starting", version=__version__, data=str(application.settings.storage.path))
    for doubt in warnings(application.settings):
        _log.warning("the configuration is hardly meant so", problem=doubt)
    starting, stop = asyncio.create_task(application.start()), asyncio.create_task(stopping.wait())
    await asyncio.wait((starting, stop), return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        await starting
        rereading = [asyncio.create_task(reloading.run(), name="reloading")]
        if watched is not None:
            watching = Watching(lambda: [watched, *named_files(application.settings)], reloading.ask)
            rereading.append(asyncio.create_task(watching.run(), name="watching"))
        await stop
        for task in rereading:
            task.cancel()
        await asyncio.wait(rereading)
        settings = application.settings
        _log.info("stopping", grace=settings.shutdown_grace)
        await application.stop(drain=settings.drain_delay, grace=settings.shutdown_grace)
    else:
        starting.cancel()
        await asyncio.wait([starting])
    _log.info("stopped")
    leave_hanging_threads_behind()
    return 0


def leave_hanging_threads_behind() -> None:
    """Everything is written: a thread that no disk and no name server ever answers does not keep the process."""
    timer = threading.Timer(_HANGING_SECONDS, os._exit, (0,))
    timer.daemon = True
    timer.start()


def raise_descriptor_limit() -> None:
    """The soft limit is low for the sake of programs that use select(); the hard one is what we may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
    if soft == resource.RLIM_INFINITY or soft >= most:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    except (OSError, ValueError):
        pass  # not ours to change; connections are then fewer

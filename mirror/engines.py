"""The engine in force, and those before it for as long as somebody needs them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog
from aiohttp import web

from mirror.api.middleware import Traffic
from mirror.cache import Cache
from mirror.config import Settings
from mirror.engine import Engine, Inheritance
from mirror.metrics import Metrics
from mirror.routing import Router

_LONGEST_SECONDS = 3600.0
"""How long an engine is kept for the last of its requests and downloads."""
_MOST_BEFORE = 8
"""Engines that are kept so; the oldest is given up for another one."""
_log = structlog.get_logger()


class Engines:
    """Answers by the newest configuration; what had begun under an earlier one ends as it began.

    `build` makes the engine of a configuration whose router it is given.
    """

    def __init__(
        self,
        settings: Settings,
        router: Router,
        inheritance: Inheritance,
        cache: Cache,
        traffic: Traffic,
        metrics: Metrics,
        build: Callable[[Settings, Router], Engine],
    ) -> None:
        self._inheritance = inheritance
        self._cache = cache
        self._traffic = traffic
        self._metrics = metrics
        self._build = build
        self._entries = frozenset(settings.upstreams)
        self.current = build(settings, router)
        self._before: dict[Engine, asyncio.Timeout] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        traffic.ready = self.current.ready

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Any request. Raises MirrorError, for what is around it to answer, and ClientGone."""
        return await self.current.handle(request)

    def adopt(self, settings: Settings) -> None:
        """Goes on under another configuration."""
        router = Router(settings)
        following = self._build(settings, router)
        before, self.current = self.current, following
        self._cache.router = router
        self._traffic.ready = following.ready
        self._inheritance.adopt(settings, router)
        self._forget_entries(frozenset(settings.upstreams))
        self._let_go_of(before)

    async def close(self) -> None:
        """Stops what is being asked, and closes every connection to an upstream; after the last download."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for engine in (*self._before, self.current):
            await engine.close()
        await self._inheritance.close()

    def _forget_entries(self, entries: frozenset[str]) -> None:
        """Of an upstream that is configured no longer, or otherwise, nobody shall be alarmed for ever."""
        self._metrics.credentials_rejected.clear()
        for entry in self._entries - entries:
            for gauge in (
                self._metrics.upstream_up,
                self._metrics.upstream_quota_remaining,
                self._metrics.upstream_quota_limit,
            ):
                try:
                    gauge.remove(entry)
                except KeyError:
                    pass  # it was never asked
        self._entries = entries

    def _let_go_of(self, engine: Engine) -> None:
        if len(self._before) >= _MOST_BEFORE:
            next(iter(self._before.values())).reschedule(asyncio.get_running_loop().time())
        self._before[engine] = limit = asyncio.timeout(_LONGEST_SECONDS)
        task = asyncio.create_task(self._close_in_time(engine, limit), name="engine before")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _close_in_time(self, engine: Engine, limit: asyncio.Timeout) -> None:
        try:
            async with limit:
                await engine.outlived()
        except TimeoutError:
            _log.warning("what began under an earlier configuration goes on for too long, and is ended")
        del self._before[engine]
        await engine.close()

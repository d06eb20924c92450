"""One call per key, however many ask at once; everyone hears the outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")


class SingleFlight:
    """Runs at most one call per key at a time. The call belongs to nobody: a caller that leaves does not stop it."""

    def __init__(self) -> None:
        self._running: dict[Hashable, asyncio.Task[Any]] = {}

    async def run(self, key: Hashable, call: Callable[[], Awaitable[T]]) -> T:
        """Awaits the running call for `key`, or starts `call`; returns its result or raises its error."""
        return await asyncio.shield(self.start(key, call))

    def start(self, key: Hashable, call: Callable[[], Awaitable[T]]) -> asyncio.Task[T]:
        """The running call for `key`, or a new one that nobody needs to await."""
        task = self._under_way(key)
        if task is None:
            task = self._running[key] = asyncio.create_task(_run(call))
            task.add_done_callback(lambda done: self._finish(key, done))
        return task

    def running(self, key: Hashable) -> bool:
        """Whether `start` would join a call now."""
        return self._under_way(key) is not None

    async def idle(self) -> None:
        """Waits until no call runs; raises nothing."""
        while self._running:
            await asyncio.wait(self._running.values())

    async def close(self) -> None:
        """Cancels what still runs and waits for its end."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _under_way(self, key: Hashable) -> asyncio.Task[Any] | None:
        task = self._running.get(key)
        return None if task is None or task.done() else task  # over, it may stand there until its callback has run

    def _finish(self, key: Hashable, task: asyncio.Task[Any]) -> None:
        if self._running.get(key) is task:
            del self._running[key]
        if not task.cancelled():
            task.exception()  # heard, even where every caller has left


async def _run(call: Callable[[], Awaitable[T]]) -> T:
    return await call()

"""Probes: requests that go on when whoever sent them waits no longer, so that nobody is kept by a host that hangs."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

from mirror.transport.response import Response


class Probes:
    """Owns the probes under way; breakers bound how many there are."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Response]] = set()

    async def run(self, exchange: Coroutine[None, None, Response], seconds: float) -> Response | None:
        """What `exchange` gives within so many seconds; None where it goes on without us. Raises what it raises."""
        task = asyncio.create_task(exchange, name="probe")
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        taken = False
        try:
            await asyncio.wait([task], timeout=seconds)
            taken = task.done()
            return task.result() if taken else None
        finally:
            if not taken:
                task.add_done_callback(_let_go)

    async def close(self) -> None:
        """Stops those under way."""
        tasks = list(self._running)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _let_go(task: asyncio.Task[Response]) -> None:
    """Nobody wants the answer: that there is one was all that mattered."""
    if not task.cancelled() and task.exception() is None:
        task.result().close()

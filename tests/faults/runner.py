"""Plays many rows at a time, in one event loop in a thread of its own, so that each can be a test of its own."""

from __future__ import annotations

import asyncio
import gc
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path

from tests.faults.grammar import Row
from tests.faults.judgement import judge
from tests.faults.pulse import Pulse
from tests.faults.scene import Scene, Story

_PLAYS = 3
AT_ONCE = 16
"""Most rows wait for a time limit most of the time; more of them would have healthy upstreams miss one."""


async def play_all(
    rows: Iterable[Row], told: Callable[[Row, Story | BaseException], None], *, workers: int = 1
) -> list[str]:
    """Plays the rows in order, AT_ONCE mirrors at a time; `told` hears of each what came of it.

    Returns what the event loop complained of: exceptions that nobody heard, tasks that nobody awaited.
    """
    slots = asyncio.Semaphore(AT_ONCE // workers)
    complaints: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(str(context)))

    pulse = Pulse()

    async def one(row: Row) -> None:
        async with slots:
            try:
                told(row, await _play(row, pulse, workers))
            except Exception as error:
                told(row, error)

    beating = asyncio.create_task(pulse.beat())
    try:
        async with asyncio.TaskGroup() as group:
            for row in rows:
                group.create_task(one(row))
    finally:
        beating.cancel()
    gc.collect()
    return complaints


async def _play(row: Row, pulse: Pulse, workers: int) -> Story:
    """Plays a row; again, a few times, where it went wrong while the machine stood still."""
    for left in reversed(range(_PLAYS)):
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="mirror-fault-") as folder:
            story = await Scene(row, Path(folder) / "data", workers=workers).play()
        if not left or pulse.steady_since(began) or not judge(story):
            break
    return story


class Runner:
    """Begins to play its rows when it is made; `story` waits for one of them."""

    def __init__(self, rows: Iterable[Row], *, workers: int = 1) -> None:
        self._workers = workers
        self._stories: dict[Row, Future[Story]] = {row: Future() for row in rows}
        self._complaints: Future[list[str]] = Future()
        self._loop: asyncio.AbstractEventLoop
        self._over: asyncio.Event
        self._begun = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._play()), name="faults")
        self._thread.start()
        self._begun.wait()

    def story(self, row: Row, limit: float) -> Story:
        """What came of a row; raises what went wrong in the test itself, TimeoutError after so many seconds."""
        return self._stories[row].result(limit)

    def complaints(self, limit: float) -> list[str]:
        """What the event loop complained of, when all rows are over."""
        return self._complaints.result(limit)

    def end(self) -> None:
        """Plays no further row, and ends those that are being played."""
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    async def _play(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        playing = asyncio.create_task(play_all(self._stories, self._told, workers=self._workers))
        playing.add_done_callback(lambda _: self._note_complaints(playing))
        self._begun.set()
        await self._over.wait()
        playing.cancel()
        await asyncio.wait([playing])

    def _note_complaints(self, playing: asyncio.Task[list[str]]) -> None:
        if not playing.cancelled():
            self._complaints.set_result(playing.result())

    def _told(self, row: Row, outcome: Story | BaseException) -> None:
        future = self._stories[row]
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

"""Rests: a long piece of work in a thread leaves the interpreter to those who serve."""

from __future__ import annotations

import time
from collections.abc import Callable

_TURN = 0.001
"""CPU seconds of work between two rests: for so long others may wait for the interpreter."""
_SHARE = 1 / 3
"""Of a core, at most. Time spent waiting for the disk takes nothing from anybody, and does not count."""


class Rests:
    """For one thread; `step` is called often. There are none while `hurried`, because a client waits for the work."""

    def __init__(
        self,
        hurried: Callable[[], bool],
        *,
        worked: Callable[[], float] = time.thread_time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._hurried = hurried
        self._worked = worked
        self._sleep = sleep
        self._since = worked()

    def step(self) -> None:
        """Rests where it is time to."""
        worked = self._worked() - self._since
        if worked < _TURN:
            return
        if not self._hurried():
            self._sleep(worked * (1 / _SHARE - 1))
        self._since = self._worked()

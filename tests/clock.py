"""A wall clock that a test moves; the monotonic one, which time limits are measured on, stays as it is."""

from __future__ import annotations

import time


class Clock:
    """Unix time, ahead of the real one by `offset` seconds. Pass it as `clock=` to a mirror."""

    def __init__(self) -> None:
        self.offset = 0.0

    def __call__(self) -> float:
        return time.time() + self.offset

    def forward(self, seconds: float) -> None:
        """Lets so much time pass (negative: somebody sets the clock back)."""
        self.offset += seconds


class StoppedClock(Clock):
    """One that stands still until it is moved: no test that uses it depends on how long anything takes."""

    def __init__(self) -> None:
        super().__init__()
        self._start = time.time()

    def __call__(self) -> float:
        return self._start + self.offset

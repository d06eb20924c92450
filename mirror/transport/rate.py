"""The rate under which a body is too slow: a trickle defeats every timer that only waits for the next byte."""

from __future__ import annotations

from collections import deque

_STEPS = 8


class MinimumRate:
    """Watches bytes per second over a window of waiting time that slides in steps of an eighth."""

    def __init__(self, least: int, window: float) -> None:
        """`least` in bytes per second, `window` in seconds."""
        self._least = least
        self._window = window
        self._steps: deque[tuple[float, int]] = deque()
        self._waited = self._step_waited = 0.0
        self._bytes = self._step_bytes = 0

    def too_slow(self, waited: float, arrived: int) -> bool:
        """Counts `arrived` bytes after `waited` seconds; True once a full window held less than `least` per second."""
        self._step_waited += waited
        self._step_bytes += arrived
        if self._step_waited < self._window / _STEPS:
            return False
        self._steps.append((self._step_waited, self._step_bytes))
        self._waited += self._step_waited
        self._bytes += self._step_bytes
        self._step_waited, self._step_bytes = 0.0, 0
        if self._waited < self._window:
            return False
        slow = self._bytes < self._least * self._waited
        while self._waited >= self._window:
            oldest_waited, oldest_bytes = self._steps.popleft()
            self._waited -= oldest_waited
            self._bytes -= oldest_bytes
        return slow

"""Long work leaves the interpreter to others: in short turns, for most of the time, unless somebody waits for it."""

from __future__ import annotations

from collections.abc import Callable

from mirror.store.rests import Rests


class Shift:
    """A thread that works a tenth of a millisecond at a time, and notes when it rests."""

    def __init__(self, hurried: Callable[[], bool]) -> None:
        self.worked = 0.0
        self.turns: list[float] = []
        self.rested = 0.0
        self._began = 0.0
        self._rests = Rests(hurried, worked=lambda: self.worked, sleep=self._rest)

    def work(self, pieces: int) -> None:
        for _ in range(pieces):
            self.worked += 0.0001
            self._rests.step()

    def _rest(self, seconds: float) -> None:
        self.turns.append(self.worked - self._began)
        self._began = self.worked
        self.rested += seconds


def test_work_comes_in_short_turns_with_long_rests() -> None:
    """Nobody waits longer than some milliseconds for the interpreter, and two thirds of the time is theirs."""
    shift = Shift(lambda: False)

    shift.work(1000)

    assert max(shift.turns) < 0.002
    assert shift.rested > 1.9 * sum(shift.turns)
    assert sum(shift.turns) > 0.09


def test_work_that_somebody_waits_for_does_not_rest() -> None:
    """As long as that lasts."""
    waiting = True
    shift = Shift(lambda: waiting)

    shift.work(500)
    assert shift.rested == 0

    waiting = False
    shift.work(500)
    assert shift.rested > 0


def test_waiting_for_the_disk_is_no_work() -> None:
    """Only CPU time counts: a slow disk takes the interpreter from nobody."""
    shift = Shift(lambda: False)

    for _ in range(1000):
        shift.work(0)

    assert shift.turns == []

"""`mirror serve` that kills itself at a chosen call to the disk: `python -m tests.crash.dying CONFIG MOMENT`."""

from __future__ import annotations

import os
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from mirror.config import load
from mirror.server import serve
from tests.faulty import FaultyFiles


@dataclass(frozen=True, slots=True)
class Moment:
    """The `number`th call of `method` on a path that `part` is a part of, counted from 1; before it, or `after`."""

    method: str
    part: str
    number: int
    after: bool

    def __str__(self) -> str:
        return f"{self.method} {self.part} {self.number} {'after' if self.after else 'before'}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The opposite of `str`."""
        method, part, number, when = text.split(" ")
        return cls(method, part, int(number), when == "after")


class DyingFiles(FaultyFiles):
    """The real disk, until the moment comes."""

    def __init__(self, moment: Moment) -> None:
        super().__init__()
        self._moment = moment
        self._left = moment.number
        self._counting = threading.Lock()

    def _before(self, method: str, path: Path | None) -> None:
        if not self._moment.after:
            self._live_on(method, path)

    def _after(self, method: str, path: Path | None) -> None:
        if self._moment.after:
            self._live_on(method, path)

    def _live_on(self, method: str, path: Path | None) -> None:
        if method != self._moment.method or self._moment.part not in str(path):
            return
        with self._counting:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(serve(load(Path(sys.argv[1]), {}), files=DyingFiles(Moment.parse(sys.argv[2]))))

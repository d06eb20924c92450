"""What became of the requests of the long run: counted by what was asked and how it ended, the worst ones in words."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

_EXAMPLES = 20


class Outcome(StrEnum):
    """How a request ended; those after LEFT must not happen."""

    RIGHT = "right"
    REFUSED = "refused"
    """429 or 5xx in the specification's words: the upstream is in trouble and we have no copy."""
    CUT = "cut"
    """An answer that visibly ended early."""
    UNPROMISED = "unpromised"
    """A part of a blob that is not verified yet came with the upstream's wrong bytes."""
    LEFT = "left"
    """The client left in the middle; what it had was right."""
    WRONG = "wrong"
    """An answer that looks whole and is not what was asked for."""
    BACK = "back"
    """A tag meant something older than it had meant before."""
    ODD = "odd"
    """A status that nothing here explains."""
    LATE = "late"
    """No end in a time in which there has to be one."""
    UNREACHABLE = "unreachable"
    """The mirror itself did not accept the connection."""


FORBIDDEN = (Outcome.WRONG, Outcome.BACK, Outcome.ODD, Outcome.LATE, Outcome.UNREACHABLE)


@dataclass
class Tally:
    """The counts; `examples` are some of the outcomes that must not happen."""

    counts: Counter[tuple[str, Outcome]] = field(default_factory=Counter)
    read: int = 0
    """Body bytes that came."""
    examples: list[str] = field(default_factory=list)

    def note(self, what: str, outcome: Outcome, words: str = "") -> None:
        """One more request has ended."""
        self.counts[what, outcome] += 1
        if outcome in FORBIDDEN and len(self.examples) < _EXAMPLES:
            self.examples.append(f"{outcome}: {what}: {words}")

    def of(self, outcome: Outcome) -> int:
        """How many requests ended so."""
        return sum(count for (_, ended), count in self.counts.items() if ended == outcome)

    @property
    def total(self) -> int:
        """All requests that have ended."""
        return self.counts.total()

    def by_kind(self) -> dict[str, dict[Outcome, int]]:
        """The counts as a table: what was asked, then how it ended."""
        table: dict[str, dict[Outcome, int]] = {}
        for (what, outcome), count in sorted(self.counts.items()):
            table.setdefault(what, {})[outcome] = count
        return table

    def save(self, file: Path) -> None:
        """Writes it for `load`, whole or not at all."""
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps({"counts": self.by_kind(), "read": self.read, "examples": self.examples}))
        partial.replace(file)

    @classmethod
    def load(cls, file: Path) -> Tally:
        """What `save` wrote."""
        found = json.loads(file.read_text())
        counts = Counter(
            {(what, Outcome(name)): count for what, ends in found["counts"].items() for name, count in ends.items()}
        )
        return cls(counts, found["read"], found["examples"])

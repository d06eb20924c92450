"""Which part of a store is one process's own, where several share it."""

from __future__ import annotations

from dataclasses import dataclass, field

from mirror.store.ledger import Ledger
from mirror.store.owners import owner_of


@dataclass(frozen=True)
class Part:
    """Without arguments: all of it, for who is alone.

    Who keeps the store for `slots` workers has `slot` None, and no spools; each worker has those from the upstreams
    that are its to ask. A process that is started again in a slot has the same part.
    """

    ledger: Ledger = field(default_factory=Ledger)
    slots: int = 0
    slot: int | None = None

    @property
    def keeps(self) -> bool:
        """Whether what no worker has is ours."""
        return self.slot is None

    @property
    def name(self) -> str:
        """What tells the files that each process has for itself from those of the others."""
        return "" if self.slot is None else f".{self.slot}"

    def owns(self, origin: str) -> bool:
        """Whether spools with bytes from there are ours; '' stands for those that do not tell."""
        if self.slots == 0 or not origin:
            return self.keeps
        return owner_of(origin, self.slots) == self.slot

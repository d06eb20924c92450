"""Which of several processes asks an upstream host, fetches from it, and takes up what was left of that; pure."""

from __future__ import annotations

import hashlib


def owner_of(origin: str, slots: int) -> int:
    """The slot, from 0 on, of the worker that alone asks the host of this origin (`spools.origin_of`).

    The highest of one hash for each slot: everybody finds the same, and one slot more takes its share of the origins
    from the others without moving any between them.
    """
    return max(range(slots), key=lambda slot: hashlib.sha256(f"{slot} {origin}".encode()).digest())

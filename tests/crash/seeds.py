"""Which seeds a run uses, and how many: the same few in every run of the tests, many others by `make crash-all`."""

from __future__ import annotations

import os
import secrets

KILLS = int(os.environ.get("CRASH_KILLS", "40"))
CUTS = int(os.environ.get("CRASH_CUTS", "30"))
_ONE = os.environ.get("CRASH_SEED")
_FIRST = secrets.randbelow(1_000_000) if "CRASH_KILLS" in os.environ else 1


def seeds(count: int) -> list[int]:
    """`count` seeds; only the one of CRASH_SEED where that is set."""
    return [int(_ONE)] if _ONE else list(range(_FIRST, _FIRST + count))

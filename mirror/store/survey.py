"""A survey of the blobs: which of them somebody wants to hear of, and when each was used last."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from mirror.oci.digest import Digest
from mirror.store.shelves import BlobEntry

_WRITTEN = 1_700_000_000.0
"""Seconds since the epoch: when this was written, roughly."""


class Audience(Protocol):
    """Who looks on: is offered each blob that was used before `until`, in seconds since the epoch."""

    until: float

    def offer(self, entry: BlobEntry) -> None:
        """Considers a blob."""


class Everyone:
    """All blobs."""

    def __init__(self) -> None:
        self.until = math.inf
        self.entries: list[BlobEntry] = []

    def offer(self, entry: BlobEntry) -> None:
        """Takes it."""
        self.entries.append(entry)


class Guide:
    """Offers to an audience what Shelves.scan shows, with the later of the file's time and the use noted in memory.

    A time that has not come yet is from before the clock was set back: it would keep the blob younger than those that
    are in use, so it becomes now. A clock that says less than `_WRITTEN` has not been set yet, and counts not.
    """

    def __init__(
        self,
        audience: Audience,
        uses: Mapping[Digest, float],
        put_right: Callable[[dict[Digest, float]], None],
        clock: float,
    ) -> None:
        """`put_right` writes times of use, and may raise OSError."""
        self.until = audience.until
        self.now = float(int(clock)) + 1 if clock > _WRITTEN else math.inf
        self._audience = audience
        self._uses = uses
        self._put_right = put_right

    def look(self, entry: BlobEntry) -> None:
        """At one that the audience may want, or whose time has to be put right."""
        used_at = max(entry.used_at, self._uses.get(entry.digest, 0.0))
        if entry.used_at > self.now:
            used_at = self.now - 1
            with suppress(OSError):  # then the next survey does it
                self._put_right({entry.digest: used_at})
        self._audience.offer(entry if used_at == entry.used_at else replace(entry, used_at=used_at))
        self.until = self._audience.until

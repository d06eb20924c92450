"""Who must go: a pure choice among what the scan saw."""

from __future__ import annotations

import heapq
import math

from mirror.store.shelves import BlobEntry

MOST = 20_000


class Oldest:
    """The least recently used blobs that together hold at least `need` bytes, out of any number offered.

    Memory is bounded by `most` victims, whatever the cache holds: a max-heap by time of use lets the youngest go as
    soon as the rest suffice. Where `most` do not suffice they are the oldest of all, and the next scan finds the next.
    """

    def __init__(self, need: int, most: int = MOST) -> None:
        self.until = math.inf if need > 0 else -math.inf
        """Blobs that were used at this time or later (seconds since the epoch) need not be offered."""
        self._need = need
        self._most = most
        self._heap: list[tuple[float, str, BlobEntry]] = []
        self._bytes = 0

    def offer(self, entry: BlobEntry) -> None:
        """Considers a blob."""
        if entry.used_at >= self.until:
            return
        heapq.heappush(self._heap, (-entry.used_at, entry.digest.hex, entry))
        self._bytes += entry.size
        while self._heap and (self._bytes - self._heap[0][2].size >= self._need or len(self._heap) > self._most):
            self._bytes -= heapq.heappop(self._heap)[2].size
        if self._heap and (self._bytes >= self._need or len(self._heap) >= self._most):
            self.until = -self._heap[0][0]

    def chosen(self) -> list[BlobEntry]:
        """The victims, the least recently used first."""
        return [entry for _, _, entry in sorted(self._heap, reverse=True)]

"""Who must go: a pure choice among what the scan saw."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable

from mirror.oci.digest import Digest
from mirror.store.shelves import BlobEntry

MOST = 60_000
_ALGORITHMS = {64: "sha256", 128: "sha512"}
_Row = tuple[float, int, int, int]
"""Time of use, negated; the digest as a number; its hex digits; bytes. Nothing that the garbage collector would have to
go through: it would keep everybody waiting for as long as it takes over so many."""


class Victims:
    """Those chosen, each once, the least recently used first."""

    def __init__(self, rows: Iterable[_Row] = ()) -> None:
        # A heap: to sort them all would take the interpreter from everybody for as long as that takes.
        self._rows = [(-negated, -number, digits, size) for negated, number, digits, size in rows]
        heapq.heapify(self._rows)

    def __iter__(self) -> Victims:
        return self

    def __next__(self) -> BlobEntry:
        if not self._rows:
            raise StopIteration
        used_at, negated, digits, size = heapq.heappop(self._rows)
        return BlobEntry(Digest(_ALGORITHMS[digits], f"{-negated:0{digits}x}"), size, used_at)

    def __len__(self) -> int:
        return len(self._rows)


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
        self._heap: list[_Row] = []
        self._bytes = 0

    def offer(self, entry: BlobEntry) -> None:
        """Considers a blob."""
        if entry.used_at >= self.until:
            return
        hex_digits = entry.digest.hex
        heapq.heappush(self._heap, (-entry.used_at, int(hex_digits, 16), len(hex_digits), entry.size))
        self._bytes += entry.size
        while self._heap and (self._bytes - self._heap[0][3] >= self._need or len(self._heap) > self._most):
            self._bytes -= heapq.heappop(self._heap)[3]
        if self._heap and (self._bytes >= self._need or len(self._heap) >= self._most):
            self.until = -self._heap[0][0]

    def chosen(self) -> Victims:
        """The victims so far."""
        return Victims(self._heap)

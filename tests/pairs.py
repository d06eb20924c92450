"""Choosing few rows of a table, so that whatever can go together in twos still does."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from itertools import combinations

Row = tuple[str, ...]
Pair = tuple[tuple[int, str], tuple[int, str]]
"""Two columns' values in one row."""


def pairs(row: Row) -> set[Pair]:
    """Every two values of a row, each with its column."""
    return set(combinations(enumerate(row), 2))


def pairwise(rows: Iterable[Row]) -> list[Row]:
    """A part of `rows` in which each pair occurs that occurs in any of them; which part depends on `rows` alone.

    What two columns have to do with each other fails in a pair of values; what takes three is rare enough to leave out.
    Each row chosen is the first of those that hold the most pairs not yet held.
    """
    left = [(row, pairs(row)) for row in rows]
    wanted = set[Pair]().union(*(held for _, held in left))
    # A row's worth only ever sinks: who is still worth what it was when it was last looked at, and came first, is best.
    queue = [(-len(held), number) for number, (_, held) in enumerate(left)]
    heapq.heapify(queue)
    chosen = []
    while wanted:
        _, number = heapq.heappop(queue)
        row, held = left[number]
        worth = (-len(held & wanted), number)
        if queue and worth > queue[0]:
            heapq.heappush(queue, worth)
            continue
        chosen.append(row)
        wanted -= held
    return chosen

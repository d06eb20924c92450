"""Choosing few rows of a table, so that whatever can go together in twos still does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
    """
    left: Sequence[Row] = list(rows)
    wanted = set[Pair]().union(*map(pairs, left))
    chosen = []
    while wanted:
        best = max(left, key=lambda row: len(pairs(row) & wanted))
        chosen.append(best)
        wanted -= pairs(best)
    return chosen

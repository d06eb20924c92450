"""Deletions that the database has not heard of, by which process they were: for everybody they count already."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from mirror.store.database import Key


class Deletions:
    """Ours, in the order in which they were asked for, and those that other processes have told of."""

    def __init__(self) -> None:
        self.tell: Callable[[Key, bool], object] = lambda _key, _undone: None
        """Hears of ours that were not done at once (True), and when they are (False)."""
        self._ours: dict[Key, None] = {}
        self._told: set[Key] = set()
        self._others: set[Key] = set()

    def __contains__(self, key: Key) -> bool:
        """Whether the record counts as gone, whatever the database says."""
        return key in self._ours or key in self._others

    def __iter__(self) -> Iterator[Key]:
        """Ours as they are now; they may change meanwhile."""
        return iter(list(self._ours))

    def __len__(self) -> int:
        """How many of ours there are."""
        return len(self._ours)

    def begin(self, key: Key) -> None:
        """The record is to go."""
        self._ours[key] = None

    def failed(self, key: Key) -> None:
        """The database did not hear of it."""
        if key in self._ours and key not in self._told:
            self._told.add(key)
            self.tell(key, True)

    def done(self, key: Key) -> None:
        """It has, or the record was written anew."""
        self._ours.pop(key, None)
        if key in self._told:
            self._told.discard(key)
            self.tell(key, False)

    def clear(self) -> None:
        """Nothing is left of what was to be deleted."""
        for key in list(self._ours):
            self.done(key)

    def adopt(self, keys: Iterable[Key]) -> None:
        """An earlier process in our place had told of these: they are ours now."""
        for key in keys:
            self._ours[key] = None
            self._told.add(key)

    def hear(self, key: Key, *, undone: bool) -> None:
        """Another process tells of one of its own."""
        if undone:
            self._others.add(key)
        else:
            self._others.discard(key)

"""Room on the disk for what is fetched: asked for before a fill begins, and given back when it is over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Reservation:
    """Room promised to one fill until `end`."""

    def __init__(self, size: int, ended: Callable[[Reservation], None]) -> None:
        self.size = size
        """Bytes promised."""
        self._written = 0
        self._ended = ended

    @property
    def written(self) -> int:
        """Bytes of it that are on the disk already, and so missing from the free space."""
        return self._written

    @written.setter
    def written(self, written: int) -> None:
        self._written = written

    def end(self) -> None:
        """The fill became a blob, or left nothing behind."""
        self._ended(self)


class Room(Protocol):
    """Who gives room: the budget itself, or its voice in another process."""

    async def reserve(self, size: int) -> Reservation | None:
        """Room for a blob of `size` bytes, made by eviction if need be; None where it must pass through. Bounded."""

    async def extend(self, reservation: Reservation, size: int) -> bool:
        """Enlarges a reservation to `size` bytes; False where it may not."""

    async def make_room(self, need: int, reason: str) -> int:
        """Evicts the least recently used blobs of together at least `need` bytes; returns what was freed.

        Raises StorageError.
        """


class Holder(Protocol):
    """Who has spools of an earlier process, which take room until they are resumed or dropped."""

    @property
    def left_over(self) -> int:
        """Their bytes."""

    async def drop_leftovers(self, need: int) -> int:
        """Removes some of together `need` bytes, if there are as many; returns what was freed."""

"""Whether a copy in memory is still what the disk has, seen by every process that shares the records at once."""

from __future__ import annotations

import mmap
import os
import random
import zlib
from collections.abc import Iterable
from typing import NamedTuple

from mirror.store.database import Key

_SLOTS = 4096
_SLOT_BYTES = 8
SIZE = _SLOTS * _SLOT_BYTES
"""Bytes of the memory that processes share."""


class Stamp(NamedTuple):
    """What a group of records had when one of them was read or written."""

    slot: int
    value: int


class Generations:
    """A number for each of 4,096 groups of records, and a new one whenever a record of the group changes.

    A stamp is taken before a record is read, and its group gets a new number after a record was written: whoever read
    what was there before has a stamp that is not current any more. Numbers are random and not counted up: two processes
    that change a group at the same time cannot end at a number that a third one knows.
    """

    def __init__(self, fd: int | None = None) -> None:
        """`fd`: memory of `SIZE` bytes that is shared, see `share`; None: this process is alone."""
        self.shared = fd is not None
        """Whether other processes may hold copies, too."""
        self._map = mmap.mmap(-1 if fd is None else fd, SIZE)
        self._values = memoryview(self._map).cast("Q")
        self._random = random.Random(os.urandom(16))  # noqa: S311 - to differ, not to be kept secret
        self._begun = [0] * _SLOTS
        """How many changes of this process have begun."""

    @staticmethod
    def share() -> int:
        """A descriptor of memory for several processes. It is in no file system: no disk can take it away."""
        fd = os.memfd_create("mirror-generations")
        os.ftruncate(fd, SIZE)
        return fd

    def stamp(self, key: Key) -> Stamp:
        """The present stamp of the record's group; to be taken before the record is read."""
        slot = _slot(key)
        return Stamp(slot, self._values[slot])

    def is_current(self, stamp: Stamp) -> bool:
        """Whether no record of the group has changed since."""
        return self._values[stamp.slot] == stamp.value

    def changed(self, slot: int) -> Stamp:
        """A record of the group was written or deleted: every older stamp is outdated from now on."""
        value = self._random.getrandbits(64)
        self._values[slot] = value
        return Stamp(slot, value)

    def begins(self, key: Key) -> None:
        """The record is being changed: in this process that counts at once, whenever the disk has it, if ever."""
        self._begun[_slot(key)] += 1

    def tell(self, before: Stamp) -> Stamp | None:
        """A record of the group was written or deleted by who had `before` then: what its own copy is good by from now
        on. None where the group has changed meanwhile, perhaps by somebody who wrote the same record: only the disk
        knows who was last.
        """
        ours = self.is_current(before)
        now = self.changed(before.slot)
        return now if ours else None

    def watch(self, keys: Iterable[Key]) -> Watch:
        """Tells of these records whether they have changed since; to be taken before they are read."""
        return Watch(self._values, self._begun, [_slot(key) for key in keys])


class Watch:
    """Some records as they were when it was made, for who has made something of them."""

    __slots__ = ("_begun", "_seen", "_values")

    def __init__(self, values: memoryview[int], begun: list[int], slots: list[int]) -> None:
        self._values = values
        self._begun = begun
        self._seen = [(slot, values[slot], begun[slot]) for slot in slots]

    def holds(self) -> bool:
        """Whether none of them has changed, in any process, nor is about to in this one."""
        values, begun = self._values, self._begun
        for slot, value, changes in self._seen:  # noqa: SIM110 - a generator would cost more than all the rest
            if values[slot] != value or begun[slot] != changes:
                return False
        return True


def _slot(key: Key) -> int:
    return zlib.crc32("\0".join(key).encode("utf-8", "surrogatepass")) % _SLOTS

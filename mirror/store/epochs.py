"""Epochs: what a repository showed us before it refused us does not count afterwards."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace

import msgspec

from mirror.memory import Bounded
from mirror.store.database import Key
from mirror.store.generations import Generations, Stamp
from mirror.store.records import Records
from mirror.store.typed import TypedRecords

_IN_MEMORY = 100_000


class EpochRecord(msgspec.Struct, frozen=True, array_like=True):
    """The number of a repository's present epoch, never used before; there is none where nothing is noted."""

    number: int


@dataclass(frozen=True, slots=True)
class _Epoch:
    number: int
    written: bool
    stamp: Stamp


class Epochs:
    """The present epoch of each repository, by a key that names it. Losing a number ends an epoch."""

    def __init__(self, records: Records, *, useful_for: float, generations: Generations | None = None) -> None:
        """`useful_for`: seconds for which a number is kept after it was last written."""
        self._records = records
        self._generations = generations or Generations()
        self._names = TypedRecords(records)
        self._useful_for = useful_for
        self._present: Bounded[Key, _Epoch] = Bounded(_IN_MEMORY)

    async def number(self, repository: Key) -> int:
        """The number of the present epoch."""
        return (await self._epoch(repository)).number

    async def end(self, repository: Key) -> None:
        """Begins a new epoch."""
        ended = await self._epoch(repository)
        self._generations.begins(epoch_key(repository))
        new = _new(ended.stamp)
        self._present.set(repository, new)
        if ended.written:
            await self._records.delete(epoch_key(repository))
        # Others may have made up numbers of their own meanwhile: only another one on the disk ends those.
        if not self._generations.shared or not await self.write(repository, new.number):
            self._tell(repository, ended.stamp)

    async def stands(self, repository: Key, number: int) -> bool:
        """Whether what was asked in this epoch may be noted; then its number is written down, too."""
        epoch = await self._epoch(repository)
        if epoch.number != number:
            return False
        if not epoch.written:
            await self.write(repository, number)
        return True

    async def write(self, repository: Key, number: int) -> bool:
        """Writes the number down, unless its epoch has ended: what is noted in it must find it again.

        Returns whether it was written.
        """
        known = self._present.get(repository)
        if known is None or known.number != number:
            return False
        self._present.set(repository, _Epoch(number, True, known.stamp))
        value = msgspec.msgpack.encode(EpochRecord(number))
        written = await self._records.set(epoch_key(repository), value, self._useful_for)
        if written:
            self._tell(repository, known.stamp)
        return written

    async def _epoch(self, repository: Key) -> _Epoch:
        known = self._present.get(repository)
        while known is None or not self._generations.is_current(known.stamp):
            before, stamp = known, self._generations.stamp(epoch_key(repository))
            record = await self._names.read(epoch_key(repository), EpochRecord)
            known = self._present.get(repository)
            if known is not before:
                continue  # another request was faster
            if record is not None:
                known = _Epoch(record.number, True, stamp)
            elif known is None or known.written:  # it is gone from the disk: another process has ended it
                known = _new(stamp)
            else:
                known = _Epoch(known.number, False, stamp)
            self._present.set(repository, known)
        return known

    def _tell(self, repository: Key, before: Stamp) -> None:
        """Has other processes read the number anew; this one too where its own is not good any more."""
        now = self._generations.tell(before)
        known = self._present.get(repository)
        if now is not None and known is not None and known.stamp == before:
            self._present.set(repository, replace(known, stamp=now))


def epoch_key(repository: Key) -> Key:
    """The key of the record."""
    return ("epoch", *repository)


def _new(stamp: Stamp) -> _Epoch:
    return _Epoch(secrets.randbits(62), False, stamp)

"""Epochs: what a repository showed us before it refused us does not count afterwards."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import msgspec

from mirror.memory import Bounded
from mirror.store.database import Key
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


class Epochs:
    """The present epoch of each repository, by a key that names it. Losing a number ends an epoch."""

    def __init__(self, records: Records, *, useful_for: float) -> None:
        """`useful_for`: seconds for which a number is kept after it was last written."""
        self._records = records
        self._names = TypedRecords(records)
        self._useful_for = useful_for
        self._present: Bounded[Key, _Epoch] = Bounded(_IN_MEMORY)

    async def number(self, repository: Key) -> int:
        """The number of the present epoch."""
        return (await self._epoch(repository)).number

    async def end(self, repository: Key) -> None:
        """Begins a new epoch."""
        ended = await self._epoch(repository)
        self._present.set(repository, _new())
        if ended.written:
            await self._records.delete(_key(repository))

    async def stands(self, repository: Key, number: int) -> bool:
        """Whether what was asked in this epoch may be noted; then its number is written down, too."""
        epoch = await self._epoch(repository)
        if epoch.number != number:
            return False
        if not epoch.written:
            await self.write(repository, number)
        return True

    async def write(self, repository: Key, number: int) -> None:
        """Writes the number down, unless its epoch has ended: what is noted in it must find it again."""
        known = self._present.get(repository)
        if known is None or known.number != number:
            return
        self._present.set(repository, _Epoch(number, written=True))
        await self._records.set(_key(repository), msgspec.msgpack.encode(EpochRecord(number)), self._useful_for)

    async def _epoch(self, repository: Key) -> _Epoch:
        known = self._present.get(repository)
        if known is None:
            record = await self._names.read(_key(repository), EpochRecord)
            known = self._present.get(repository)  # another request may have been faster
            if known is None:
                known = _new() if record is None else _Epoch(record.number, written=True)
                self._present.set(repository, known)
        return known


def _key(repository: Key) -> Key:
    return ("epoch", *repository)


def _new() -> _Epoch:
    return _Epoch(secrets.randbits(62), written=False)

"""Named records with a shape, and a memory copy in front of the disk."""

from __future__ import annotations

import math
import time
from typing import TypeVar

import msgspec

from mirror.memory import Memory
from mirror.store.database import Key
from mirror.store.generations import Generations, Stamp
from mirror.store.records import Records

R = TypeVar("R", bound=msgspec.Struct)

_IN_MEMORY = 3600.0


class Copy:
    """A record in memory, good while `stamp` is current, and until `ends`, in seconds since the epoch.

    None stands for none: the disk had none, or has not heard yet that it was deleted, locked or read-only as it may be.
    """

    __slots__ = ("ends", "record", "stamp")

    def __init__(self, record: msgspec.Struct | None, stamp: Stamp, ends: float = math.inf) -> None:
        self.record = record
        self.stamp = stamp
        self.ends = ends


class TypedRecords:
    """Reads and writes records of given shapes; what does not fit its shape is as good as not there.

    A change counts from the moment it is asked for, before the disk has heard of it; for other processes that share the
    generations, as soon as it has.
    """

    def __init__(
        self, records: Records, memory: Memory | None = None, *, generations: Generations | None = None
    ) -> None:
        """`memory` holds `Copy` objects."""
        self._records = records
        self._memory = memory or Memory()
        self._generations = generations or Generations()
        self._changes = 0

    async def get(self, key: Key, shape: type[R]) -> R | None:
        """The record, from memory if it is there."""
        held = await self._held(key)
        if held is None or (held.record is not None and not isinstance(held.record, shape)):
            return await self._fetch(key, shape)
        return held.record

    async def read(self, key: Key, shape: type[R]) -> R | None:
        """The record as it stands on the disk."""
        return (await self._read(key, shape))[0]

    async def put(self, key: Key, record: msgspec.Struct, useful_for: float) -> None:
        """Writes the record, which is gone after `useful_for` seconds."""
        self._changes += 1
        self._generations.begins(key)
        before = self._generations.stamp(key)
        await self._memory.set(key, Copy(record, before, time.time() + useful_for), min(useful_for, _IN_MEMORY))
        if await self._records.set(key, msgspec.msgpack.encode(record), useful_for):
            await self._tell(key, before)

    async def delete(self, key: Key) -> None:
        """Removes the record, if it is there."""
        self._changes += 1
        self._generations.begins(key)
        before = self._generations.stamp(key)
        await self._memory.set(key, Copy(None, before), _IN_MEMORY)
        await self._records.delete(key)
        await self._tell(key, before)

    async def close(self) -> None:
        """Forgets the memory copies."""
        await self._memory.close()

    async def _held(self, key: Key) -> Copy | None:
        held = await self._memory.get(key)
        if not isinstance(held, Copy) or not self._generations.is_current(held.stamp) or held.ends <= time.time():
            return None
        return held

    async def _read(self, key: Key, shape: type[R]) -> tuple[R | None, float]:
        """The record, and until when (seconds since the epoch) this may be believed: 0 where the disk did not tell."""
        answered, row = await self._records.look_up(key)
        if row is None:
            return None, math.inf if answered else 0.0
        try:
            return msgspec.msgpack.decode(row[0], type=shape), row[1]
        except msgspec.MsgspecError:
            return None, 0.0

    async def _fetch(self, key: Key, shape: type[R]) -> R | None:
        changes, before = self._changes, self._generations.stamp(key)
        record, ends = await self._read(key, shape)
        if changes == self._changes:
            if ends > 0:
                await self._memory.set(key, Copy(record, before, ends), _IN_MEMORY)
            return record
        # What was written or deleted during the read counts, and must not be hidden by what was there before.
        held = await self._held(key)
        if held is not None and (held.record is None or isinstance(held.record, shape)):
            return held.record
        return record

    async def _tell(self, key: Key, before: Stamp) -> None:
        """Has every copy read anew, but ours where it is still good."""
        now = self._generations.tell(before)
        held = await self._memory.get(key)
        if now is not None and isinstance(held, Copy) and held.stamp == before:
            held.stamp = now

"""Named records with a shape, and a memory copy in front of the disk."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from mirror.memory import Memory
from mirror.store.database import Key
from mirror.store.records import Records

R = TypeVar("R", bound=msgspec.Struct)

_IN_MEMORY = 3600.0
_GONE = object()
"""In place of a record that was deleted: the disk may not have heard of it, if it is locked or read-only."""


class TypedRecords:
    """Reads and writes records of given shapes; what does not fit its shape is as good as not there.

    A change counts from the moment it is asked for, before the disk has heard of it.
    """

    def __init__(self, records: Records, memory: Memory | None = None) -> None:
        """`memory` holds the copies, and records without a value in place of those that were deleted."""
        self._records = records
        self._memory = memory or Memory()
        self._changes = 0

    async def get(self, key: Key, shape: type[R]) -> R | None:
        """The record, from memory if it is there."""
        held = await self._memory.get(key)
        if held is _GONE:
            return None
        if isinstance(held, shape):
            return held
        changes = self._changes
        record = await self.read(key, shape)
        if changes == self._changes:
            if record is not None:
                await self._memory.set(key, record, _IN_MEMORY)
            return record
        # What was written or deleted during the read counts, and must not be hidden by what was there before.
        held = await self._memory.get(key)
        if held is _GONE:
            return None
        return held if isinstance(held, shape) else record

    async def read(self, key: Key, shape: type[R]) -> R | None:
        """The record as it stands on the disk."""
        value = await self._records.get(key)
        if value is None:
            return None
        try:
            return msgspec.msgpack.decode(value, type=shape)
        except msgspec.MsgspecError:
            return None

    async def put(self, key: Key, record: msgspec.Struct, useful_for: float) -> None:
        """Writes the record, which is gone after `useful_for` seconds."""
        self._changes += 1
        await self._memory.set(key, record, min(useful_for, _IN_MEMORY))
        await self._records.set(key, msgspec.msgpack.encode(record), useful_for)

    async def delete(self, key: Key) -> None:
        """Removes the record, if it is there."""
        self._changes += 1
        await self._memory.set(key, _GONE, _IN_MEMORY)
        await self._records.delete(key)

    async def close(self) -> None:
        """Forgets the memory copies."""
        await self._memory.close()

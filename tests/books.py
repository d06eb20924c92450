"""Records without a disk: what is written stays in a dict, and a test decides when reads return and writes count."""

from __future__ import annotations

import asyncio
import math

from mirror.store.database import Key
from mirror.store.records import Records


class Book(Records):
    """`rows` are the values by key, with the seconds that each was said to be useful for in `useful_for`, and with the
    end of its use in `ends`, where a test says so.

    `lost`: whether writes and deletions are forgotten, as on a disk that is read-only. `mute`: whether it does not
    answer. `hold(n)` lets the next n reads
    wait, with what they have read, until `release`.
    """

    def __init__(self) -> None:
        self.rows: dict[Key, bytes] = {}
        self.useful_for: dict[Key, float] = {}
        self.ends: dict[Key, float] = {}
        self.lost = False
        self.mute = False
        self.reading = asyncio.Event()
        self._held = 0
        self._released = asyncio.Event()

    def hold(self, reads: int = 1) -> None:
        """The next reads wait."""
        self._held = reads
        self.reading.clear()
        self._released.clear()

    def release(self) -> None:
        """And go on."""
        self._released.set()

    async def look_up(self, key: Key) -> tuple[bool, tuple[bytes, float] | None]:
        """As Records."""
        if self.mute:
            return False, None
        value = self.rows.get(key)
        if self._held:
            self._held -= 1
            self.reading.set()
            await self._released.wait()
        await asyncio.sleep(0)  # a real one always lets others run
        return True, (value, self.ends.get(key, math.inf)) if value is not None else None

    async def set(self, key: Key, value: bytes, useful_for: float) -> bool:
        """As Records."""
        if not self.lost:
            self.rows[key] = value
            self.useful_for[key] = useful_for
        await asyncio.sleep(0)
        return not self.lost

    async def delete(self, key: Key) -> None:
        """As Records."""
        if not self.lost:
            self.rows.pop(key, None)
        await asyncio.sleep(0)

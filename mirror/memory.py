"""Small records in memory, whose loss costs one request; the only module that knows aiocache."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from aiocache import SimpleMemoryCache

Key = tuple[str, ...]


class Memory:
    """A bounded map with a time to live per key, over aiocache's memory backend, which has no bound of its own.

    Above `max_keys` the least recently used key goes. Values are shared by reference: treat them as frozen.
    """

    def __init__(self, max_keys: int = 100_000) -> None:
        # timeout=0: the default wraps each call in a timer that costs more than the call.
        self._cache = SimpleMemoryCache(timeout=0)
        self._used: OrderedDict[Key, None] = OrderedDict()
        self._max_keys = max_keys

    async def get(self, key: Key) -> Any | None:
        """The value, or None where there is none or its time is over."""
        value = await self._cache.get(key)
        if value is None:
            self._used.pop(key, None)
        elif key in self._used:
            self._used.move_to_end(key)
        return value

    async def set(self, key: Key, value: Any, ttl: float) -> None:
        """Keeps `value` for `ttl` seconds; a `ttl` that is not positive keeps nothing."""
        if ttl <= 0:
            await self.delete(key)
            return
        await self._cache.set(key, value, ttl=ttl)
        self._used[key] = None
        self._used.move_to_end(key)
        while len(self._used) > self._max_keys:
            oldest, _ = self._used.popitem(last=False)
            await self._cache.delete(oldest)

    async def delete(self, key: Key) -> None:
        """Forgets the value, if there is one."""
        self._used.pop(key, None)
        await self._cache.delete(key)

    async def close(self) -> None:
        """Forgets everything, timers included."""
        for key in list(self._used):
            await self.delete(key)
        await self._cache.close()

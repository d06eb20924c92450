"""Small records in memory, whose loss costs one request; the only module that knows aiocache."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

from aiocache import SimpleMemoryCache

Key = tuple[str, ...]
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Memory:
    """A bounded map with a time to live per key, over aiocache's memory backend, which has no bound of its own.

    Above `max_keys`, or above `limit` in what `weigh` says of the values, the least recently used keys go; a value that
    alone is heavier is not kept. Values are shared by reference: treat them as frozen.
    """

    def __init__(
        self, max_keys: int = 100_000, *, limit: float = math.inf, weigh: Callable[[Any], int] = lambda _: 0
    ) -> None:
        # timeout=0: the default wraps each call in a timer that costs more than the call.
        self._cache = SimpleMemoryCache(timeout=0)
        self._used: OrderedDict[Key, int] = OrderedDict()
        self._max_keys = max_keys
        self._limit = limit
        self._weigh = weigh
        self._weight = 0

    async def get(self, key: Key) -> Any | None:
        """The value, or None where there is none or its time is over."""
        value = await self._cache.get(key)
        if value is None:
            self._weight -= self._used.pop(key, 0)
        elif key in self._used:
            self._used.move_to_end(key)
        return value

    async def set(self, key: Key, value: Any, ttl: float) -> None:
        """Keeps `value` for `ttl` seconds; a `ttl` that is not positive keeps nothing."""
        weight = self._weigh(value)
        if ttl <= 0 or weight > self._limit:
            await self.delete(key)
            return
        await self._cache.set(key, value, ttl=ttl)
        self._weight += weight - self._used.get(key, 0)
        self._used[key] = weight
        self._used.move_to_end(key)
        while len(self._used) > self._max_keys or self._weight > self._limit:
            oldest, gone = self._used.popitem(last=False)
            self._weight -= gone
            await self._cache.delete(oldest)

    async def delete(self, key: Key) -> None:
        """Forgets the value, if there is one."""
        self._weight -= self._used.pop(key, 0)
        await self._cache.delete(key)

    async def close(self) -> None:
        """Forgets everything, timers included."""
        for key in list(self._used):
            await self.delete(key)
        await self._cache.close()


class Bounded(Generic[K, V]):
    """A map that holds at most `limit` in weight (bytes, or entries of weight 1); the least recently used go first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._weight = 0
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()

    def get(self, key: K) -> V | None:
        """The value, now the most recently used; or None."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def set(self, key: K, value: V, weight: int = 1) -> None:
        """Holds `value`; one that alone is heavier than the limit is not held."""
        self.pop(key)
        if weight > self._limit:
            return
        self._entries[key] = (value, weight)
        self._weight += weight
        while self._weight > self._limit:
            _, (_, gone) = self._entries.popitem(last=False)
            self._weight -= gone

    def pop(self, key: K) -> V | None:
        """Takes the value out, if it is there."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return None
        self._weight -= entry[1]
        return entry[0]

    def __len__(self) -> int:
        return len(self._entries)

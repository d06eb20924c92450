"""Small records in memory, whose loss costs one request; the only module that knows aiocache."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, NamedTuple, TypeVar

from aiocache import SimpleMemoryCache

Key = tuple[str, ...]
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_SLOT_SECONDS = 10.0


class Memory:
    """A bounded map with a time to live per key, over aiocache's memory backend, which has no bound of its own.

    Above `max_keys`, or above `limit` in what `weigh` says of keys with their values, the least recently used go; what
    is heavier alone is not kept. Values are shared by reference: treat them as frozen.

    Times are kept here. aiocache would set a timer for each key, and a timer holds on to all that the request which set
    it has bound to its context. What nobody asks for any more goes with the first `set` after its time.
    """

    def __init__(
        self,
        max_keys: int = 20_000,
        *,
        limit: float = math.inf,
        weigh: Callable[[Key, Any], int] = lambda _key, _value: 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # timeout=0: the default wraps each call in a timer that costs more than the call.
        self._cache = SimpleMemoryCache(timeout=0)
        self._used: OrderedDict[Key, _Term] = OrderedDict()
        self._ending: dict[int, set[Key]] = {}
        """The keys by the slot of time in which they end."""
        self._swept = _slot(clock())
        self._max_keys = max_keys
        self._limit = limit
        self._weigh = weigh
        self._clock = clock
        self._weight = 0

    async def get(self, key: Key) -> Any | None:
        """The value, or None where there is none or its time is over."""
        term = self._used.get(key)
        if term is None:
            return None
        if term.ends <= self._clock():
            await self.delete(key)
            return None
        self._used.move_to_end(key)
        return await self._cache.get(key)

    async def set(self, key: Key, value: Any, ttl: float) -> None:
        """Keeps `value` for `ttl` seconds; a `ttl` that is not positive keeps nothing."""
        weight, now = self._weigh(key, value), self._clock()
        await self._sweep(now)
        await self.delete(key)
        if ttl <= 0 or weight > self._limit:
            return
        await self._cache.set(key, value)
        self._weight += weight
        self._used[key] = term = _Term(now + ttl, weight)
        self._ending.setdefault(_slot(term.ends), set()).add(key)
        while len(self._used) > self._max_keys or self._weight > self._limit:
            await self.delete(next(iter(self._used)))

    async def delete(self, key: Key) -> None:
        """Forgets the value, if there is one."""
        term = self._used.pop(key, None)
        if term is None:
            return
        self._weight -= term.weight
        slot = _slot(term.ends)
        self._ending[slot].discard(key)
        if not self._ending[slot]:
            del self._ending[slot]
        await self._cache.delete(key)

    async def close(self) -> None:
        """Forgets everything."""
        for key in list(self._used):
            await self.delete(key)
        await self._cache.close()

    async def _sweep(self, now: float) -> None:
        """Forgets what has ended in slots that are over."""
        this = _slot(now)
        if this == self._swept:
            return
        self._swept = this
        for slot in [slot for slot in self._ending if slot < this]:
            for key in list(self._ending[slot]):
                await self.delete(key)


class _Term(NamedTuple):
    ends: float
    weight: int


def _slot(moment: float) -> int:
    return int(moment // _SLOT_SECONDS)


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

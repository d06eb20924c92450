"""The budget's voice in a worker: whoever keeps the store is asked for room, and what it does not answer passes by."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import structlog

from mirror.channel import Channel, ChannelClosed, Refused
from mirror.store.room import Reservation

_SILENCE = 0.05
"""Seconds for which a fill waits for a sign of life."""
_ROOM_SECONDS = 3.0
"""For which it waits for an answer; room is made in less, or not at all."""
_EMERGENCY_SECONDS = 10.0
_TOLD_EVERY = 4 << 20
"""Bytes: what a fill has written and not told of counts as missing twice."""
_FAILURES = (TimeoutError, ChannelClosed, Refused)
_log = structlog.get_logger()


class _Remote(Reservation):
    """Room that stands in the books of another process under `number`."""

    def __init__(self, size: int, number: int, budget: RemoteBudget) -> None:
        super().__init__(size, budget.ended)
        self.number = number
        self._budget = budget
        self._told = 0

    @property
    def written(self) -> int:
        """As of Reservation."""
        return self._written

    @written.setter
    def written(self, written: int) -> None:
        self._written = written
        if written - self._told >= _TOLD_EVERY:
            self._told = written
            self._budget.tell_written(self.number, written)


class RemoteBudget:
    """`Room` over a channel. Whoever gives up waiting says so, so that room that is found later goes back."""

    def __init__(
        self, channel: Channel, *, before_end: Callable[[], object] = lambda: None, silence: float | None = None
    ) -> None:
        """`before_end`: what is to be told before the end of a fill; `silence`: seconds, 0.05 where it is None."""
        self._channel = channel
        self._before_end = before_end
        self._silence = _SILENCE if silence is None else silence
        self._numbers = itertools.count(1)

    async def reserve(self, size: int) -> Reservation | None:
        """Room for a blob of `size` bytes; None where it must pass through, also for want of an answer."""
        number = next(self._numbers)
        granted = False
        try:
            granted = await self._ask("room.reserve", [number, size], _ROOM_SECONDS) is True
        finally:
            if not granted:
                self._channel.tell("room.end", number)
        return _Remote(size, number, self) if granted else None

    async def extend(self, reservation: Reservation, size: int) -> bool:
        """Enlarges a reservation to `size` bytes; False where it may not."""
        assert isinstance(reservation, _Remote), "a reservation of another budget"
        if await self._ask("room.extend", [reservation.number, size], _ROOM_SECONDS) is not True:
            return False
        reservation.size = size
        return True

    async def make_room(self, need: int, reason: str) -> int:
        """Has blobs of together at least `need` bytes evicted; returns what was freed."""
        freed = await self._ask("room.make", [need, reason], _EMERGENCY_SECONDS)
        return freed if isinstance(freed, int) else 0

    def ended(self, reservation: Reservation) -> None:
        """The fill is over."""
        assert isinstance(reservation, _Remote), "a reservation of another budget"
        self._before_end()
        self._channel.tell("room.end", reservation.number)

    def tell_written(self, number: int, written: int) -> None:
        """So many bytes of it are missing from the free space already."""
        self._channel.tell("room.written", [number, written])

    async def _ask(self, name: str, payload: list[Any], limit: float) -> Any:
        try:
            return await self._channel.call(name, payload, limit, silence=self._silence)
        except _FAILURES as error:
            _log.warning("whoever keeps the store gives no room", asked=name, error=repr(error))
            return None

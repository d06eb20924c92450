"""A bounded number of places for something scarce, with a bounded queue before them, shared fairly between hosts."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from mirror.oci.errors import UpstreamUnavailable

_SHARE = 3
"""A host gets another place while it has fewer than three times as many as are free. So one host alone comes to three
quarters of the places, two to three sevenths each, and whoever comes from a new host finds one free: an upstream that
hangs with all that is asked of it does not take the others' places."""


class Slot:
    """One place. Give it back by `release`; a second time does nothing."""

    def __init__(self, give_back: Callable[[str], None], host: str) -> None:
        self._give_back: Callable[[str], None] | None = give_back
        self._host = host

    def release(self) -> None:
        """Gives the place back, to whoever is next."""
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            give_back(self._host)


class Slots:
    """`places`, and `queue` more who wait for one; both shared between hosts, in the order of coming.

    `what` says in errors what there is too much of; `changed` hears how many wait.
    """

    def __init__(
        self, places: int, queue: int, *, what: str, changed: Callable[[int], object] = lambda _: None
    ) -> None:
        self._places = self._free = places
        self._longest = queue
        self._what = what
        self._changed = changed
        self._taken: Counter[str] = Counter()
        self._waiting: Counter[str] = Counter()
        self._queue: dict[asyncio.Future[Slot], tuple[str, int | None]] = {}

    def resize(self, places: int, queue: int) -> None:
        """So many from now on. Who has a place keeps it; who waits has the place that there was to wait in."""
        self._free += places - self._places
        self._places, self._longest = places, queue
        self._hand_out()

    async def take(self, host: str, within: float, most: int | None = None) -> Slot:
        """A place for `host`, which may have `most` of them, or else its share.

        Raises UpstreamUnavailable, reason queue, where too many wait already, and after so many seconds.
        """
        if self._may_have(host, most):
            return self._give(host)
        if not _is_fair(self._waiting[host], self._longest - len(self._queue)):
            raise UpstreamUnavailable(f"{host}: too many {self._what} wait already", reason="queue")
        turn: asyncio.Future[Slot] = asyncio.get_running_loop().create_future()
        self._enqueue(turn, host, most)
        try:
            async with asyncio.timeout(within):
                return await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():  # it came in the same moment
                turn.result().release()
            if isinstance(error, TimeoutError):
                raise UpstreamUnavailable(f"{host}: too many {self._what} at a time", reason="queue") from None
            raise
        finally:
            self._dequeue(turn, host)

    def _may_have(self, host: str, most: int | None) -> bool:
        if most is not None:
            return self._free > 0 and self._taken[host] < most
        return _is_fair(self._taken[host], self._free)

    def _give(self, host: str) -> Slot:
        self._taken[host] += 1
        self._free -= 1
        return Slot(self._give_back, host)

    def _give_back(self, host: str) -> None:
        _count_down(self._taken, host)
        self._free += 1
        self._hand_out()

    def _hand_out(self) -> None:
        for turn, (waiting, most) in list(self._queue.items()):
            if self._free <= 0:
                break
            if not turn.done() and self._may_have(waiting, most):
                turn.set_result(self._give(waiting))

    def _enqueue(self, turn: asyncio.Future[Slot], host: str, most: int | None) -> None:
        self._queue[turn] = host, most
        self._waiting[host] += 1
        self._changed(len(self._queue))

    def _dequeue(self, turn: asyncio.Future[Slot], host: str) -> None:
        del self._queue[turn]
        _count_down(self._waiting, host)
        self._changed(len(self._queue))


def _is_fair(has: int, free: int) -> bool:
    return has < _SHARE * free


def _count_down(counter: Counter[str], host: str) -> None:
    """Keeps no zeros: hosts may be any number."""
    counter[host] -= 1
    if not counter[host]:
        del counter[host]

"""Whose turn it is to have a connection to an upstream for long: blobs that are kept, and bytes at a client's pace."""

from __future__ import annotations

from collections.abc import Callable

from mirror.metrics import Metrics
from mirror.routing import UpstreamName
from mirror.slots import Slot, Slots

PACED = 256
"""Streams that go no faster than the client who wants them: parts that are not here, blobs that cannot be kept. They
have a lane of their own, so that slow clients do not keep the blobs waiting that everybody wants."""
_QUEUE = 4
"""Times as many wait as have their turn. Whoever is further behind would not get it within the time that clients wait,
were each turn to take several seconds; it is kinder to say so at once."""


class Lanes:
    """Gives out turns: `most` blobs at a time in all, and of one upstream host as many as `most_of` says, or its share.

    Both lanes raise UpstreamUnavailable, reason queue, where the turn does not come `within` so many seconds.
    """

    def __init__(self, most: int, most_of: Callable[[UpstreamName], int | None], metrics: Metrics) -> None:
        self._most_of = most_of
        self._fills = Slots(most, _QUEUE * most, what="downloads", changed=metrics.downloads_queued.set)
        self._paced = Slots(PACED, _QUEUE * PACED, what="streams to clients")

    def adjust(self, most: int, most_of: Callable[[UpstreamName], int | None]) -> None:
        """Other numbers from now on; who has a turn keeps it."""
        self._most_of = most_of
        self._fills.resize(most, _QUEUE * most)

    async def fill(self, upstream: UpstreamName, within: float) -> Slot:
        """A turn to fetch a blob as fast as it comes."""
        return await self._fills.take(upstream.host, within, self._most_of(upstream))

    async def pace(self, upstream: UpstreamName, within: float) -> Slot:
        """A turn to fetch bytes as fast as a client takes them."""
        return await self._paced.take(upstream.host, within)

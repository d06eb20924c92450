"""Questions to upstreams: each asked once at a time, and nobody's answer is cut short by another one's deadline."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import TypeVar

from mirror.oci.errors import UpstreamTimeout
from mirror.singleflight import SingleFlight
from mirror.transport import Deadline

T = TypeVar("T")


class Questions:
    """Asks, or joins whoever does. A question belongs to nobody: it goes on when all who wait for it have left."""

    def __init__(self) -> None:
        self._asking = SingleFlight()

    async def close(self) -> None:
        """Stops what is being asked."""
        await self._asking.close()

    async def ask(
        self, key: Hashable, question: Callable[[], Awaitable[T]], deadline: Deadline, what: str
    ) -> tuple[T, bool]:
        """The answer, and whether it is one to somebody else's question.

        Raises what `question` raises, and UpstreamTimeout, which names `what`, at the deadline. A joined question may
        have been asked long ago: whoever has time left when that one is over asks anew.
        """
        while True:
            joined = self._asking.running(key)
            try:
                return await deadline.bound(self._asking.run(key, question), what), joined
            except UpstreamTimeout:
                if not joined or deadline.expired:
                    raise

    def start(self, key: Hashable, question: Callable[[], Awaitable[T]]) -> None:
        """Has it asked, for nobody in particular."""
        self._asking.start(key, question)

"""Deadlines: one moment that a whole chain of waits shares."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TypeVar

from mirror.oci.errors import UpstreamTimeout

T = TypeVar("T")


@dataclass(frozen=True, slots=True, order=True)
class Deadline:
    """A moment on the monotonic clock (`at`, in its seconds); passed down instead of timeouts, which would add up."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """The moment `seconds` from now."""
        return cls(time.monotonic() + seconds)

    def remaining(self) -> float:
        """Seconds left; never negative."""
        return max(0.0, self.at - time.monotonic())

    @property
    def expired(self) -> bool:
        """Whether the moment has come."""
        return time.monotonic() >= self.at

    async def bound(self, awaitable: Awaitable[T], doing: str) -> T:
        """Awaits until the deadline. Raises UpstreamTimeout, which says that `doing` took too long."""
        try:
            async with asyncio.timeout(self.remaining()):
                return await awaitable
        except TimeoutError:
            raise UpstreamTimeout(f"{doing}: no answer in time") from None

"""Something that others wait for, over and over."""

from __future__ import annotations

import asyncio


class News:
    """Wakes everybody who waits, each time there is something to tell; whoever comes later waits for the next time."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def tell(self) -> None:
        """There is something."""
        event, self._event = self._event, asyncio.Event()
        event.set()

    async def wait(self) -> None:
        """Waits until there is."""
        await self._event.wait()

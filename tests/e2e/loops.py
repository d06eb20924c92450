"""An event loop in a thread of its own, for servers that have to answer while a test waits for a program."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class LoopThread:
    """Runs what it is given, for `limit` seconds at most; the process would stay for a thread that is not ended."""

    def __init__(self, name: str, limit: float) -> None:
        self._limit = limit
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Returns what `work` returns, or raises what it raises; TimeoutError past the limit."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(self._limit)

    def end(self) -> None:
        """Ends the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

"""Calls in threads: of a disk that hangs no more of them wait than there is a bound for."""

from __future__ import annotations

import asyncio
import threading

import pytest

from mirror.oci.errors import StorageError
from mirror.store.threads import Threads


async def test_calls_that_nobody_waits_for_any_more_are_bounded() -> None:
    """Each caller tires, its call stays; past the bound the disk counts as failed at once, until it moves again."""
    hangs, threads = threading.Event(), Threads("test", 1, most=3)
    try:
        for _ in range(3):
            with pytest.raises(StorageError, match="does not answer"):
                await threads.run(hangs.wait, limit=0.01)
        with pytest.raises(StorageError, match="too much waits") as raised:
            await threads.run(hangs.wait, limit=5)
        assert isinstance(raised.value.__cause__, OSError)

        hangs.set()
        await threads.idle()
        async with asyncio.timeout(5):
            assert await threads.run(lambda: 1) == 1
    finally:
        hangs.set()
        threads.close()

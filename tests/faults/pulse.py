"""Notices when the machine stands still: time limits that pass then say nothing of the code."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time

_EVERY = 0.1
_LONGEST = 0.1
"""Seconds that one turn of the event loop, with a small write to the disk, may take; a row is dozens of them."""


class Pulse:
    """Looks at the event loop and the disk ten times a second."""

    def __init__(self) -> None:
        self._stopped_at = -1.0

    def steady_since(self, moment: float) -> bool:
        """Whether nothing has stood still since `moment` of the monotonic clock."""
        return self._stopped_at < moment

    async def beat(self) -> None:
        """Looks until it is cancelled."""
        while True:
            began = time.monotonic()
            await asyncio.to_thread(_write)
            await asyncio.sleep(_EVERY)
            if time.monotonic() - began > _EVERY + _LONGEST:
                self._stopped_at = time.monotonic()


def _write() -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"beat")
        file.flush()
        os.fsync(file.fileno())

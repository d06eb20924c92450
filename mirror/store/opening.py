"""Opening the files of blobs, and closing them: without a wait where the kernel has them in memory, else by threads."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from mirror.oci.digest import Digest
from mirror.singleflight import SingleFlight
from mirror.store.files import Files, SharedFile, let_go
from mirror.store.shelves import Shelves
from mirror.store.threads import Threads, failed

_OPEN_THREADS = 2


class Opening:
    """How the store comes by the file of a blob that may be held.

    A call to a thread costs more than to open what is at hand. So that is done on the loop, where the file system asks
    nobody; elsewhere by threads that what is not at hand does not hold up: that goes to `reading`.
    """

    def __init__(self, files: Files, reading: Threads, tidying: Threads, *, patience: float) -> None:
        """`patience`: seconds that the disk may take while a client waits."""
        self.pool = Threads("disk-open", _OPEN_THREADS)
        """For what the kernel has in memory."""
        self._files = files
        self._reading = reading
        self._tidying = tidying
        self._patience = patience
        self._looking = SingleFlight()
        self._prompt = False

    def learn(self, root: Path) -> None:
        """What kind of file system that is. Blocks."""
        self._prompt = self._files.is_prompt(root)

    async def open(
        self, shelves: Shelves, digest: Digest, beside: Callable[[], Awaitable[object]] | None = None
    ) -> SharedFile | None:
        """The blob's file, which the caller holds; None where there is none. Raises StorageError.

        `beside`: awaited while the disk is asked, if it is.
        """
        at_hand, file = await self._open_at_hand(shelves, digest)
        if at_hand:
            return file
        patience, reading = self._patience, self._reading
        looking = self._looking.start(digest, lambda: reading.run(shelves.holds, digest, limit=patience))
        if beside is not None:
            await beside()
        if not await asyncio.shield(looking):
            return None
        return await reading.run(shelves.open, digest, limit=patience, unwanted=let_go)

    def share(self, fd: int, size: int) -> SharedFile:
        """A file that was opened to be read alone."""
        return SharedFile(fd, size, self._files, self._close)

    async def close(self) -> None:
        """Stops looking."""
        await self._looking.close()

    async def _open_at_hand(self, shelves: Shelves, digest: Digest) -> tuple[bool, SharedFile | None]:
        if not self._prompt:
            return await self.pool.run(
                shelves.open_at_hand, digest, limit=self._patience, unwanted=lambda found: let_go(found[1])
            )
        try:
            return shelves.open_at_hand(digest)
        except OSError as error:
            raise failed(error) from error

    def _close(self, close: Callable[[int], None], fd: int) -> None:
        if not self._prompt or not self._files.is_linked(fd):
            self._tidying.submit(close, fd)
            return
        try:
            close(fd)
        except OSError:
            pass  # it is closed all the same, and was only read

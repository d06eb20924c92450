"""An empty spool, made while the upstream is asked: the first byte does not wait for the file as well."""

from __future__ import annotations

import asyncio

from mirror.oci.digest import Digest
from mirror.store.blobs import BlobStore, Spool


class SpoolAhead:
    """Begins at once; whoever made it takes the spool, removes or drops it."""

    def __init__(self, blobs: BlobStore, digest: Digest, host: str) -> None:
        """For bytes of `digest` from the upstream `host`."""
        self._blobs = blobs
        self._making = asyncio.create_task(blobs.create_spool(digest, host), name=f"spool for {digest}")

    async def take(self) -> Spool:
        """The spool, which is the caller's from now on. Raises StorageError."""
        return await self._making

    async def remove(self) -> None:
        """Removes it; waits for it if need be, as long as the disk has patience. Raises StorageError."""
        spool = await self._making
        spool.file.release()
        await self._blobs.discard(spool)

    def drop(self) -> None:
        """Has it removed some time: somebody waits, and it may be the disk that nobody can wait for."""
        self._making.cancel()
        self._making.add_done_callback(self._throw_away)

    def _throw_away(self, making: asyncio.Task[Spool]) -> None:
        if not making.cancelled() and making.exception() is None:
            self._blobs.throw_away(making.result())

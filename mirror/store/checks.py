"""Blobs whose bytes are compared with their digest: before a use after an unclean stop, and by the scrub."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from typing import TypeVar

import structlog

from mirror.oci.digest import Digest
from mirror.singleflight import SingleFlight
from mirror.store.files import SharedFile, let_go
from mirror.store.shelves import Shelves
from mirror.store.spools import read_pieces
from mirror.store.threads import Threads
from mirror.store.unsettled import Unsettled

T = TypeVar("T")
_log = structlog.get_logger()


class Checks:
    """What is known to be in doubt, and the ways to settle it. Everything raises StorageError where the disk fails."""

    def __init__(
        self, shelves: Shelves, unsettled: Unsettled, checking: Threads, tidying: Threads, *, patience: float
    ) -> None:
        """Bytes are read in `checking`, files removed in `tidying`; `patience`: seconds that a client waits."""
        self._shelves = shelves
        self._unsettled = unsettled
        self._checking = checking
        self._tidying = tidying
        self._patience = patience
        self._verifying = SingleFlight()
        self._closing = False

    async def close(self) -> None:
        """Ends what is being verified."""
        self._closing = True
        await self._verifying.close()

    # After an unclean stop.

    @property
    def suspects(self) -> tuple[Digest, ...]:
        """Blobs that an unclean stop may have damaged, and that nobody has verified since."""
        return self._unsettled.suspects

    def is_suspect(self, digest: Digest) -> bool:
        """Whether the blob is one of those."""
        return digest in self._unsettled

    async def verified(self, digest: Digest) -> bool:
        """Whether a suspect's bytes are right, as far as that can be told in time; hashed once for all who ask.

        It is removed if they are wrong.
        """
        try:
            async with asyncio.timeout(self._patience):
                return await self._verifying.run(digest, lambda: self._checking.run(self._verify, digest))
        except TimeoutError:
            return False

    # A piece at a time, with nobody waiting.

    async def inspect(self, digest: Digest) -> SharedFile | None:
        """The blob's file, which is no use of it; None where it is not held. Its first holder is the caller.

        One that is not held is in no doubt any more.
        """
        file = await self._checking.run(self._shelves.open, digest, unwanted=let_go)
        if file is None:
            self._unsettled.settle(digest)
        return file

    async def step(self, work: Callable[[], T], file: SharedFile) -> T:
        """Some work on an inspected file."""
        return await self._checking.run(work, holding=file)

    async def judge(self, digest: Digest, file: SharedFile, *, intact: bool) -> bool:
        """Whether `file` was removed because it is not intact; not if another has taken its place."""
        return await self._tidying.run(self._shelves.judge, digest, file, intact, holding=file)

    # Inside, in a thread.

    def _verify(self, digest: Digest) -> bool:
        intact = self._shelves.settle(digest, lambda file: self._matches(digest, file))
        if not intact:
            _log.warning("a blob did not survive the last stop; it is fetched again", digest=str(digest))
        return intact

    def _matches(self, digest: Digest, file: SharedFile) -> bool:
        hasher = digest.hasher()
        for piece in read_pieces(file):
            if self._closing:
                raise OSError(errno.ECANCELED, "the store is being closed")
            hasher.update(piece)
        return hasher.hexdigest() == digest.hex

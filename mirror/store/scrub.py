"""Looks for rot in the background: hashes every held blob again, slowly, and drops those whose bytes have changed."""

from __future__ import annotations

import asyncio
import errno
import math
import time
from collections.abc import Callable

import msgspec
import structlog

from mirror.metrics import Metrics
from mirror.oci.digest import Digest
from mirror.oci.errors import DigestInvalid, StorageError
from mirror.store.blobs import BlobStore
from mirror.store.files import SharedFile
from mirror.store.inspection import Inspection
from mirror.store.records import Records
from mirror.store.shelves import Directory
from mirror.store.survey import Everyone
from mirror.store.trouble import FULL, Trouble

_KEY = ("scrub",)
_KEPT = 365 * 86400.0
_EVERY = 86400.0
"""Seconds from the beginning of a pass to that of the next: a small cache is not read over and over."""
_LOOK_SECONDS = 60.0
_SAVE_SECONDS = 30.0
"""So much work is done again after a crash."""
_TROUBLE_SECONDS = 1.0
_FINISH_SECONDS = 2.0
_FILE_COST = 64 << 10
"""Bytes that a file counts for beside its own: to a disk with a head a million small ones are a million ways."""
_UNREADABLE = (errno.EIO, errno.EBADMSG, errno.EUCLEAN)
_log = structlog.get_logger()


class Progress(msgspec.Struct, array_like=True):
    """How far a pass has come, as it is recorded.

    `began_at` is in seconds since the epoch; `after` the last digest that was checked, empty before the first; `blobs`
    and `size` (bytes) are what was checked, `dropped` how many of them were not right.
    """

    began_at: float
    after: str = ""
    blobs: int = 0
    size: int = 0
    dropped: int = 0
    done: bool = False


class Pace:
    """Work at `rate` bytes a second at most, by the monotonic clock."""

    def __init__(self, rate: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._monotonic = monotonic
        self._turn = monotonic()

    def wait(self) -> float:
        """Seconds until the next piece of work may begin; it is taken to begin then."""
        now = self._monotonic()
        self._turn = max(self._turn, now)  # a pause is not made up for
        return self._turn - now

    def spend(self, count: int) -> None:
        """The piece of work was `count` bytes. What it took itself is part of the time that they may take."""
        self._turn += count / self._rate


class Scrub:
    """Passes over all blobs in the order of their digests, one blob at a time; those that an unclean stop may have
    damaged come first.

    A pass goes on where the last process left it, and holds still while the disk is in trouble.
    """

    def __init__(
        self,
        rate: int,
        blobs: BlobStore,
        records: Records,
        trouble: Trouble,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`rate`: bytes a second; 0 for no scrub at all."""
        self._rate = rate
        self._blobs = blobs
        self._records = records
        self._trouble = trouble
        self._metrics = metrics
        self._clock = clock
        self._pace = Pace(rate or 1)
        self._progress = Progress(0.0, done=True)
        self._saved_at = -math.inf

    async def run(self) -> None:
        """Does what is due, until it is cancelled."""
        while self._rate:
            try:
                await self.once()
            except Exception:
                _log.exception("the scrub failed; it is taken up again in a minute")
            await asyncio.sleep(_LOOK_SECONDS)

    async def once(self) -> None:
        """Verifies what an unclean stop left in doubt; then goes on with the pass under way, or a new one if due."""
        await self._settle_doubts()
        begun, now = await self._recorded(), self._clock()
        if begun is None or begun.done:
            # A clock that was set back must not put the pass off for as long.
            if begun is not None and 0 <= now - begun.began_at < _EVERY:
                return
            begun = Progress(now)
        self._progress = begun
        await self._pass(begun)

    async def finish(self) -> None:
        """At a clean stop, after `run` has ended: notes how far the pass has come."""
        if not self._progress.done:
            try:
                async with asyncio.timeout(_FINISH_SECONDS):
                    await self._save()
            except TimeoutError:
                pass  # some work is done again

    async def _settle_doubts(self) -> None:
        doubts = Progress(self._clock())
        for digest in self._blobs.checks.suspects:
            if self._blobs.checks.is_suspect(digest):  # nobody has used it meanwhile
                await self._examine(digest, doubts)
        if doubts.blobs:
            _log.info("what an unclean stop left in doubt is verified", **_figures(doubts, self._clock()))

    async def _pass(self, progress: Progress) -> None:
        after = _digest(progress.after)
        _log.info("scrub begins", after=progress.after)
        for directory in self._blobs.directories():
            if after is not None and directory < (after.algorithm, after.hex[:2]):
                continue
            for digest in await self._digests(directory, after):
                await self._examine(digest, progress)
                progress.after = str(digest)
                if time.monotonic() - self._saved_at > _SAVE_SECONDS:
                    await self._save()
        progress.done = True
        await self._save()
        _log.info("scrub finished", **_figures(progress, self._clock()))

    async def _digests(self, directory: Directory, after: Digest | None) -> list[Digest]:
        """Those of a directory that come next, in order; none where it cannot be read."""
        found = Everyone()
        await self._calm()
        try:
            await self._blobs.survey([directory], found)
        except StorageError as error:
            self._trouble.note("blobs", error)
            return []
        return sorted(entry.digest for entry in found.entries if after is None or entry.digest > after)

    # One blob.

    async def _examine(self, digest: Digest, progress: Progress) -> None:
        """Checks a blob. One that cannot be read is tried once more when the disk is well, then it counts as lost."""
        for chances in (1, 0):
            await self._calm()
            try:
                if await self._check(digest, progress, chances):
                    return
            except StorageError as error:
                self._trouble.note("blobs", error)
                return

    async def _check(self, digest: Digest, progress: Progress, chances: int) -> bool:
        """Whether this settled it. Raises StorageError where the disk fails in a way that says nothing of the bytes."""
        file = await self._blobs.checks.inspect(digest)
        if file is None:
            return True
        try:
            found = "other bytes"
            try:
                intact = await self._matches(digest, file, progress)
            except StorageError as error:
                if not _is_lost(error):
                    raise
                self._trouble.note("blobs", error)
                if chances:
                    return False
                intact, found = False, "no bytes"
            if await self._blobs.checks.judge(digest, file, intact=intact):
                _log.error("a blob has rotted; it is fetched again when wanted", digest=str(digest), found=found)
                self._metrics.scrub_corrupt.inc()
                progress.dropped += 1
            return True
        finally:
            file.release()

    async def _matches(self, digest: Digest, file: SharedFile, progress: Progress) -> bool:
        inspection = Inspection(digest, file.files, file.fd)
        await asyncio.sleep(self._pace.wait())
        self._pace.spend(_FILE_COST)
        while count := await self._blobs.checks.step(inspection.step, file):
            self._metrics.scrub_bytes.inc(count)
            progress.size += count
            self._pace.spend(count)
            await asyncio.sleep(self._pace.wait())
        progress.blobs += 1
        return inspection.intact

    async def _calm(self) -> None:
        """Waits until the disk is in no trouble that is known of; a full one can be read."""
        while self._trouble.met_by("blobs") not in (None, FULL):  # noqa: ASYNC110 - it ends in a round of upkeep
            await asyncio.sleep(_TROUBLE_SECONDS)

    # How far it has come.

    async def _recorded(self) -> Progress | None:
        value = await self._records.get(_KEY)
        try:
            return msgspec.msgpack.decode(value, type=Progress) if value is not None else None
        except msgspec.MsgspecError:
            return None

    async def _save(self) -> None:
        self._saved_at = time.monotonic()
        await self._records.set(_KEY, msgspec.msgpack.encode(self._progress), _KEPT)


def _figures(progress: Progress, now: float) -> dict[str, int]:
    """For the log."""
    seconds = round(now - progress.began_at)
    return {"blobs": progress.blobs, "bytes": progress.size, "dropped": progress.dropped, "seconds": seconds}


def _is_lost(error: StorageError) -> bool:
    """Whether the disk says that it has not got these bytes any more."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in _UNREADABLE


def _digest(text: str) -> Digest | None:
    try:
        return Digest.parse(text)
    except DigestInvalid:
        return None

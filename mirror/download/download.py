"""One blob on its way from its sources to the disk, or past it; belongs to nobody's request."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable

import structlog

from mirror.download.fetch import Fetch, Tools
from mirror.download.pump import pump
from mirror.download.sources import Sources
from mirror.download.tracks import SpoolTrack, WindowTrack
from mirror.oci.digest import Digest
from mirror.oci.errors import (
    MirrorError,
    StorageError,
    UpstreamCorrupt,
    UpstreamUnavailable,
)
from mirror.routing import Target
from mirror.store.blobs import Spool, is_full
from mirror.store.budget import Reservation
from mirror.transport import Deadline

_STEP = 16 << 20
"""Bytes reserved at a time for a blob whose length nobody told."""
_DECODE_LIMIT = 4 << 20
"""Bytes of a needlessly encoded blob that we decode to look for the right ones; only small ones were ever seen."""
_log = structlog.get_logger()


class Download:
    """Fetches a blob at most twice (wrong bytes are fetched once more, into a new spool), verifies and stores it.

    Readers follow `track`, which is replaced when the second round begins. `opened` tells when the length is known.
    """

    def __init__(
        self, digest: Digest, source: Target, tools: Tools, *, abandon_below: int, background: bool, pass_through: bool
    ) -> None:
        self.digest = digest
        self.sources = Sources(source)
        self.shown_by: Target | None = None
        """Whose bytes these are: its readers need no other permission."""
        self.track: SpoolTrack | WindowTrack | None = None
        self.size: int | None = None
        self.started = asyncio.get_running_loop().time()
        self.finished = False
        self._tools = tools
        self._abandon_below = abandon_below
        self._background = background
        self._pass_through = pass_through
        self._reservation: Reservation | None = None
        self._opened: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._readers = 0
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    # Around it.

    def start(self, at_end: Callable[[Download], None]) -> None:
        """Begins; `at_end` is called on the loop when the download is over, however it ended."""
        self._task = asyncio.create_task(self._run(), name=f"download {self.digest}")
        self._task.add_done_callback(lambda task: self._finish(task, at_end))

    async def opened(self) -> int:
        """Waits until the blob's length in bytes is known. Raises what kept us from it."""
        return await asyncio.shield(self._opened)

    async def wait(self) -> None:
        """Waits for the end; raises nothing."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def cancel(self) -> None:
        """Stops it. A spool stays on the disk, to be resumed when the blob is wanted again."""
        self._stopping = True
        if self._task is not None:
            self._task.cancel()
            await self.wait()

    @property
    def joinable(self) -> bool:
        """Whether a newcomer can still be given byte 0."""
        track = self.track
        if isinstance(track, WindowTrack):
            return track.start == 0 and track.error is None
        return track is None or (track.frozen is None and track.error is None)

    @property
    def stores(self) -> bool:
        """Whether what it fetches is being kept."""
        return isinstance(self.track, SpoolTrack) and self.track.frozen is None

    def attach(self) -> None:
        """One more reader."""
        self._readers += 1

    def detach(self) -> None:
        """A reader left. With nobody left, what has only begun is not finished; nor is what would not be kept."""
        self._readers -= 1
        track = self.track
        if self._readers or self._task is None or (track is not None and track.is_complete):
            return
        young = not self._background and (track is None or track.written < self._abandon_below)
        if young or isinstance(track, WindowTrack):
            self._task.cancel()

    def rate(self) -> float:
        """Bytes a second so far."""
        age = asyncio.get_running_loop().time() - self.started
        return self.track.written / age if self.track is not None and age > 0 else 0.0

    # The work.

    async def _run(self) -> None:
        try:
            if not await self._round(first=True):
                self.sources.rotate()
                if not await self._round(first=False):
                    self._fail(UpstreamCorrupt(f"{self.sources.all[0]} sends wrong bytes for {self.digest}"))
        except MirrorError as error:
            self._fail(error)
        except asyncio.CancelledError:
            self._fail(UpstreamUnavailable(f"the download of {self.digest} was stopped", reason="stopped"))
            raise
        except Exception as error:
            _log.exception("a download failed unexpectedly", digest=str(self.digest))
            self._fail(UpstreamUnavailable(f"the download of {self.digest} failed: {type(error).__name__}"))

    def _fail(self, error: MirrorError) -> None:
        if not self._opened.done():
            self._opened.set_exception(error)
            self._opened.exception()  # heard, even if nobody waits
        if self.track is not None:
            self.track.fail(error)

    def _finish(self, task: asyncio.Task[None], at_end: Callable[[Download], None]) -> None:
        self.finished = True
        if task.cancelled() or not self._opened.done():  # stopped before it ran at all, or frozen without a length
            self._fail(UpstreamUnavailable(f"the download of {self.digest} was stopped", reason="stopped"))
        at_end(self)

    async def _round(self, *, first: bool) -> bool:
        """One fetch from scratch; False if its bytes were wrong. Raises MirrorError for anything else."""
        fetch, track = await self._begin(first=first)
        keep = False
        try:
            await self._fill(fetch, track)
            if isinstance(track, SpoolTrack) and track.frozen is not None:
                return True
            if not await self._verified(fetch, track):
                return False
            self._set_opened(track.written)
            if isinstance(track, SpoolTrack):
                keep = await self._commit(track.spool)
            return True
        except UpstreamUnavailable:
            if first and fetch.disputed:  # perhaps only because a manifest lied about the length
                return self._wrong(track)
            raise
        except asyncio.CancelledError:
            keep = self._stopping and isinstance(track, SpoolTrack) and track.frozen is None
            raise
        finally:
            await fetch.close()
            await self._clean_up(track, keep=keep)

    # Beginning.

    async def _begin(self, *, first: bool) -> tuple[Fetch, SpoolTrack | WindowTrack]:
        cache, timeouts = self._tools.cache, self._tools.timeouts
        deadline = Deadline.after(timeouts.first_byte)
        hint = cache.size_hint(self.sources.all[0], self.digest) if first else None
        spool = await self._resumable(deadline) if first else None
        start = spool.written if spool is not None else 0
        fetch = Fetch(self.digest, self.sources, self._tools, start=start, size=self.size or hint)
        try:
            if self.size is None or start < self.size:
                await fetch.open(deadline)
            self.shown_by = fetch.shown_by or self.shown_by
            if fetch.size is None and not fetch.encoded:
                fetch.size = await self._ask_size(deadline)
            known = None if fetch.encoded else fetch.size
            track = await self._make_track(spool, known)
        except BaseException:
            await fetch.close()
            if spool is not None:
                spool.file.release()
            raise
        track.size = known
        self._present(track, known)
        return fetch, track

    def _present(self, track: SpoolTrack | WindowTrack, size: int | None) -> None:
        previous, self.track = self.track, track
        if size is not None:
            self._set_opened(size)
        track.advance(track.written)
        if previous is not None:
            previous.tell()

    def _set_opened(self, size: int) -> None:
        self.size = size
        if not self._opened.done():
            self._opened.set_result(size)

    async def _ask_size(self, deadline: Deadline) -> int | None:
        for target in self.sources.all:
            try:
                return await self._tools.upstreams.head_blob(target, self.digest, deadline)
            except MirrorError as error:
                _log.info("the length of a blob stays unknown", digest=str(self.digest), error=error.message)
        return None

    async def _resumable(self, deadline: Deadline) -> Spool | None:
        """What an earlier process left of this blob from the same upstream, if its length can be learnt."""
        cache, target = self._tools.cache, self.sources.all[0]
        if self._pass_through or not cache.blobs.has_leftover(self.digest, target.upstream.host):
            return None
        try:
            # The question is also what permits: nothing else is asked where the spool turns out whole.
            size = await self._tools.upstreams.head_blob(target, self.digest, deadline)
            if size is None:
                return None
            spool = await cache.blobs.create_spool(self.digest, target.upstream.host)
        except MirrorError as error:  # asked again, and answered for, where the blob itself is
            _log.info("a leftover spool is not resumed", digest=str(self.digest), error=error.message)
            return None
        if spool.written > size:
            await self._drop_spool(spool)
            return None
        self.size = size
        self.shown_by = target
        return spool

    async def _make_track(self, spool: Spool | None, size: int | None) -> SpoolTrack | WindowTrack:
        """A spool where there is room and the disk works, else a window."""
        cache = self._tools.cache
        if not self._pass_through and cache.trouble.usable("blobs"):
            self._reservation = await cache.budget.reserve(size if size is not None else _STEP)
        if self._reservation is not None:
            try:
                spool = spool or await cache.blobs.create_spool(self.digest, self.sources.all[0].upstream.host)
                self._reservation.written = spool.written
                return SpoolTrack(spool, cache.blobs)
            except StorageError as error:
                cache.trouble.note("blobs", error)
                self._end_reservation()
        if size is None:
            raise UpstreamUnavailable(f"no length is known for {self.digest}, and there is no room to find out")
        if spool is not None:
            await self._drop_spool(spool)
        if not self._readers:
            self._set_opened(size)  # some ask only for the length
            raise UpstreamUnavailable(f"there is no room for {self.digest}, and nobody reads it", reason="no_room")
        return WindowTrack(self.digest, cache.blobs)

    # Filling.

    async def _fill(self, fetch: Fetch, track: SpoolTrack | WindowTrack) -> None:
        while True:
            try:
                await pump(fetch, _Metered(self, track))
                return
            except StorageError as error:
                assert isinstance(track, SpoolTrack)
                track.freeze()
                self._tools.cache.trouble.note("blobs", error)
                return

    async def append(self, track: SpoolTrack | WindowTrack, pieces: list[bytes]) -> None:
        """Appends, making room on a full disk once. Raises StorageError when the disk takes no more."""
        if isinstance(track, WindowTrack):
            await track.append(pieces)
            self._bypassed(sum(map(len, pieces)))
            return
        await self._grow_reservation(track, sum(map(len, pieces)))
        before = track.written
        try:
            await track.append(pieces)
        except StorageError as error:
            if not is_full(error):
                raise
            missing = (track.size or track.written + _STEP) - track.written
            if await self._tools.cache.budget.make_room(missing, "emergency") == 0:
                raise
            await track.append(_after(pieces, track.written - before))
        if self._reservation is not None:
            self._reservation.written = track.written

    async def _grow_reservation(self, track: SpoolTrack, more: int) -> None:
        reservation = self._reservation
        if reservation is None or track.written + more <= reservation.size:
            return
        if not await self._tools.cache.budget.extend(reservation, track.written + more + _STEP):
            raise StorageError("the budget has no room for a blob of unknown length")

    def _bypassed(self, count: int) -> None:
        label = self.sources.all[0].upstream.entry if self.sources.all else "none"
        self._tools.metrics.bypass_bytes.labels(upstream=label, reason="pass_through").inc(count)

    # Ending.

    async def _verified(self, fetch: Fetch, track: SpoolTrack | WindowTrack) -> bool:
        if track.hexdigest != self.digest.hex and not (fetch.encoded and await self._decode(track)):
            return self._wrong(track)
        track.complete()
        if self.shown_by is not None:
            await self._tools.cache.put_link(self.shown_by, self.digest, track.written, proven=True)
        return True

    def _wrong(self, track: SpoolTrack | WindowTrack) -> bool:
        """Counts wrong bytes; readers who took some of them fail, the others wait for the second round."""
        culprit = self.shown_by or self.sources.all[0]
        self._tools.metrics.digest_mismatches.labels(upstream=culprit.upstream.entry).inc()
        self._tools.cache.forget_hint(culprit, self.digest)
        _log.error("an upstream sent wrong bytes", source=str(culprit), digest=str(self.digest), bytes=track.written)
        self.size = None
        track.fail(UpstreamCorrupt(f"{culprit} sent wrong bytes for {self.digest}"))
        return False

    async def _decode(self, track: SpoolTrack | WindowTrack) -> bool:
        """Some front ends compress what must not be; the right bytes are then inside."""
        if not isinstance(track, SpoolTrack) or track.written > _DECODE_LIMIT:
            return False
        blobs = self._tools.cache.blobs
        try:
            inside = await blobs.run(_gunzip, track.spool)
            if inside is None or not self.digest.matches(inside):
                return False
            await self._drop_spool_file(track.spool)
            spool = await blobs.create_spool(self.digest, self.sources.all[0].upstream.host)
            await blobs.append(spool, [inside])
        except StorageError as error:
            self._tools.cache.trouble.note("blobs", error)
            return False
        track.spool.file.release()
        track.spool, track.written = spool, spool.written
        return True

    async def _commit(self, spool: Spool) -> bool:
        cache = self._tools.cache
        try:
            await cache.blobs.commit(spool)
        except StorageError as error:
            cache.trouble.note("blobs", error)
            return False
        cache.trouble.clear("blobs")
        source = self.shown_by or self.sources.all[0]
        await cache.put_origin(self.digest, source.upstream.host)
        cache.blobs.touch(self.digest)
        self._tools.metrics.stored_bytes.labels(upstream=source.upstream.entry).inc(spool.written)
        return True

    async def _clean_up(self, track: SpoolTrack | WindowTrack, *, keep: bool) -> None:
        self._end_reservation()
        if isinstance(track, SpoolTrack):
            if not keep:
                await self._drop_spool_file(track.spool)
            track.spool.file.release()

    async def _drop_spool(self, spool: Spool) -> None:
        await self._drop_spool_file(spool)
        spool.file.release()

    async def _drop_spool_file(self, spool: Spool) -> None:
        try:
            await self._tools.cache.blobs.discard(spool)
        except StorageError as error:
            self._tools.cache.trouble.note("blobs", error)

    def _end_reservation(self) -> None:
        if self._reservation is not None:
            self._reservation.end()
            self._reservation = None


class _Metered:
    """A track as the pump sees it: every append goes through the download, which accounts for it."""

    def __init__(self, download: Download, track: SpoolTrack | WindowTrack) -> None:
        self._download = download
        self._track = track

    async def append(self, pieces: list[bytes]) -> None:
        await self._download.append(self._track, pieces)


def _after(pieces: list[bytes], done: int) -> list[bytes]:
    """What is left of `pieces` after the first `done` bytes."""
    return [b"".join(pieces)[done:]]


def _gunzip(spool: Spool) -> bytes | None:
    try:
        return zlib.decompressobj(wbits=31).decompress(spool.read_all(), _DECODE_LIMIT)
    except zlib.error:
        return None

"""One fetch of a blob from its first byte, or from where an earlier process stopped: opened, filled, verified, kept."""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from mirror.cache import Question
from mirror.download.ahead import SpoolAhead
from mirror.download.fetch import Fetch, Tools
from mirror.download.pump import pump
from mirror.download.sources import Sources
from mirror.download.tracks import SpoolTrack, WindowTrack
from mirror.oci.digest import Digest
from mirror.oci.errors import MirrorError, StorageError, UpstreamUnavailable
from mirror.routing import Target
from mirror.store.blobs import Leftover, Spool, is_full
from mirror.store.room import Reservation
from mirror.transport import Deadline
from mirror.transport.rate import MinimumRate

_STEP = 1 << 20
"""Bytes reserved at a time for a blob whose length nobody told."""
_DECODE_LIMIT = 4 << 20
"""Bytes of a needlessly encoded blob that we decode to look for the right ones; only small ones were ever seen."""
_FILES = 1
"""Bytes, of however small a blob: it has an inode, and with its directory's block that is all a new file wants."""
T = TypeVar("T")
_log = structlog.get_logger()


class Attempt:
    """`open`, then `fill`, then `commit` what is right, and `close` in any case.

    first: believe what manifests and HEAD say of the length, and look for what an earlier process left
    """

    def __init__(self, digest: Digest, sources: Sources, tools: Tools, *, first: bool, pass_through: bool) -> None:
        self.track: SpoolTrack | WindowTrack | None = None
        """There after `open`."""
        self.size: int | None = None
        """The blob's length, as soon as it may be told: where the upstream contradicts a manifest, or sends no length
        or encoded bytes, only the digest can tell it."""
        self.began_at = 0
        """Bytes that an earlier process had fetched."""
        self._digest = digest
        self._sources = sources
        self._tools = tools
        self._first = first
        self._pass_through = pass_through
        self._claimed = False
        self._leftover: Leftover | None = None
        self._spool: Spool | None = None
        self._ahead: SpoolAhead | None = None
        self._reservation: Reservation | None = None
        self._fetch = Fetch(digest, sources, tools, takes_encoded=True)

    @property
    def shown(self) -> Question | None:
        """The question that the bytes answer: readers from its repository need no other permission while it counts."""
        return self._fetch.shown

    @property
    def culprit(self) -> Target:
        """Whom to blame for wrong bytes."""
        return self.shown.target if self.shown is not None else self._source

    @property
    def improvable(self) -> bool:
        """Whether a break may be due to a wrong length, or has hurt nobody yet, so that another attempt makes sense."""
        return self._first and self.track is not None and (self._claimed or self.size is None)

    # Beginning.

    async def open(self, watched: Callable[[], bool]) -> None:
        """Gets headers, and a place for the bytes; without room one in memory, if `watched` says that somebody reads.

        Raises Unknown and UpstreamRefused, UpstreamUnavailable.
        """
        source = self._source = self._sources.all[0]
        if self._first and not self._pass_through:
            await self._take_up(source)
        cache = self._tools.cache
        if self._spool is None and not self._pass_through and cache.trouble.usable("blobs"):
            self._ahead = SpoolAhead(cache.blobs, self._digest, source.upstream.host)
        if self.size is None or self.began_at < self.size:
            await self._fetch.open(self._tools.timeouts.first_byte)
        if self._spool is None:
            hint = cache.hints.get(source, self._digest) if self._first else None
            self.size = await self._learn_size(hint)
        self.track = await self._make_track(watched)
        self.track.size = self.size

    async def _take_up(self, source: Target) -> None:
        """What an earlier process left of this blob from the same upstream, if its length can be learnt."""
        blobs, host = self._tools.cache.blobs, source.upstream.host
        if not blobs.has_leftover(self._digest, host):
            return
        try:
            # The question is also what permits: nothing else is asked where the spool turns out whole.
            question = await self._tools.cache.question(source)
            size = await self._ask_size(source)
        except MirrorError as error:  # asked again, and answered for, where the blob itself is
            _log.info("a leftover spool is not resumed", digest=str(self._digest), error=error.message)
            return
        leftover = blobs.take_leftover(self._digest, host) if size is not None else None
        if leftover is None or size is None or not await self._resume(leftover, size):
            return
        self.size, self._leftover = size, leftover
        self._fetch = Fetch(self._digest, self._sources, self._tools, start=self.began_at, size=size, shown=question)

    async def _resume(self, leftover: Leftover, size: int) -> bool:
        """Whether the leftover is our spool now."""
        cache, self.began_at = self._tools.cache, leftover.size
        try:
            if leftover.size > size:
                await cache.blobs.discard(leftover)
            elif await self._reserve_beside(leftover, size):
                self._spool = await cache.blobs.resume_spool(self._digest, leftover)
                return True
        except StorageError as error:
            cache.trouble.note("blobs", error)
            self._end_reservation()
        self.began_at = 0
        return False

    async def _reserve_beside(self, leftover: Leftover, size: int) -> bool:
        """Room for all of the blob; without it the leftover stays what it was."""
        reserved = False
        try:
            reserved = await self._reserve(size)
        finally:
            if not reserved:
                self._tools.cache.blobs.put_back(self._digest, leftover)
        return reserved

    async def _learn_size(self, hint: int | None) -> int | None:
        """What may be told of the length: what the upstream says with the bytes, unless a manifest contradicts it."""
        fetch = self._fetch
        told, hint = fetch.size, self._credible(hint)
        if fetch.encoded:
            return None
        if told is None and self._first:
            fetch.stop = hint or self._credible(await self._ask_around_for_size())
            self._claimed = fetch.stop is not None
            return fetch.stop
        if told is not None and hint is not None and hint != told:
            fetch.stop = min(hint, told)
            return None
        return self._credible(told)

    def _credible(self, size: int | None) -> int | None:
        return size if size or self._digest.matches(b"") else None

    async def _ask_around_for_size(self) -> int | None:
        for target in self._sources.all:
            try:
                return await self._ask_size(target)
            except MirrorError as error:
                _log.info("the length of a blob stays unknown", digest=str(self._digest), error=error.message)
        return None

    async def _ask_size(self, target: Target) -> int | None:
        deadline = Deadline.after(self._tools.timeouts.cold_head)
        return await self._tools.upstreams.head_blob(target, self._digest, deadline)

    # A place for the bytes.

    async def _make_track(self, watched: Callable[[], bool]) -> SpoolTrack | WindowTrack:
        """A spool where there is room and the disk works, else a window."""
        cache = self._tools.cache
        room = self.size if self.size is not None else self._fetch.size
        if self._spool is None and not self._pass_through and await self._reserve(_STEP if room is None else room):
            try:
                self._spool = await self._with_room(self._create_spool)
            except StorageError as error:
                cache.trouble.note("blobs", error)
                self._end_reservation()
        if self._spool is not None:
            return SpoolTrack(self._spool, cache.blobs)
        if self._ahead is not None:
            self._ahead.drop()
            self._ahead = None
        if room is None:
            raise UpstreamUnavailable(
                f"no length is known for {self._digest}, and there is no room to find out", reason="no_room"
            )
        if not watched():
            raise UpstreamUnavailable(f"there is no room for {self._digest}, and nobody reads it", reason="no_room")
        self.size, self._fetch.stop = room, None  # cannot wait for the digest here: the upstream's word has to do
        timeouts = self._tools.timeouts
        return WindowTrack(self._digest, cache.blobs, MinimumRate(timeouts.min_rate, timeouts.client))

    async def _create_spool(self) -> Spool:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            return await ahead.take()
        return await self._tools.cache.blobs.create_spool(self._digest, self._source.upstream.host)

    async def _with_room(self, call: Callable[[], Awaitable[T]]) -> T:
        """A call that makes a file, tried again where a full disk gave room: it may have bytes, but no inodes."""
        try:
            return await call()
        except StorageError as error:
            if not is_full(error) or not await self._tools.cache.room.make_room(_FILES, "emergency"):
                raise
        return await call()

    async def _reserve(self, size: int) -> bool:
        cache = self._tools.cache
        if cache.trouble.usable("blobs"):
            self._reservation = await cache.room.reserve(size)
        return self._reservation is not None

    # Filling.

    async def fill(self) -> bool:
        """Brings all bytes onto the track and compares the digest. False where it is another one, or the track frozen.

        Raises Unknown, UpstreamRefused and UpstreamUnavailable where the rest does not come.
        """
        track = self.track
        assert track is not None, "filled before it was opened"
        while True:
            try:
                await pump(self._fetch, self)
            except StorageError as error:
                assert isinstance(track, SpoolTrack), "a window is no storage"
                self._tools.cache.trouble.note("blobs", error)
                if track.written != self.size:  # else only the disk's word on the last piece is missing
                    track.freeze()
                    return False
            if await self._is_right(track):
                break
            if not self._fetch.ended_early:
                await self._fetch.noted()
                return False
            await self._fetch.go_on()
        track.complete()
        self.size = track.written
        shown = self._fetch.shown
        if shown is not None:
            await self._fetch.noted(known_better=True)
            await self._tools.cache.put_link(shown, "blob", self._digest, track.written, proven=True)
        return True

    async def append(self, pieces: list[bytes]) -> None:
        """Takes bytes from the pump, making room on a full disk once. Raises StorageError when it takes no more."""
        track, count = self.track, sum(map(len, pieces))
        if not isinstance(track, SpoolTrack):
            assert track is not None, "filled before it was opened"
            await track.append(pieces)
            if not self._fetch.relayed:
                self._tools.metrics.bypass_bytes.labels(self.culprit.upstream.entry, "pass_through").inc(count)
            return
        await self._grow_reservation(track, count)
        before = track.written
        try:
            await track.append(pieces)
        except StorageError as error:
            if not is_full(error):
                raise
            missing = (self.size or track.written + _STEP) - track.written
            if await self._tools.cache.room.make_room(missing, "emergency") == 0:
                raise
            await track.append([b"".join(pieces)[track.written - before :]])
        if self._reservation is not None:
            self._reservation.written = track.written

    async def _grow_reservation(self, track: SpoolTrack, more: int) -> None:
        reservation = self._reservation
        if reservation is None or track.written + more <= reservation.size:
            return
        if not await self._tools.cache.room.extend(reservation, track.written + more + _STEP):
            raise StorageError("the budget has no room for a blob of unknown length")

    # Ending.

    async def _is_right(self, track: SpoolTrack | WindowTrack) -> bool:
        if track.hexdigest == self._digest.hex:
            return True
        return self._fetch.encoded and isinstance(track, SpoolTrack) and await self._decode(track)

    async def _decode(self, track: SpoolTrack) -> bool:
        """Some front ends compress what must not be; the right bytes are then inside."""
        if track.written > _DECODE_LIMIT:
            return False
        blobs, encoded = self._tools.cache.blobs, track.spool
        try:
            inside = await blobs.run(_gunzip, encoded, holding=encoded.file)
            if inside is None or not self._digest.matches(inside):
                return False
            self._spool = await blobs.create_spool(self._digest, self.culprit.upstream.host)
            track.begin_anew(self._spool)
            await blobs.discard(encoded)
            await track.append([inside])
        except StorageError as error:
            self._tools.cache.trouble.note("blobs", error)
            return False
        return True

    async def commit(self) -> None:
        """Makes the verified spool the blob; without a spool, or where the disk fails, nothing is kept."""
        cache, spool = self._tools.cache, self._spool
        if spool is None:
            return
        try:
            await self._with_room(lambda: cache.blobs.commit(spool))
        except StorageError as error:
            cache.trouble.note("blobs", error)
            return
        self._spool = None
        self._end_reservation()  # its bytes count as a blob from now on
        upstream = self.culprit.upstream
        await cache.put_origin(self._digest, upstream.host)
        cache.blobs.touch(self._digest)
        self._tools.metrics.stored_bytes.labels(upstream=upstream.entry).inc(spool.written)

    async def close(self, *, keep: bool) -> None:
        """Ends everything but the track's file, which may have readers; `keep` leaves the spool for a later process."""
        await self._fetch.close()
        spool, self._spool = self._spool, None
        try:
            if self._ahead is not None:
                await self._ahead.remove()
            if self.track is None and spool is not None and self._leftover is not None:
                self._tools.cache.blobs.put_back(self._digest, self._leftover)
            elif spool is not None and not (keep and self.size is not None):
                await self._tools.cache.blobs.discard(spool)
        except StorageError as error:
            self._tools.cache.trouble.note("blobs", error)
        finally:
            self._end_reservation()
            if spool is not None and self.track is None:
                spool.file.release()

    def _end_reservation(self) -> None:
        if self._reservation is not None:
            self._reservation.end()
            self._reservation = None


def _gunzip(spool: Spool) -> bytes | None:
    try:
        return zlib.decompressobj(wbits=31).decompress(spool.read_all(), _DECODE_LIMIT)
    except zlib.error:
        return None

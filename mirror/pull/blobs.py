"""Blobs: given from the disk, from a download under way, or from a new one; to those who may have them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from mirror.cache import Cache, Question
from mirror.config import Timeouts
from mirror.download import Body, Download, Downloads, FlightBody, HeldBody, RangeBody
from mirror.metrics import Metrics
from mirror.oci.byte_range import RangeSpec
from mirror.oci.digest import Digest
from mirror.oci.errors import StorageError
from mirror.pull.answers import BlobAnswer, Source
from mirror.pull.permission import Permissions, Unprovable
from mirror.routing import Target
from mirror.store.files import SharedFile
from mirror.transport import Deadline


class BlobPuller:
    """Answers GET and HEAD of blobs."""

    def __init__(
        self, cache: Cache, downloads: Downloads, permissions: Permissions, metrics: Metrics, timeouts: Timeouts
    ) -> None:
        self._cache = cache
        self._downloads = downloads
        self._permissions = permissions
        self._metrics = metrics
        self._timeouts = timeouts

    async def head(self, target: Target, digest: Digest) -> BlobAnswer:
        """The blob's length; asks the upstream where it has not told yet, and never fetches the blob.

        Raises BlobUnknown, UpstreamRefused, UpstreamUnavailable.
        """
        size, source = await self._permissions.size(target, digest, Deadline.after(self._timeouts.cold_head))
        return BlobAnswer(digest, size, None, None, source)

    async def get(self, target: Target, digest: Digest, spec: RangeSpec | None) -> BlobAnswer:
        """The blob or a range of it. The caller closes the answer's body.

        Raises BlobUnknown, UpstreamRefused, UpstreamUnavailable, RangeNotSatisfiable.
        """
        first_byte = Deadline.after(self._timeouts.first_byte)
        file = await self._open(digest)
        if file is not None:
            try:
                return await self._from_file(target, digest, spec, file, first_byte)
            except Unprovable:
                pass  # fetched from there, whole: that proves it
        deadline = first_byte if spec is None else min(first_byte, Deadline.after(self._timeouts.cold_head))
        boarding = self._board(target, digest, deadline, background=spec is not None)
        flight = await deadline.bound(boarding, f"{target}@{digest}")
        if spec is None:
            return BlobAnswer(digest, flight.size, None, flight.body, flight.source, deadline)
        return await self._range(target, flight, spec, deadline)

    # Held.

    async def _open(self, digest: Digest) -> SharedFile | None:
        try:
            return await self._cache.open_blob(digest)
        except StorageError as error:
            self._cache.trouble.note("blobs", error)
            return None

    async def _from_file(
        self, target: Target, digest: Digest, spec: RangeSpec | None, file: SharedFile, deadline: Deadline
    ) -> BlobAnswer:
        async def detour(error: OSError) -> Body:
            await self._cache.drop_blob(digest)
            return await self._downloads.detour(digest, target, error)

        try:
            source = await self._permissions.held(target, digest, file, deadline)
            byte_range = spec.resolve(file.size) if spec is not None else None
        except BaseException:
            file.release()
            raise
        return BlobAnswer(digest, file.size, byte_range, HeldBody(file, detour), source)

    # On its way.

    async def _board(self, target: Target, digest: Digest, deadline: Deadline, *, background: bool) -> _Flight:
        """Joins the download of the blob, or starts it, and waits until its length is known and may be told."""
        host = target.upstream.host
        download = self._downloads.current(digest, host)
        if download is None or target not in download.sources:
            await self._cache.check_absence(target, digest, "blob")
            download = self._downloads.current(digest, host)  # perhaps somebody else began meanwhile
        if download is None:
            source = Source.MISS
            download = self._downloads.start(digest, target, background=background)
        else:
            source = Source.JOINED
            download.sources.add(target)
            self._metrics.download_joins.labels(upstream=target.upstream.entry).inc()
        body = self._downloads.read(download, target)
        try:
            size = await body.opened()
            if not await self._is_shown(target, download.shown):
                await self._permissions.in_flight(target, digest, size, deadline)
        except BaseException:
            await body.close()
            raise
        return _Flight(download, size, body, source)

    async def _is_shown(self, target: Target, shown: Question | None) -> bool:
        """Whether the download itself is the permission: the bytes come from this repository, not refused since."""
        return shown is not None and shown.target == target and await self._cache.still_counts(shown)

    # Ranges of what is not held.

    async def _range(self, target: Target, flight: _Flight, spec: RangeSpec, deadline: Deadline) -> BlobAnswer:
        try:
            byte_range = spec.resolve(flight.size)
            soon = self._soon(flight, byte_range.start)
        except BaseException:
            await flight.body.close()
            raise
        digest, size, patience = flight.download.digest, flight.size, None if soon else deadline
        if byte_range.length == size:  # all of it, in the words of a range: as verified as any whole blob
            return BlobAnswer(digest, size, byte_range, flight.body, flight.source, patience)
        if not soon:
            await flight.body.close()
        body = RangeBody(
            digest,
            target,
            self._downloads.tools,
            size=size,
            end=byte_range.end,
            flight=flight.body if soon else None,
            board=lambda: self._downloads.rejoin(flight.download, target),
        )
        source = flight.source if soon else Source.BYPASS
        return BlobAnswer(digest, size, byte_range, body, source, patience)

    def _soon(self, flight: _Flight, offset: int) -> bool:
        """Whether the download gets to `offset` within `cold_head`; a young one has no rate yet, and counts as fast."""
        download, track = flight.download, flight.download.track
        if track is None or not download.stores:
            return False
        if offset < track.visible:
            return True
        if flight.source is Source.MISS and offset > 0:
            return False  # cold, and not from the start: its own request is the faster answer
        age = asyncio.get_running_loop().time() - download.started
        soon = self._timeouts.cold_head
        return age < soon / 3 or track.written + download.rate() * soon >= offset


@dataclass(frozen=True, slots=True)
class _Flight:
    """A place on a download: what it is of, how long it is, and the reader."""

    download: Download
    size: int
    body: FlightBody
    source: Source

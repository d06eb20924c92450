"""Blobs: given from the disk, from a download under way, or from a new one; to those who may have them."""

from __future__ import annotations

import errno
from dataclasses import dataclass

from mirror.cache import Cache, Question
from mirror.config import Timeouts
from mirror.download import Body, Download, Downloads, FlightBody, HeldBody, RangeBody
from mirror.metrics import Metrics
from mirror.oci.byte_range import ByteRange, RangeSet
from mirror.oci.digest import Digest
from mirror.oci.errors import StorageError, Unprovable, UpstreamTimeout, UpstreamUnavailable
from mirror.pull.answers import BlobAnswer, Source
from mirror.pull.permission import Permissions
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
        return BlobAnswer(digest, size, (), None, source)

    async def get(self, target: Target, digest: Digest, ranges: RangeSet | None) -> BlobAnswer:
        """The blob or parts of it. The caller closes the answer's body.

        Raises BlobUnknown, UpstreamRefused, UpstreamUnavailable, RangeNotSatisfiable, RangeInvalid.
        """
        first_byte = Deadline.after(self._timeouts.first_byte)
        file = await self._open(target, digest)
        if file is not None:
            try:
                return await self._from_file(target, digest, ranges, file, first_byte)
            except Unprovable:
                pass  # fetched from there, whole: that proves it
        deadline = first_byte if ranges is None else min(first_byte, Deadline.after(self._timeouts.cold_head))
        flight = await self._board(target, digest, deadline, background=ranges is not None)
        if ranges is None:
            return BlobAnswer(digest, flight.size, (), flight.body, flight.source, deadline)
        return await self._parts(target, flight, ranges, deadline)

    # Held.

    async def _open(self, target: Target, digest: Digest) -> SharedFile | None:
        ended = self._downloads.ended
        try:
            file = await self._cache.open_blob(digest, target)
            if file is None and self._downloads.ended != ended:
                file = await self._cache.open_blob(digest, target)  # perhaps it has come while we looked
            return file
        except StorageError as error:
            self._cache.trouble.note("blobs", error)
            return None

    async def _from_file(
        self, target: Target, digest: Digest, ranges: RangeSet | None, file: SharedFile, deadline: Deadline
    ) -> BlobAnswer:
        parts: tuple[ByteRange, ...] = ()

        async def detour(error: OSError) -> Body:
            if error.errno != errno.ETIMEDOUT:  # slow says nothing of the bytes
                await self._cache.drop_blob(digest, file)
            if parts and parts[0].length < file.size:
                self._cache.trouble.note("blobs", error)
                return RangeBody(
                    digest,
                    target,
                    self._downloads.tools_for(target),
                    size=file.size,
                    parts=parts,
                    anew=lambda: self._downloads.anew(digest, target),
                )
            return await self._downloads.detour(digest, target, error)

        try:
            source = await self._permissions.held(target, digest, file, deadline)
            if ranges is not None:
                parts = ranges.resolve(file.size)
        except BaseException:
            file.release()
            raise
        return BlobAnswer(digest, file.size, parts, HeldBody(file, detour), source, content=file.content)

    # On its way.

    async def _board(self, target: Target, digest: Digest, deadline: Deadline, *, background: bool) -> _Flight:
        """Joins the download of the blob, or starts it, and waits until its length is known and may be told."""
        what = f"{target}@{digest}"
        download, source = await deadline.bound(self._join(target, digest, background=background), what)
        body = self._downloads.read(download, target)
        try:
            size = await deadline.bound(self._boarded(target, download, body, deadline), what)
            if background:
                download.keep_on()
            if download.joined:
                source = Source.JOINED
            elif download.alone and source is Source.MISS:
                source = Source.BYPASS
            if source is Source.JOINED:
                self._metrics.download_joins.labels(upstream=target.upstream.entry).inc()
        except UpstreamTimeout as error:
            queued = download.queued
            await body.close()
            if queued:
                raise UpstreamUnavailable(f"{what}: too many downloads at a time", reason="queue") from error
            raise
        except BaseException:
            await body.close()
            raise
        return _Flight(download, size, body, source)

    async def _join(self, target: Target, digest: Digest, *, background: bool) -> tuple[Download, Source]:
        download = self._downloads.current(digest, target.upstream)
        if download is None or target not in download.sources:
            await self._cache.check_absence(target, digest, "blob")
            download = self._downloads.current(digest, target.upstream)  # perhaps somebody else began meanwhile
        if download is None:
            return self._downloads.start(digest, target, background=background), Source.MISS
        download.sources.add(target)
        return download, Source.JOINED

    async def _boarded(self, target: Target, download: Download, body: FlightBody, deadline: Deadline) -> int:
        size = await body.opened()
        if not await self._is_shown(target, download.shown):
            await self._permissions.in_flight(target, download.digest, size, deadline)
        return size

    async def _is_shown(self, target: Target, shown: Question | None) -> bool:
        """Whether the download itself is the permission: the bytes come from this repository, not refused since."""
        return shown is not None and shown.target == target and await self._cache.still_counts(shown)

    # For other workers.

    async def lend(self, target: Target, digest: Digest, *, background: bool) -> SharedFile | tuple[Download, bool]:
        """The blob's file, if it is held and `target` may have it; else its download, and whether others began that.

        Raises as `get`.
        """
        deadline = Deadline.after(self._timeouts.first_byte)
        file = await self._open(target, digest)
        if file is not None:
            try:
                await self._permissions.held(target, digest, file, deadline)
                return file
            except Unprovable:
                file.release()
            except BaseException:
                file.release()
                raise
        download, source = await deadline.bound(self._join(target, digest, background=background), f"{target}@{digest}")
        return download, source is Source.JOINED

    async def pass_on(self, target: Target, digest: Digest, deadline: Deadline) -> tuple[int, FlightBody]:
        """The blob's length and bytes, past the disk unless somebody is storing it. The caller closes the body.

        Raises as `get`.
        """
        body = self._downloads.anew(digest, target)
        try:
            return await deadline.bound(self._boarded(target, body.download, body, deadline), str(digest)), body
        except BaseException:
            await body.close()
            raise

    # Parts of what is not held.

    async def _parts(self, target: Target, flight: _Flight, ranges: RangeSet, deadline: Deadline) -> BlobAnswer:
        digest, size = flight.download.digest, flight.size
        try:
            parts = ranges.resolve(size)
            cold = flight.source is Source.MISS and parts[0].start > 0  # its own request is the faster answer
            body = RangeBody(
                digest,
                target,
                self._downloads.tools_for(target),
                size=size,
                parts=parts,
                flight=flight.body,
                anew=lambda: self._downloads.anew(digest, target),
                waits=not cold,
                patient=ranges.is_rest,
            )
        except BaseException:
            await flight.body.close()
            raise
        patience = None if body.soon else deadline
        if parts[0].length == size:  # all of it, in the words of a range: as verified as any whole blob
            return BlobAnswer(digest, size, parts, flight.body, flight.source, patience)
        return BlobAnswer(digest, size, parts, body, flight.source if body.soon else Source.BYPASS, patience)


@dataclass(frozen=True, slots=True)
class _Flight:
    """A place on a download: what it is of, how long it is, and the reader."""

    download: Download
    size: int
    body: FlightBody
    source: Source

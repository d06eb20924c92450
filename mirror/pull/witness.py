"""What an upstream is asked before a blob is given through one of its repositories; what it says becomes a link."""

from __future__ import annotations

from typing import Protocol

import structlog

from mirror.cache import Cache
from mirror.download import Sample
from mirror.memory import Bounded
from mirror.metrics import Metrics
from mirror.oci.byte_range import ByteRange
from mirror.oci.digest import Digest
from mirror.oci.errors import Unprovable, UpstreamUnavailable
from mirror.routing import Target
from mirror.slots import Slots
from mirror.store.shapes import LinkRecord
from mirror.transport import BlobStream, Deadline
from mirror.upstream import Upstreams

_MOST_SKIPPED = 1 << 20
"""Bytes that are read to get at those to compare, where an upstream ignores ranges."""
_DOUBTS = 10_000
PROOFS = 64
"""Blobs of which upstreams are showing a part at the same time: one that stalls there holds a connection for each."""
_PROOFS_WAITING = 4 * PROOFS
_log = structlog.get_logger()


class Witness(Protocol):
    """Everything raises BlobUnknown and UpstreamRefused for a no, and UpstreamUnavailable for no answer in time."""

    async def claim(self, target: Target, digest: Digest, deadline: Deadline) -> LinkRecord:
        """The upstream's word that it has the blob, with its length. Raises Unprovable where it tells none."""

    async def prove(self, target: Target, digest: Digest, size: int, ours: Sample, deadline: Deadline) -> LinkRecord:
        """The proof that it has the bytes which we hold, by some of them. Raises Unprovable where it shows others."""

    async def renew(self, target: Target, digest: Digest, deadline: Deadline) -> None:
        """Its word once more, on a link that is getting old."""


class NearWitness:
    """Asks upstreams themselves."""

    def __init__(self, cache: Cache, upstreams: Upstreams, metrics: Metrics) -> None:
        self._cache = cache
        self._upstreams = upstreams
        self._metrics = metrics
        self._doubted: Bounded[tuple[str, Digest], bool] = Bounded(_DOUBTS)
        """Which upstreams failed to show what they claim: they get no second guess at another place."""
        self._proofs = Slots(PROOFS, _PROOFS_WAITING, what="comparisons")

    async def claim(self, target: Target, digest: Digest, deadline: Deadline) -> LinkRecord:
        """As of Witness."""
        question = await self._cache.question(target)
        async with self._cache.hearing_no(target, digest, "blob"):
            size = await self._upstreams.head_blob(target, digest, deadline)
        if size is None:
            raise Unprovable(f"{target} does not tell the length of {digest}", reason="length")
        return await self._cache.put_link(question, "blob", digest, size, proven=False)

    async def renew(self, target: Target, digest: Digest, deadline: Deadline) -> None:
        """As of Witness."""
        await self.claim(target, digest, deadline)

    async def prove(self, target: Target, digest: Digest, size: int, ours: Sample, deadline: Deadline) -> LinkRecord:
        """As of Witness."""
        if self._doubted.get((target.upstream.host, digest)):
            raise Unprovable(f"{target} has shown other bytes of {digest} before", reason="corrupt")
        question = await self._cache.question(target)
        place = await self._proofs.take(target.upstream.host, deadline.remaining() / 2)
        try:
            theirs = await deadline.bound(self._shown(target, digest, ours, deadline), f"{target}@{digest}")
        finally:
            place.release()
        if theirs != ours.data:
            # Or ours have rotted. If it really has the blob, fetching it whole mends that.
            self._doubted.set((target.upstream.host, digest), True)
            self._metrics.digest_mismatches.labels(upstream=target.upstream.entry).inc()
            _log.error("an upstream claims bytes that it does not have", source=str(target), digest=str(digest))
            raise Unprovable(f"{target} shows other bytes of {digest} than we hold", reason="corrupt")
        return await self._cache.put_link(question, "blob", digest, size, proven=True)

    async def _shown(self, target: Target, digest: Digest, ours: Sample, deadline: Deadline) -> bytes:
        """What the upstream has where our sample stands."""
        byte_range = ByteRange(ours.offset, ours.offset + len(ours.data) - 1)
        try:
            async with self._cache.hearing_no(target, digest, "blob"):
                stream = await self._upstreams.open_blob(target, digest, deadline, byte_range)
        except UpstreamUnavailable as error:
            if error.reason == "range":
                raise Unprovable(error.message, reason="range") from error
            raise
        async with stream:
            skip = ours.offset - stream.start
            if skip > _MOST_SKIPPED or stream.content_encoding is not None:
                raise Unprovable(f"{target} shows no part of {digest}", reason="range")
            shown = (await _read(stream, skip + len(ours.data)))[skip:]
        if len(shown) < len(ours.data):
            raise Unprovable(f"{target} shows less of {digest} than was asked for", reason="range")
        return shown


async def _read(stream: BlobStream, count: int) -> bytes:
    """The first `count` bytes of a stream, or what it has."""
    data = bytearray()
    async for chunk in stream.chunks():
        data += chunk
        if len(data) >= count:
            break
    return bytes(data[:count])

"""May this repository give this blob? Only the upstream's own mouth tells; the answer is kept as a link."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog

from mirror.cache import Cache
from mirror.download import Sample, sample_of_file
from mirror.memory import Bounded
from mirror.metrics import Metrics
from mirror.oci.byte_range import ByteRange
from mirror.oci.digest import Digest
from mirror.oci.errors import StorageError, UpstreamUnavailable
from mirror.pull.answers import Source
from mirror.pull.questions import Questions
from mirror.pull.renewals import Renewals
from mirror.routing import Target
from mirror.slots import Slots
from mirror.store.files import SharedFile
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


class Unprovable(UpstreamUnavailable):
    """The upstream says that it has the blob, but its word on a part or its length is not enough: fetch it whole."""


class Permissions:
    """Asks upstreams for links to blobs, each question once at a time.

    A manifest that names a digest is no answer, only a reason to ask: whoever can push a manifest can name a foreign
    digest. Everything raises BlobUnknown or UpstreamRefused where the upstream says no, and UpstreamUnavailable where
    it does not answer in time.
    """

    def __init__(
        self, cache: Cache, upstreams: Upstreams, renewals: Renewals, metrics: Metrics, first_byte: float
    ) -> None:
        self._cache = cache
        self._upstreams = upstreams
        self._renewals = renewals
        self._metrics = metrics
        self._first_byte = first_byte
        self._questions = Questions()
        self._doubted: Bounded[tuple[str, Digest], bool] = Bounded(_DOUBTS)
        """Which upstreams failed to show what they claim: they get no second guess at another place."""
        self._proofs = Slots(PROOFS, _PROOFS_WAITING, what="comparisons")

    async def close(self) -> None:
        """Stops what is being asked."""
        await self._questions.close()

    async def held(self, target: Target, digest: Digest, file: SharedFile, deadline: Deadline) -> Source:
        """Makes sure that the blob in `file` may be given: HIT without asking, else REVALIDATED.

        An upstream other than the one that it came from must show some of its bytes, else it could claim any digest.
        Raises Unprovable where it does not, and where our file has not the length that was proven: whichever of the
        two is wrong, fetching the blob whole mends both.
        """
        link = await self._cache.link(target, "blob", digest)
        if link is not None and link.proven and link.size != file.size:
            _log.warning(
                "a blob is not as long as it was; it is fetched again",
                digest=str(digest), size=file.size, expected=link.size,
            )  # fmt: skip
            raise Unprovable(f"we hold {file.size} bytes of {digest} instead of {link.size}", reason="size")
        if link is not None and await self._cache.permits(target, digest, link, file.size):
            self._use(target, digest, link)
            return Source.HIT
        claim = await self._claimed(target, digest, file.size, deadline)
        if not await self._cache.permits(target, digest, claim, file.size):
            if self._doubted.get((target.upstream.host, digest)):
                raise Unprovable(f"{target} has shown other bytes of {digest} before", reason="corrupt")
            # Read here, while the caller holds the file: the question may outlive the caller.
            sample = await self._sample(digest, file)
            await self._ask(
                ("proof", target, digest),
                deadline,
                lambda within: self._prove(target, digest, claim.size, sample, within),
            )
        return Source.REVALIDATED

    async def in_flight(self, target: Target, digest: Digest, size: int, deadline: Deadline) -> None:
        """Makes sure that a blob of `size` bytes, on its way here from the same upstream, may be given."""
        await self._claimed(target, digest, size, deadline)

    async def size(self, target: Target, digest: Digest, deadline: Deadline) -> tuple[int, Source]:
        """The blob's length in bytes, as the upstream says; HIT where it has said so before. It is remembered."""
        link = await self._cache.link(target, "blob", digest)
        if link is not None:
            self._use(target, digest, link)
            return link.size, Source.HIT
        return (await self._claim(target, digest, deadline)).size, Source.MISS

    async def _claimed(self, target: Target, digest: Digest, size: int, deadline: Deadline) -> LinkRecord:
        """The upstream's word that it has the blob, with this length; asked for unless it is known."""
        link = await self._cache.link(target, "blob", digest)
        if link is None or link.size != size:
            link = await self._claim(target, digest, deadline)
        if link.size != size:
            raise Unprovable(f"{target} gives {digest} another length than it has", reason="size")
        return link

    async def _claim(self, target: Target, digest: Digest, deadline: Deadline) -> LinkRecord:
        await self._cache.check_absence(target, digest, "blob")
        return await self._ask(("claim", target, digest), deadline, lambda within: self._head(target, digest, within))

    def _use(self, target: Target, digest: Digest, link: LinkRecord) -> None:
        self._renewals.used(
            target, "blob", digest, link, lambda: self._head(target, digest, Deadline.after(self._first_byte))
        )

    async def _ask(
        self,
        key: tuple[str, Target, Digest],
        deadline: Deadline,
        question: Callable[[Deadline], Awaitable[LinkRecord]],
    ) -> LinkRecord:
        """Asks, or joins whoever does. The asking has `first_byte` of its own and goes on when we stop waiting."""
        link, _ = await self._questions.ask(
            key, lambda: question(Deadline.after(self._first_byte)), deadline, f"{key[1]}@{key[2]}"
        )
        return link

    # What is asked.

    async def _head(self, target: Target, digest: Digest, deadline: Deadline) -> LinkRecord:
        question = await self._cache.question(target)
        async with self._cache.hearing_no(target, digest, "blob"):
            size = await self._upstreams.head_blob(target, digest, deadline)
        if size is None:
            raise Unprovable(f"{target} does not tell the length of {digest}", reason="length")
        return await self._cache.put_link(question, "blob", digest, size, proven=False)

    async def _prove(self, target: Target, digest: Digest, size: int, ours: Sample, deadline: Deadline) -> LinkRecord:
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

    async def _sample(self, digest: Digest, file: SharedFile) -> Sample:
        try:
            return await sample_of_file(self._cache.blobs, file, file.size)
        except StorageError as error:
            raise UpstreamUnavailable(f"the bytes of {digest} cannot be compared", reason="storage") from error


async def _read(stream: BlobStream, count: int) -> bytes:
    """The first `count` bytes of a stream, or what it has."""
    data = bytearray()
    async for chunk in stream.chunks():
        data += chunk
        if len(data) >= count:
            break
    return bytes(data[:count])

"""May this repository give this blob? Only the upstream's own mouth tells; the answer is kept as a link."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from mirror.cache import Cache, LinkRecord
from mirror.download import Sample
from mirror.oci.byte_range import ByteRange
from mirror.oci.digest import Digest
from mirror.oci.errors import (
    BlobUnknown,
    MirrorError,
    StorageError,
    Unknown,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from mirror.routing import Router, Target
from mirror.singleflight import SingleFlight
from mirror.transport import Deadline
from mirror.upstream import Upstreams

_log = structlog.get_logger()

Sampler = Callable[[], Awaitable[Sample]]


class Permissions:
    """Asks upstreams for links to blobs, each question once at a time.

    A manifest that names a digest is no answer, only a reason to ask: whoever can push a manifest can name a foreign
    digest.
    """

    def __init__(self, cache: Cache, upstreams: Upstreams, router: Router, first_byte: float) -> None:
        self._cache = cache
        self._upstreams = upstreams
        self._router = router
        self._first_byte = first_byte
        self._questions = SingleFlight()

    async def close(self) -> None:
        """Stops what is being asked."""
        await self._questions.close()

    async def given(self, target: Target, digest: Digest, origin: str | None) -> bool:
        """Whether bytes that came from the upstream host `origin` may be given through `target` without asking.

        A link of some age is renewed in the background.
        """
        link = await self._cache.link(target, digest)
        if link is None or not (link.proven or origin == target.upstream.host):
            return False
        if self._cache.age(link.checked_at) > self._router.settings(target.upstream).link_ttl:
            self._questions.start(("renew", target, digest), lambda: self._renew(target, digest, link))
        return True

    async def ask(self, target: Target, digest: Digest, size: int, origin: str | None, sampler: Sampler) -> None:
        """Asks whether `target` has a blob of `size` bytes that is here, or on its way here, from `origin`.

        `sampler` gives some of its bytes: an upstream other than the one they came from must show them, else it could
        claim any digest. Raises BlobUnknown or UpstreamRefused where the upstream says no, UpstreamUnavailable where
        it does not answer; bounded by `first_byte`.
        """
        await self._cache.check_absence(target, digest, "blob")
        await self._in_time(
            self._first_byte, ("blob", target, digest), lambda: self._ask(target, digest, size, origin, sampler)
        )

    async def ask_size(self, target: Target, digest: Digest, seconds: float) -> LinkRecord:
        """Asks for the length of a blob that is not here, waiting at most `seconds`; the answer is remembered.

        Raises BlobUnknown, UpstreamRefused, UpstreamUnavailable.
        """
        link = await self._cache.link(target, digest)
        if link is not None:
            return link
        await self._cache.check_absence(target, digest, "blob")
        return await self._in_time(seconds, ("size", target, digest), lambda: self._ask_size(target, digest))

    async def _in_time(
        self, seconds: float, key: tuple[str, Target, Digest], question: Callable[[], Awaitable[LinkRecord]]
    ) -> LinkRecord:
        try:
            async with asyncio.timeout(seconds):
                return await self._questions.run(key, question)
        except TimeoutError:
            raise UpstreamTimeout(f"{key[1]} did not say in {seconds:g} s whether it has {key[2]}") from None

    async def _ask(self, target: Target, digest: Digest, size: int, origin: str | None, sampler: Sampler) -> LinkRecord:
        if await self._head(target, digest) != size:
            raise UpstreamUnavailable(f"{target} gives {digest} another length than it has", reason="size")
        if size and origin != target.upstream.host:
            await self._prove(target, digest, sampler)
        return await self._cache.put_link(target, digest, size, proven=True)

    async def _ask_size(self, target: Target, digest: Digest) -> LinkRecord:
        size = await self._head(target, digest)
        if size is None:
            raise UpstreamUnavailable(f"{target} does not tell the length of {digest}", reason="length")
        return await self._cache.put_link(target, digest, size, proven=False)

    async def _renew(self, target: Target, digest: Digest, link: LinkRecord) -> None:
        try:
            if await self._head(target, digest) == link.size:
                await self._cache.put_link(target, digest, link.size, proven=link.proven)
        except MirrorError as error:
            _log.info("a link was not renewed", source=str(target), digest=str(digest), reason=error.message)

    async def _head(self, target: Target, digest: Digest) -> int | None:
        try:
            return await self._upstreams.head_blob(target, digest, Deadline.after(self._first_byte))
        except (Unknown, UpstreamRefused) as no:
            await self._cache.heard_no(target, digest, "blob", no)
            raise

    async def _prove(self, target: Target, digest: Digest, sampler: Sampler) -> None:
        try:
            ours = await sampler()
        except StorageError as error:
            raise UpstreamUnavailable(f"the bytes of {digest} cannot be compared", reason="storage") from error
        byte_range = ByteRange(ours.offset, ours.offset + len(ours.data) - 1)
        deadline = Deadline.after(self._first_byte)
        theirs = bytearray()
        async with await self._upstreams.open_blob(target, digest, deadline, byte_range) as stream:
            skip = ours.offset - stream.start
            async for chunk in stream.chunks():
                theirs += chunk
                if len(theirs) >= skip + len(ours.data):
                    break
        if bytes(theirs[skip : skip + len(ours.data)]) != ours.data:
            if not ours.verified:
                raise UpstreamUnavailable(f"{target} has other bytes for {digest} than we, so far", reason="corrupt")
            _log.warning("an upstream claims bytes that it does not have", source=str(target), digest=str(digest))
            raise BlobUnknown(f"{target} does not have {digest}")

"""May this repository give this blob? Only the upstream's own mouth tells; the answer is kept as a link."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog

from mirror.cache import Cache
from mirror.download import Sample, sample_of_file
from mirror.oci.digest import Digest
from mirror.oci.errors import StorageError, Unprovable, UpstreamUnavailable
from mirror.pull.answers import Source
from mirror.pull.questions import Questions
from mirror.pull.renewals import Renewals
from mirror.pull.witness import Witness
from mirror.routing import Target
from mirror.store.files import SharedFile
from mirror.store.shapes import LinkRecord
from mirror.transport import Deadline

_log = structlog.get_logger()


class Permissions:
    """Asks witnesses for links to blobs, each question once at a time.

    A manifest that names a digest is no answer, only a reason to ask: whoever can push a manifest can name a foreign
    digest. Everything raises BlobUnknown or UpstreamRefused where the upstream says no, and UpstreamUnavailable where
    it does not answer in time.
    """

    def __init__(
        self, cache: Cache, witness: Callable[[Target], Witness], renewals: Renewals, first_byte: float
    ) -> None:
        """`witness`: who asks a target's upstream."""
        self._cache = cache
        self._witness = witness
        self._renewals = renewals
        self._first_byte = first_byte
        self._questions = Questions()

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
            # Read here, while the caller holds the file: the question may outlive the caller.
            await self.prove(target, digest, claim.size, await self._sample(digest, file), deadline)
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
        return (await self.claim(target, digest, deadline)).size, Source.MISS

    async def claim(
        self, target: Target, digest: Digest, deadline: Deadline, *, doubted: LinkRecord | None = None
    ) -> LinkRecord:
        """The upstream's word that it has the blob, asked for where nothing but a `doubted` one is known."""
        await self._cache.check_absence(target, digest, "blob")
        witness = self._witness(target)

        async def question(within: Deadline) -> LinkRecord:
            link = await self._cache.link(target, "blob", digest)  # others may have asked while the caller looked
            if link is None or link == doubted:
                return await witness.claim(target, digest, within)
            return link

        return await self._ask((witness, "claim", target, digest), deadline, question)

    async def prove(self, target: Target, digest: Digest, size: int, ours: Sample, deadline: Deadline) -> LinkRecord:
        """The proof that it has these bytes, asked for where there is none yet."""
        witness = self._witness(target)

        async def question(within: Deadline) -> LinkRecord:
            link = await self._cache.link(target, "blob", digest)
            if link is not None and link.proven and link.size == size:
                return link
            return await witness.prove(target, digest, size, ours, within)

        return await self._ask((witness, "proof", target, digest), deadline, question)

    async def renewed(self, target: Target, digest: Digest) -> bool:
        """For another worker that has used a link of some age: whether it is young again, once we have asked."""
        link = await self._cache.link(target, "blob", digest)
        return link is None or await self._renewals.renewed(target, "blob", digest, link, self._renew(target, digest))

    async def _claimed(self, target: Target, digest: Digest, size: int, deadline: Deadline) -> LinkRecord:
        """The upstream's word that it has the blob, with this length; asked for unless it is known."""
        link = await self._cache.link(target, "blob", digest)
        if link is None or link.size != size:
            link = await self.claim(target, digest, deadline, doubted=link)
        if link.size != size:
            raise Unprovable(f"{target} gives {digest} another length than it has", reason="size")
        return link

    def _use(self, target: Target, digest: Digest, link: LinkRecord) -> None:
        self._renewals.used(target, "blob", digest, link, self._renew(target, digest))

    def _renew(self, target: Target, digest: Digest) -> Callable[[], Awaitable[object]]:
        return lambda: self._witness(target).renew(target, digest, Deadline.after(self._first_byte))

    async def _ask(
        self,
        key: tuple[Witness, str, Target, Digest],
        deadline: Deadline,
        question: Callable[[Deadline], Awaitable[LinkRecord]],
    ) -> LinkRecord:
        """Asks, or joins whoever does. The asking has `first_byte` of its own and goes on when we stop waiting."""
        link, _ = await self._questions.ask(
            key, lambda: question(Deadline.after(self._first_byte)), deadline, f"{key[2]}@{key[3]}"
        )
        return link

    async def _sample(self, digest: Digest, file: SharedFile) -> Sample:
        try:
            return await sample_of_file(self._cache.blobs, file, file.size)
        except StorageError as error:
            raise UpstreamUnavailable(f"the bytes of {digest} cannot be compared", reason="storage") from error

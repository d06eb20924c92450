"""Manifests: by digest for ever, by tag while it is fresh, stale only where the upstream does not answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from mirror.cache import Cache, HeldManifest, LinkRecord, TagRecord
from mirror.config import Timeouts
from mirror.metrics import Metrics
from mirror.oci.digest import Digest
from mirror.oci.errors import MirrorError, UpstreamTimeout, UpstreamUnavailable
from mirror.oci.reference import Reference, Tag
from mirror.pull.answers import ManifestAnswer, Source
from mirror.pull.asking import ManifestAsker
from mirror.routing import Router, Target
from mirror.singleflight import SingleFlight

_log = structlog.get_logger()


class ManifestPuller:
    """Answers GET and HEAD of manifests."""

    def __init__(
        self, cache: Cache, asker: ManifestAsker, router: Router, metrics: Metrics, timeouts: Timeouts
    ) -> None:
        self._cache = cache
        self._asker = asker
        self._router = router
        self._metrics = metrics
        self._timeouts = timeouts
        self._asking = SingleFlight()

    async def close(self) -> None:
        """Stops what is being asked."""
        await self._asking.close()

    async def get(self, target: Target, reference: Reference, *, head: bool) -> ManifestAnswer:
        """The manifest; with `head` its bytes need not come with it, and are not fetched for that alone.

        Raises ManifestUnknown, NameUnknown, UpstreamRefused, UpstreamUnavailable.
        """
        if isinstance(reference, Digest):
            return await self._by_digest(target, reference, head=head)
        record = await self._cache.tag(target, reference)
        if record is None:
            await self._cache.check_absence(target, reference, "manifest")
            return await self._ask_tag(target, reference, None, head=head, seconds=self._timeouts.first_byte)
        if self._cache.age(record.checked_at) <= self._cache.tag_ttl(target, reference):
            return await self._fresh(target, record, head=head)
        return await self._expired(target, reference, record, head=head)

    # By digest.

    async def _by_digest(self, target: Target, digest: Digest, *, head: bool) -> ManifestAnswer:
        held = await self._cache.manifest(digest)
        link = await self._cache.link(target, digest)
        if link is not None and (held is None or await self._permits(target, digest, link)):
            if held is not None:
                self._renew_in_background(target, held, link)
                answer = ManifestAnswer(digest, len(held.content), link.media_type, held.content, Source.HIT)
                return self._noted(target, answer)
            if head:
                return ManifestAnswer(digest, link.size, link.media_type, None, Source.HIT)
        await self._cache.check_absence(target, digest, "manifest")
        answer = await self._in_time(
            ("digest", target, digest, head), lambda: self._asker.by_digest(target, digest, held, head=head)
        )
        return self._noted(target, answer)

    async def _permits(self, target: Target, digest: Digest, link: LinkRecord) -> bool:
        return link.proven or await self._cache.origin(digest) == target.upstream.host

    def _renew_in_background(self, target: Target, held: HeldManifest, link: LinkRecord) -> None:
        if self._cache.age(link.checked_at) > self._router.settings(target.upstream).link_ttl:
            self._asking.start(("renew", target, held.digest), lambda: self._renew(target, held))

    async def _renew(self, target: Target, held: HeldManifest) -> None:
        try:
            await self._asker.by_digest(target, held.digest, held, head=True)
        except MirrorError as error:
            _log.info("a link was not renewed", source=str(target), digest=str(held.digest), reason=error.message)

    # By tag.

    async def _fresh(self, target: Target, record: TagRecord, *, head: bool) -> ManifestAnswer:
        digest = Digest.parse(record.digest)
        if head:
            return ManifestAnswer(digest, record.size, record.media_type, None, Source.HIT)
        return await self._by_digest(target, digest, head=False)

    async def _expired(self, target: Target, tag: Tag, record: TagRecord, *, head: bool) -> ManifestAnswer:
        settings = self._router.settings(target.upstream)
        stale = await self._stale(target, record, head=head)
        late = self._cache.age(record.checked_at) - self._cache.tag_ttl(target, tag)
        if stale is None or late > settings.stale_if_error:
            return await self._ask_tag(target, tag, record, head=head, seconds=self._timeouts.first_byte)
        if late < settings.stale_while_revalidate:
            self._start(target, tag, record, head=head)
            return self._noted(target, stale)
        try:
            return await self._ask_tag(target, tag, record, head=head, seconds=self._timeouts.stale_after)
        except UpstreamUnavailable as error:
            self._metrics.stale_served.labels(upstream=target.upstream.entry, reason=error.reason).inc()
            _log.warning("served stale", source=str(target), tag=tag.name, reason=error.reason)
            return self._noted(target, stale)

    async def _stale(self, target: Target, record: TagRecord, *, head: bool) -> ManifestAnswer | None:
        """The copy in hand, if it may still be given through this repository."""
        digest = Digest.parse(record.digest)
        held = await self._cache.manifest(digest)
        if held is None and head:
            return ManifestAnswer(digest, record.size, record.media_type, None, Source.STALE)
        if held is None or await self._cache.link(target, digest) is None:
            return None
        return ManifestAnswer(digest, len(held.content), record.media_type, held.content, Source.STALE)

    async def _ask_tag(
        self, target: Target, tag: Tag, record: TagRecord | None, *, head: bool, seconds: float
    ) -> ManifestAnswer:
        task = self._start(target, tag, record, head=head)
        try:
            async with asyncio.timeout(seconds):
                answer = await asyncio.shield(task)
        except TimeoutError:
            raise UpstreamTimeout(f"{target}:{tag} was not answered for in {seconds:g} s") from None
        if answer.content is None and not head:
            # We joined somebody's HEAD; what it told is fresh.
            return await self._by_digest(target, answer.digest, head=False)
        return self._noted(target, answer)

    def _start(self, target: Target, tag: Tag, record: TagRecord | None, *, head: bool) -> asyncio.Task[ManifestAnswer]:
        return self._asking.start(("tag", target, tag), lambda: self._asker.by_tag(target, tag, record, head=head))

    # Both.

    async def _in_time(self, key: tuple[object, ...], call: Callable[[], Awaitable[ManifestAnswer]]) -> ManifestAnswer:
        seconds = self._timeouts.first_byte
        try:
            async with asyncio.timeout(seconds):
                return await self._asking.run(key, call)
        except TimeoutError:
            raise UpstreamTimeout(f"{key[1]} did not answer for {key[2]} in {seconds:g} s") from None

    def _noted(self, target: Target, answer: ManifestAnswer) -> ManifestAnswer:
        if answer.content is not None:
            self._cache.note_served(target, answer.digest)
        return answer

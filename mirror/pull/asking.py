"""Asking an upstream for a manifest: is it the same still, what are its bytes; nothing unverified gets further."""

from __future__ import annotations

import zlib

import structlog

from mirror.cache import Cache, HeldManifest, TagRecord
from mirror.config.names import HUB
from mirror.memory import Bounded
from mirror.metrics import Metrics
from mirror.oci.digest import Digest
from mirror.oci.errors import Unknown, UpstreamCorrupt, UpstreamRefused, UpstreamUnavailable
from mirror.oci.manifest import MANIFEST_LIMIT, media_type_of, parse_manifest
from mirror.oci.reference import Reference, Tag
from mirror.pull.answers import ManifestAnswer, Source
from mirror.routing import Target
from mirror.transport import Deadline
from mirror.upstream import ManifestBody, ManifestHead, Upstreams

_HEADLESS_SECONDS = 3600.0
"""How long we remember that an upstream's HEAD is of no use."""
_HEADLESS_HOSTS = 1024
_log = structlog.get_logger()


class ManifestAsker:
    """One question at a time, each within `first_byte`; what was learnt is stored before it is returned."""

    def __init__(self, cache: Cache, upstreams: Upstreams, metrics: Metrics, first_byte: float) -> None:
        self._cache = cache
        self._upstreams = upstreams
        self._metrics = metrics
        self._first_byte = first_byte
        self._headless: Bounded[str, Deadline] = Bounded(_HEADLESS_HOSTS)

    async def by_tag(self, target: Target, tag: Tag, record: TagRecord | None, *, head: bool) -> ManifestAnswer:
        """What the tag means now. HEAD first where that can save a GET: `record` is what it meant, or `head` is all
        that is wanted. Raises ManifestUnknown, NameUnknown, UpstreamRefused, UpstreamUnavailable.
        """
        deadline = Deadline.after(self._first_byte)
        if record is not None or head:
            told = await self._head(target, tag, deadline)
            if told is not None and record is not None and told.digest == Digest.parse(record.digest):
                answer = await self._unmoved(target, tag, record, head=head)
                if answer is not None:
                    return answer
            elif told is not None and head:
                return await self._named(target, tag, told)
        return await self._get_tag(target, tag, deadline)

    async def by_digest(
        self, target: Target, digest: Digest, held: HeldManifest | None, *, head: bool
    ) -> ManifestAnswer:
        """A manifest that is not here, or `held` but not yet shown in this repository. Raises as `by_tag`."""
        deadline = Deadline.after(self._first_byte)
        if held is not None:
            # Bytes that came from another upstream are not proven by its word; its GET proves them.
            if await self._cache.origin(digest) == target.upstream.host:
                answer = await self._confirmed(target, held, deadline)
                if answer is not None:
                    return answer
        elif head:
            told = await self._head(target, digest, deadline)
            if told is not None and told.digest == digest and told.size is not None:
                media_type = media_type_of(None, told.content_type)
                await self._cache.put_link(target, digest, told.size, media_type, proven=False)
                return ManifestAnswer(digest, told.size, media_type, None, Source.MISS)
        return await self._get_digest(target, digest, deadline)

    # HEAD.

    async def _head(self, target: Target, reference: Reference, deadline: Deadline) -> ManifestHead | None:
        """What a HEAD tells; None where it is of no use, and a GET must tell."""
        host = target.upstream.host
        known = self._headless.get(host)
        if known is not None and not known.expired:
            return None
        try:
            told = await self._upstreams.head_manifest(target, reference, deadline)
        except (Unknown, UpstreamRefused) as no:
            await self._cache.heard_no(target, reference, "manifest", no)
            raise
        if told.digest is not None:
            return told
        if host == HUB:
            raise UpstreamUnavailable(f"{target}: HEAD told nothing, and a GET would cost quota", reason="head")
        self._headless.set(host, Deadline.after(_HEADLESS_SECONDS))
        return None

    async def _unmoved(self, target: Target, tag: Tag, record: TagRecord, *, head: bool) -> ManifestAnswer | None:
        """The answer where the tag is what it was; None where its bytes have gone and are wanted."""
        digest = Digest.parse(record.digest)
        held = await self._cache.manifest(digest)
        link = await self._cache.link(target, digest)
        if (held is None or link is None) and not head:
            return None
        await self._cache.put_tag(target, tag, digest, record.size, record.media_type)
        if link is not None:
            await self._cache.put_link(target, digest, record.size, record.media_type, proven=link.proven)
        content = held.content if held is not None and link is not None else None
        return ManifestAnswer(digest, record.size, record.media_type, content, Source.REVALIDATED)

    async def _named(self, target: Target, tag: Tag, told: ManifestHead) -> ManifestAnswer:
        assert told.digest is not None
        assert told.size is not None
        media_type = media_type_of(None, told.content_type)
        await self._cache.put_tag(target, tag, told.digest, told.size, media_type)
        return ManifestAnswer(told.digest, told.size, media_type, None, Source.MISS)

    async def _confirmed(self, target: Target, held: HeldManifest, deadline: Deadline) -> ManifestAnswer | None:
        told = await self._head(target, held.digest, deadline)
        size = len(held.content)
        if told is None or told.digest != held.digest or told.size != size:
            return None
        media_type = media_type_of(held.named, told.content_type)
        await self._cache.put_link(target, held.digest, size, media_type, proven=True)
        return ManifestAnswer(held.digest, size, media_type, held.content, Source.REVALIDATED)

    # GET.

    async def _get_digest(self, target: Target, digest: Digest, deadline: Deadline) -> ManifestAnswer:
        for _ in range(2):
            body = await self._get(target, digest, deadline)
            content = next((data for data in _readings(body) if digest.matches(data)), None)
            if content is not None:
                return await self._store(target, digest, content, body.content_type)
            self._mismatch(target, digest)
        raise UpstreamCorrupt(f"{target} twice sent a manifest that is not {digest}")

    async def _get_tag(self, target: Target, tag: Tag, deadline: Deadline) -> ManifestAnswer:
        body = await self._get(target, tag, deadline)
        found = _identify(body)
        if found is None:
            self._mismatch(target, tag)
            again = await self._get(target, tag, deadline)
            # Twice the same bytes under a header that does not fit them: the header lies.
            found = _identify(again) or (_by_content(again) if again.content == body.content else None)
            if found is None:
                raise UpstreamCorrupt(f"{target}:{tag} twice came with bytes that its digest header denies")
        digest, content = found
        answer = await self._store(target, digest, content, body.content_type)
        await self._cache.put_tag(target, tag, digest, answer.size, answer.media_type)
        return answer

    async def _get(self, target: Target, reference: Reference, deadline: Deadline) -> ManifestBody:
        try:
            return await self._upstreams.get_manifest(target, reference, deadline)
        except (Unknown, UpstreamRefused) as no:
            await self._cache.heard_no(target, reference, "manifest", no)
            raise

    async def _store(self, target: Target, digest: Digest, content: bytes, content_type: str | None) -> ManifestAnswer:
        """Keeps a verified manifest: bytes first, names after."""
        if await self._cache.manifest(digest) is None:
            await self._cache.put_origin(digest, target.upstream.host)
        held = await self._cache.put_manifest(digest, content)
        media_type = media_type_of(held.named, content_type)
        await self._cache.put_link(target, digest, len(content), media_type, proven=True)
        return ManifestAnswer(digest, len(content), media_type, content, Source.MISS)

    def _mismatch(self, target: Target, reference: Reference) -> None:
        self._metrics.digest_mismatches.labels(upstream=target.upstream.entry).inc()
        _log.error("an upstream sent wrong bytes", source=str(target), reference=str(reference))


def _readings(body: ManifestBody) -> list[bytes]:
    """The bytes as they came; and decoded, where the upstream encoded what must not be."""
    readings = [body.content]
    if body.content_encoding in ("gzip", "x-gzip", "deflate"):
        try:
            decoder = zlib.decompressobj(wbits=47)
            readings.append(decoder.decompress(body.content, MANIFEST_LIMIT))
        except zlib.error:
            pass
    return readings


def _identify(body: ManifestBody) -> tuple[Digest, bytes] | None:
    """Digest and bytes of a manifest got by tag; None where the digest header denies them.

    Raises UpstreamUnavailable where they are no manifest at all.
    """
    if body.digest is None:
        return _by_content(body)
    for data in _readings(body):
        if body.digest.matches(data):
            return body.digest, data
    return None


def _by_content(body: ManifestBody) -> tuple[Digest, bytes]:
    for data in reversed(_readings(body)):
        manifest = parse_manifest(data)
        if manifest is not None and (manifest.schema_version or manifest.media_type):
            return Digest.of(data), data
    raise UpstreamUnavailable("the upstream answered 200 with something that is no manifest", reason="body")

"""Asking an upstream for a manifest: is it the same still, what are its bytes; nothing unverified gets further."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Protocol

import structlog

from mirror.cache import Cache, Question
from mirror.config.names import HUB
from mirror.memory import Bounded
from mirror.metrics import Metrics
from mirror.oci.digest import Digest
from mirror.oci.errors import UpstreamCorrupt, UpstreamUnavailable
from mirror.oci.manifest import MANIFEST_LIMIT, media_type_of, parse_manifest, says_a_type
from mirror.oci.reference import Reference, Tag
from mirror.pull.answers import ManifestAnswer, Source
from mirror.routing import Target
from mirror.store.manifests import HeldManifest
from mirror.store.shapes import LinkRecord
from mirror.transport import Deadline
from mirror.upstream import ManifestBody, ManifestHead, Upstreams

_HEADLESS_SECONDS = 3600.0
"""How long we remember that an upstream's HEAD is of no use."""
_HEADLESS_HOSTS = 1024
_log = structlog.get_logger()


class Asker(Protocol):
    """Asks for manifests. Everything raises ManifestUnknown, NameUnknown, UpstreamRefused and UpstreamUnavailable."""

    def silence(self, target: Target) -> str | None:
        """Why nobody who holds a copy should wait for an answer; None where there is no reason."""

    async def by_tag(self, target: Target, tag: Tag, known: Digest | None, *, head: bool) -> ManifestAnswer:
        """What the tag means now; `known` is what it meant."""

    async def by_digest(self, target: Target, digest: Digest, *, head: bool) -> ManifestAnswer:
        """A manifest that is not here, or not yet shown in this repository."""

    async def renew(self, target: Target, digest: Digest) -> None:
        """Asks whether the repository still has the manifest, and notes it."""


class ManifestAsker:
    """One question at a time, each within `first_byte`; what was learnt is stored before it is returned.

    Everything raises ManifestUnknown, NameUnknown, UpstreamRefused and UpstreamUnavailable. With `head` only headers
    are wanted: no content need come with the answer, and Docker Hub is not sent a GET, which would cost quota.
    """

    def __init__(self, cache: Cache, upstreams: Upstreams, metrics: Metrics, first_byte: float) -> None:
        self._cache = cache
        self._upstreams = upstreams
        self._metrics = metrics
        self._first_byte = first_byte
        self._headless: Bounded[str, Deadline] = Bounded(_HEADLESS_HOSTS)

    def silence(self, target: Target) -> str | None:
        """Why nobody who holds a copy should wait for an answer; None where there is no reason."""
        return self._upstreams.silence(target)

    async def by_tag(self, target: Target, tag: Tag, known: Digest | None, *, head: bool) -> ManifestAnswer:
        """What the tag means now; `known` is what it meant. HEAD first where that can save a GET."""
        deadline = Deadline.after(self._first_byte)
        question = await self._cache.question(target)
        if known is not None or head:
            told = await self._head(target, tag, deadline, head=head)
            if told is not None:
                answer = await self._by_head(question, told, known, head=head)
                if answer is not None:
                    await self._cache.put_tag(question, tag, answer.digest)
                    return answer
        return await self._get_tag(question, tag, deadline)

    async def by_digest(self, target: Target, digest: Digest, *, head: bool) -> ManifestAnswer:
        """A manifest that is not here, or not yet shown in this repository. HEAD first where its word is enough."""
        deadline = Deadline.after(self._first_byte)
        question = await self._cache.question(target)
        if head or await self._is_from(target, digest):
            told = await self._head(target, digest, deadline, head=head)
            if told is not None:
                answer = await self._by_head(question, told, None, head=head)
                if answer is not None:
                    return answer
        return await self._get_digest(question, digest, deadline)

    async def renew(self, target: Target, digest: Digest) -> None:
        """As of Asker."""
        await self.by_digest(target, digest, head=True)

    # HEAD.

    async def _head(self, target: Target, reference: Reference, deadline: Deadline, *, head: bool) -> _Told | None:
        """What a HEAD tells; None where it is of no use, and a GET must tell."""
        host = target.upstream.host
        known = self._headless.get(host)
        if known is None or known.expired:
            async with self._cache.hearing_no(target, reference, "manifest"):
                told = await self._upstreams.head_manifest(target, reference, deadline)
            if told.size is not None and told.size > MANIFEST_LIMIT:  # a GET of it would not be taken in
                raise UpstreamUnavailable(
                    f"{target}: {reference} has {told.size} bytes, over {MANIFEST_LIMIT}", reason="size"
                )
            if told.digest is None and host != HUB:
                self._headless.set(host, Deadline.after(_HEADLESS_SECONDS))
            if (useful := _Told.of(told, reference)) is not None:
                return useful
        if head and host == HUB:
            raise UpstreamUnavailable(f"{target}: HEAD told nothing, and a GET would cost quota", reason="head")
        return None

    async def _by_head(
        self, question: Question, told: _Told, known: Digest | None, *, head: bool
    ) -> ManifestAnswer | None:
        """The answer that a HEAD allows, with the content where we hold it and this word permits to give it.

        None where a GET must tell more: the content, or of which media type it is.
        """
        held = await self._cache.manifest(told.digest)
        if held is None and head and not says_a_type(told.content_type) and question.target.upstream.host != HUB:
            return None
        link = await self._note_head(question, told, held)
        if held is not None and not link.proven:
            held = None
        source = Source.REVALIDATED if held is not None or told.digest == known else Source.MISS
        content = held.content if held is not None else None
        if content is None and not head:
            return None
        return ManifestAnswer(told.digest, link.size, link.media_type, content, source)

    async def _note_head(self, question: Question, told: _Told, held: HeldManifest | None) -> LinkRecord:
        """Notes a claim; for what we hold from the same upstream it is as good as the bytes, if the length is right."""
        same = held is not None and len(held.content) == told.size and await self._is_from(question.target, told.digest)
        media_type = media_type_of(held.outline if held is not None and same else None, told.content_type)
        return await self._cache.put_link(question, "manifest", told.digest, told.size, media_type, proven=same)

    async def _is_from(self, target: Target, digest: Digest) -> bool:
        return await self._cache.origin(digest) == target.upstream.host

    # GET.

    async def _get_digest(self, question: Question, digest: Digest, deadline: Deadline) -> ManifestAnswer:
        target = question.target
        for _ in range(2):
            body = await self._get(target, digest, deadline)
            content = next((data for data in _readings(body) if digest.matches(data)), None)
            if content is not None:
                return await self._store(question, digest, content, body.content_type)
            self._mismatch(target, digest)
        raise UpstreamCorrupt(f"{target} twice sent a manifest that is not {digest}")

    async def _get_tag(self, question: Question, tag: Tag, deadline: Deadline) -> ManifestAnswer:
        target = question.target
        body = await self._get(target, tag, deadline)
        found = _identify(body)
        if found is None:
            self._mismatch(target, tag)
            again = await self._get(target, tag, deadline)
            # Twice the same bytes under a header that does not fit them: the header lies.
            found = _identify(again) or (_recognise(again) if again.content == body.content else None)
            if found is None:
                raise UpstreamCorrupt(f"{target}:{tag} twice came with bytes that its digest header denies")
            body = again
        digest, content = found
        answer = await self._store(question, digest, content, body.content_type)
        await self._cache.put_tag(question, tag, digest)
        return answer

    async def _get(self, target: Target, reference: Reference, deadline: Deadline) -> ManifestBody:
        async with self._cache.hearing_no(target, reference, "manifest"):
            return await self._upstreams.get_manifest(target, reference, deadline)

    async def _store(
        self, question: Question, digest: Digest, content: bytes, content_type: str | None
    ) -> ManifestAnswer:
        """Keeps a verified manifest: bytes first, names after."""
        if await self._cache.manifest(digest) is None:
            await self._cache.put_origin(digest, question.target.upstream.host)
        held = await self._cache.put_manifest(digest, content)
        media_type = media_type_of(held.outline, content_type)
        await self._cache.put_link(question, "manifest", digest, len(content), media_type, proven=True)
        return ManifestAnswer(digest, len(content), media_type, content, Source.MISS)

    def _mismatch(self, target: Target, reference: Reference) -> None:
        self._metrics.digest_mismatches.labels(upstream=target.upstream.entry).inc()
        _log.error("an upstream sent wrong bytes", source=str(target), reference=str(reference))


@dataclass(frozen=True, slots=True)
class _Told:
    """What a useful HEAD said; nothing of it is verified. `size` in bytes."""

    digest: Digest
    size: int
    content_type: str | None

    @classmethod
    def of(cls, head: ManifestHead, reference: Reference) -> _Told | None:
        """None where it says too little, or speaks of another manifest than it was asked for."""
        if head.digest is None or head.size is None or (isinstance(reference, Digest) and head.digest != reference):
            return None
        return cls(head.digest, head.size, head.content_type)


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
        if (found := _recognise(body)) is None:
            raise UpstreamUnavailable("the upstream answered 200 with something that is no manifest", reason="body")
        return found
    for data in _readings(body):
        if body.digest.matches(data):
            return body.digest, data
    return None


def _recognise(body: ManifestBody) -> tuple[Digest, bytes] | None:
    """Digest and bytes of a manifest that is one by its content; None for anything else."""
    for data in reversed(_readings(body)):
        manifest = parse_manifest(data)
        if manifest is not None and (manifest.schema_version or manifest.media_type):
            return Digest.of(data), data
    return None

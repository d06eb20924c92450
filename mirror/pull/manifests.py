"""Manifests: by digest for ever, by tag while it is fresh, stale only where the upstream does not answer."""

from __future__ import annotations

import functools
from dataclasses import replace

import structlog

from mirror.cache import Cache
from mirror.config import Timeouts
from mirror.metrics import Metrics
from mirror.oci.digest import Digest
from mirror.oci.errors import UpstreamUnavailable
from mirror.oci.reference import Reference, Tag
from mirror.pull.answers import Lasting, ManifestAnswer, Source
from mirror.pull.asking import ManifestAsker
from mirror.pull.questions import Questions
from mirror.pull.renewals import Renewals
from mirror.routing import Router, Target
from mirror.store.shapes import LinkRecord, TagRecord
from mirror.transport import Deadline

_LASTING_SECONDS = 10.0
"""How long an answer is given without a look at what it was made of. That look counts as a use of it, and of the blobs
that it names."""
_log = structlog.get_logger()


class ManifestPuller:
    """Answers GET and HEAD of manifests."""

    def __init__(
        self,
        cache: Cache,
        asker: ManifestAsker,
        renewals: Renewals,
        router: Router,
        metrics: Metrics,
        timeouts: Timeouts,
    ) -> None:
        self._cache = cache
        self._asker = asker
        self._renewals = renewals
        self._router = router
        self._metrics = metrics
        self._timeouts = timeouts
        self._questions = Questions()

    async def close(self) -> None:
        """Stops what is being asked."""
        await self._questions.close()

    async def get(self, target: Target, reference: Reference, *, head: bool) -> ManifestAnswer:
        """The manifest, within `first_byte`; with `head` its bytes need not come with it, nor are fetched for that.

        Raises ManifestUnknown, NameUnknown, UpstreamRefused, UpstreamUnavailable.
        """
        deadline = Deadline.after(self._timeouts.first_byte)
        if isinstance(reference, Digest):
            answer = await self._by_digest(target, reference, deadline, head=head)
        else:
            answer = await self._by_tag(target, reference, deadline, head=head)
        if answer.content is not None:
            self._cache.note_served(target, answer.digest)
        return answer

    async def lasting(
        self, target: Target, reference: Reference, answer: ManifestAnswer, *, head: bool
    ) -> Lasting | None:
        """How long `answer`, which `get` has given, is what it would give; None where it may be another one by now.

        Raises nothing.
        """
        now, cache = self._cache.now(), self._cache
        until = now + _LASTING_SECONDS
        # What the answer was made of was read before, and may have changed since: so it is looked at again.
        watch = cache.watch(target, reference, answer.digest)
        if isinstance(reference, Tag):
            record = await cache.tag(target, reference)
            if record is None or record.digest != str(answer.digest) or record.checked_at > now:
                return None
            until = min(until, record.checked_at + cache.tag_ttl(target, reference))
        ours = await self._at_hand(target, answer.digest, head=head)
        return Lasting(now, until, watch) if ours is not None and ours[0] == answer else None

    # By digest.

    async def _by_digest(self, target: Target, digest: Digest, deadline: Deadline, *, head: bool) -> ManifestAnswer:
        if (ours := await self._at_hand(target, digest, head=head)) is not None:
            return self._hit(target, *ours)
        await self._cache.check_absence(target, digest, "manifest")
        answer, joined = await self._questions.ask(
            ("digest", target, digest, head),
            lambda: self._asker.by_digest(target, digest, head=head),
            deadline,
            f"{target}@{digest}",
        )
        return _as_got(answer, joined=joined)

    async def _at_hand(self, target: Target, digest: Digest, *, head: bool) -> tuple[ManifestAnswer, LinkRecord] | None:
        """What may be given through this repository without asking: the upstream has shown it here."""
        link = await self._cache.link(target, "manifest", digest)
        if link is None:
            return None
        held = await self._cache.manifest(digest)
        if held is not None and await self._cache.permits(target, digest, link, len(held.content)):
            size, content = len(held.content), held.content
        elif head:
            size, content = link.size, None
        else:
            return None
        return ManifestAnswer(digest, size, link.media_type, content, Source.HIT), link

    def _hit(self, target: Target, answer: ManifestAnswer, link: LinkRecord) -> ManifestAnswer:
        digest = answer.digest
        self._renewals.used(target, "manifest", digest, link, lambda: self._asker.by_digest(target, digest, head=True))
        return answer

    # By tag.

    async def _by_tag(self, target: Target, tag: Tag, deadline: Deadline, *, head: bool) -> ManifestAnswer:
        record = await self._cache.tag(target, tag)
        if record is None:
            await self._cache.check_absence(target, tag, "manifest")
            return await self._ask(target, tag, None, deadline, head=head)
        digest = Digest.parse(record.digest)
        overdue = self._cache.overdue(record.checked_at, self._cache.tag_ttl(target, tag))
        ours = await self._at_hand(target, digest, head=head)
        if ours is not None and overdue < 0:
            return self._hit(target, *ours)
        # Without its bytes there is nothing that a HEAD could save.
        known = digest if head or await self._cache.manifest(digest) is not None else None
        stale = await self._stale(target, record, overdue, head=head)
        if stale is None:
            return await self._ask(target, tag, known, deadline, head=head)
        if ours is not None and overdue < self._router.settings(target.upstream).stale_while_revalidate:
            at_once: str | None = "revalidating"
        else:
            at_once = self._asker.silence(target)
        if at_once is not None:
            self._questions.start(_key(target, tag), lambda: self._asker.by_tag(target, tag, known, head=head))
            return self._gone_stale(target, tag, stale, at_once)
        try:
            sooner = min(deadline, Deadline.after(self._timeouts.stale_after))
            return await self._ask(target, tag, known, sooner, head=head)
        except UpstreamUnavailable as error:
            return self._gone_stale(target, tag, stale, error.reason)

    async def _stale(self, target: Target, record: TagRecord, overdue: float, *, head: bool) -> ManifestAnswer | None:
        """The copy for want of a better one: what the tag means, or what it meant before if that is all we have got.

        A HEAD is told of what a GET would be given; of a mere claim only where there is nothing else.
        """
        settings = self._router.settings(target.upstream)
        if overdue > settings.stale_if_error and not settings.offline:
            return None
        wanted = [(text, False) for text in (record.digest, record.before) if text]
        for text, headers_do in [*wanted, (record.digest, head)]:
            ours = await self._at_hand(target, Digest.parse(text), head=headers_do)
            if ours is not None:
                return replace(ours[0], source=Source.STALE)
        return None

    def _gone_stale(self, target: Target, tag: Tag, answer: ManifestAnswer, reason: str) -> ManifestAnswer:
        self._metrics.stale_served.labels(upstream=target.upstream.entry, reason=reason).inc()
        _log.warning("served stale", source=str(target), tag=tag.name, reason=reason)
        return answer

    async def _ask(
        self, target: Target, tag: Tag, known: Digest | None, deadline: Deadline, *, head: bool
    ) -> ManifestAnswer:
        """Asks what the tag means, or joins whoever does; that goes on when we stop waiting."""
        while True:
            answer, joined = await self._questions.ask(
                _key(target, tag),
                functools.partial(self._asker.by_tag, target, tag, known, head=head),
                deadline,
                f"{target}:{tag}",
            )
            if answer.content is not None or head:
                return _as_got(answer, joined=joined)
            known = None  # we joined somebody's HEAD, which has told all that a HEAD can


def _key(target: Target, tag: Tag) -> tuple[str, Target, Tag]:
    return "tag", target, tag


def _as_got(answer: ManifestAnswer, *, joined: bool) -> ManifestAnswer:
    """The answer to a question that one of its askers has `joined`: what was fetched, was fetched for another one."""
    return replace(answer, source=Source.JOINED) if joined and answer.source is Source.MISS else answer

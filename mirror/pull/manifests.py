"""Manifests: by digest for ever, by tag while it is fresh, stale only where the upstream does not answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, replace

import structlog

from mirror.cache import Cache
from mirror.config import Timeouts
from mirror.metrics import Metrics
from mirror.oci.digest import Digest
from mirror.oci.errors import UpstreamUnavailable
from mirror.oci.reference import Reference, Tag
from mirror.pull.answers import Lasting, ManifestAnswer, Source
from mirror.pull.asking import Asker
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
        asker: Callable[[Target], Asker],
        renewals: Renewals,
        router: Router,
        metrics: Metrics,
        timeouts: Timeouts,
    ) -> None:
        """`asker`: who asks a target's upstream."""
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

    async def learn(self, target: Target, reference: Reference, *, head: bool) -> ManifestAnswer:
        """The same for another worker, which has looked at what is stale by itself: fresh, or as the upstream says.

        Where nobody who holds a copy should wait for the upstream, nobody waits: UpstreamUnavailable tells why.
        """
        deadline = Deadline.after(self._timeouts.first_byte)
        if isinstance(reference, Digest):
            answer = await self._by_digest(target, reference, deadline, head=head)
        else:
            answer = await self._learn_tag(target, reference, deadline, head=head)
        if answer.content is not None:
            self._cache.note_served(target, answer.digest)
        return answer

    async def renewed(self, target: Target, digest: Digest) -> bool:
        """For another worker that has used a link of some age: whether it is young again, once we have asked."""
        link = await self._cache.link(target, "manifest", digest)
        return link is None or await self._renewals.renewed(
            target, "manifest", digest, link, lambda: self._asker(target).renew(target, digest)
        )

    # By digest.

    async def _by_digest(self, target: Target, digest: Digest, deadline: Deadline, *, head: bool) -> ManifestAnswer:
        if (ours := await self._at_hand(target, digest, head=head)) is not None:
            return self._hit(target, *ours)
        await self._cache.check_absence(target, digest, "manifest")
        asker = self._asker(target)

        async def question() -> ManifestAnswer:
            ours = await self._at_hand(target, digest, head=head)  # others may have asked while we looked
            return ours[0] if ours is not None else await asker.by_digest(target, digest, head=head)

        answer, joined = await self._questions.ask(
            (asker, "digest", target, digest, head), question, deadline, f"{target}@{digest}"
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
        self._renewals.used(target, "manifest", digest, link, lambda: self._asker(target).renew(target, digest))
        return answer

    # By tag.

    async def _by_tag(self, target: Target, tag: Tag, deadline: Deadline, *, head: bool) -> ManifestAnswer:
        known = await self._known(target, tag, head=head)
        if known is None:
            return await self._ask(target, tag, None, deadline, head=head)
        if known.fresh is not None:
            return self._hit(target, *known.fresh)
        if known.stale is None:
            return await self._ask(target, tag, known.digest, deadline, head=head)
        revalidates = known.overdue < self._router.settings(target.upstream).stale_while_revalidate
        at_once = "revalidating" if known.at_hand and revalidates else self._asker(target).silence(target)
        if at_once is not None:
            self._start(target, tag, known.digest, head=head)
            return self._gone_stale(target, tag, known.stale, at_once)
        try:
            sooner = min(deadline, Deadline.after(self._timeouts.stale_after))
            return await self._ask(target, tag, known.digest, sooner, head=head)
        except UpstreamUnavailable as error:
            return self._gone_stale(target, tag, known.stale, error.reason)

    async def _learn_tag(self, target: Target, tag: Tag, deadline: Deadline, *, head: bool) -> ManifestAnswer:
        known = await self._known(target, tag, head=head)
        if known is None:
            return await self._ask(target, tag, None, deadline, head=head)
        if known.fresh is not None:
            return known.fresh[0]
        silence = self._asker(target).silence(target) if known.stale is not None else None
        if silence is not None:
            self._start(target, tag, known.digest, head=head)
            raise UpstreamUnavailable(f"{target}: there is no answer to be had at the moment", reason=silence)
        return await self._ask(target, tag, known.digest, deadline, head=head)

    async def _known(self, target: Target, tag: Tag, *, head: bool) -> _Known | None:
        """What is held of a tag. Raises the upstream's 404 while that is young enough."""
        record = await self._cache.tag(target, tag)
        if record is None:
            await self._cache.check_absence(target, tag, "manifest")
            return None
        digest = Digest.parse(record.digest)
        overdue = self._cache.overdue(record.checked_at, self._cache.tag_ttl(target, tag))
        ours = await self._at_hand(target, digest, head=head)
        if ours is not None and overdue < 0:
            return _Known(digest, overdue, ours)
        # Without its bytes there is nothing that a HEAD could save.
        asked_of = digest if head or await self._cache.manifest(digest) is not None else None
        stale = await self._stale(target, record, overdue, head=head)
        return _Known(asked_of, overdue, stale=stale, at_hand=ours is not None)

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
            key, question = self._question(target, tag, known, head=head)
            answer, joined = await self._questions.ask(key, question, deadline, f"{target}:{tag}")
            if answer.content is not None or head:
                return _as_got(answer, joined=joined)
            known = None  # we joined somebody's HEAD, which has told all that a HEAD can

    def _start(self, target: Target, tag: Tag, known: Digest | None, *, head: bool) -> None:
        self._questions.start(*self._question(target, tag, known, head=head))

    def _question(
        self, target: Target, tag: Tag, known: Digest | None, *, head: bool
    ) -> tuple[Hashable, Callable[[], Awaitable[ManifestAnswer]]]:
        asker = self._asker(target)

        async def question() -> ManifestAnswer:
            now = await self._known(target, tag, head=head)  # others may have asked while we looked
            if now is not None and now.fresh is not None:
                return now.fresh[0]
            return await asker.by_tag(target, tag, known, head=head)

        return (asker, "tag", target, tag), question


@dataclass(frozen=True, slots=True)
class _Known:
    """What is held of a tag: `fresh` or `stale` where that may be given, `digest` where a HEAD may tell that it stands.

    `overdue` in seconds; `at_hand`: what the tag means may be given, however old that is.
    """

    digest: Digest | None
    overdue: float
    fresh: tuple[ManifestAnswer, LinkRecord] | None = None
    stale: ManifestAnswer | None = None
    at_hand: bool = False


def _as_got(answer: ManifestAnswer, *, joined: bool) -> ManifestAnswer:
    """The answer to a question that one of its askers has `joined`: what was fetched, was fetched for another one."""
    return replace(answer, source=Source.JOINED) if joined and answer.source is Source.MISS else answer

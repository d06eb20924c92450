"""Referrers: by the upstream's API where it has one, else by the tag that stands for it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from mirror.cache import Cache, ListName
from mirror.memory import Bounded
from mirror.oci.digest import Digest
from mirror.oci.errors import ManifestUnknown, UpstreamUnavailable
from mirror.oci.manifest import OCI_INDEX
from mirror.oci.reference import Tag
from mirror.oci.referrers import fallback_tag, of_types, page_of, parse_index
from mirror.pull.answers import Source
from mirror.pull.lists import MOST_STRETCHES, Following, Gathered, ListAnswer, Lists, gather
from mirror.pull.manifests import ManifestPuller
from mirror.routing import Target
from mirror.transport import Deadline
from mirror.upstream import ListPage, NoReferrers, Upstreams

_WITHOUT_SECONDS = 600.0
"""How long we remember that there is no API for a repository: of others, which may not be there, this says nothing."""
_REPOSITORIES = 10_000


@dataclass(frozen=True, slots=True)
class ReferrersAnswer:
    """Descriptors as their exact JSON, as many as one index may hold; `following` is None where there are no more."""

    descriptors: Sequence[str]
    following: Following | None
    source: Source


class ReferrersPuller:
    """Answers GET and HEAD of referrers."""

    def __init__(
        self,
        cache: Cache,
        upstreams: Upstreams,
        manifests: ManifestPuller,
        lists: Lists,
        first_byte: float,
        asking: float,
    ) -> None:
        """Seconds: how long a client waits at most, and an upstream is asked."""
        self._cache = cache
        self._upstreams = upstreams
        self._manifests = manifests
        self._lists = lists
        self._first_byte = first_byte
        self._asking = asking
        self._without: Bounded[Target, Deadline] = Bounded(_REPOSITORIES)

    async def get(
        self,
        target: Target,
        subject: Digest,
        artifact_types: Collection[str],
        last: str | None = None,
        cursor: str = "",
    ) -> ReferrersAnswer:
        """What is attached to `subject`, of these artifact types (none: of any), after the place `last`.

        The upstream need not know `subject`: then nothing is attached to it. Raises NameUnknown, UpstreamRefused and
        UpstreamUnavailable, and InvalidRequest for a cursor that we never gave.
        """
        deadline = Deadline.after(self._first_byte)
        name = ListName("referrers", subject, cursor)
        for _ in range(MOST_STRETCHES):
            answer = await self._lists.get(target, name, deadline, lambda query: self._hear(target, subject, query))
            wanted = of_types(answer.items, artifact_types) if artifact_types else answer.items
            descriptors, place = page_of(wanted, last)
            if place is not None:
                return ReferrersAnswer(descriptors, Following(place, name.cursor), answer.source)
            if descriptors or not answer.rest:
                break
            name, last = ListName("referrers", subject, answer.rest), None
        return ReferrersAnswer(descriptors, Following(None, answer.rest) if answer.rest else None, answer.source)

    async def learn(self, target: Target, subject: Digest, name: ListName) -> ListAnswer:
        """A stretch of the list for another worker, see Lists.learn."""
        return await self._lists.learn(target, name, lambda query: self._hear(target, subject, query))

    async def _hear(self, target: Target, subject: Digest, query: str) -> Gathered:
        without = self._without.get(target)
        if without is None or without.expired or query:
            try:
                return await self._gather(target, subject, query)
            except _NoApi as no:
                if no.found is NoReferrers.OF_PATH:
                    self._without.set(target, Deadline.after(_WITHOUT_SECONDS))
                elif no.found is NoReferrers.UNCLEAR and await self._has_listed(target, subject):
                    problem = f"{target}: gives no list of referrers where it gave one before"
                    raise UpstreamUnavailable(problem, reason="content") from no
        return await self._by_tag(target, Tag(fallback_tag(subject)))

    async def _gather(self, target: Target, subject: Digest, query: str) -> Gathered:
        deadline = Deadline.after(self._asking)

        async def page(query: str) -> ListPage:
            found = await self._upstreams.referrers(target, subject, query, deadline)
            if isinstance(found, ListPage):
                return found
            if query:
                raise UpstreamUnavailable(f"{target}: its referrers do not go on", reason="page")
            raise _NoApi(found)

        return await gather(page, query, Deadline.after(self._asking / 2))

    async def _has_listed(self, target: Target, subject: Digest) -> bool:
        """Whether its API itself has told us of something attached, which the lack of a tag must not hide."""
        known = await self._cache.list_of(target, ListName("referrers", subject))
        return known is not None and bool(known.items) and not known.substitute

    async def _by_tag(self, target: Target, tag: Tag) -> Gathered:
        """What the index behind the tag names; nothing where there is no tag, or where it means something else."""
        known = await self._cache.tag(target, tag)
        try:
            answer = await self._manifests.get(target, tag, head=False)
        except ManifestUnknown:
            if known is not None:
                await self._check_repository(target, tag)
            absence = await self._cache.absence(target, tag, "manifest")
            return Gathered((), checked_at=absence.checked_at if absence else None, substitute=True)
        known = await self._cache.tag(target, tag)
        content = answer.content if answer.media_type == OCI_INDEX else None
        return Gathered(
            tuple(parse_index(content or b"") or ()),
            checked_at=known.checked_at if known else None,
            source=answer.source,
            substitute=True,
        )

    async def _check_repository(self, target: Target, tag: Tag) -> None:
        """Raises NameUnknown where the repository has gone with the tag: a HEAD's 404 has no body to say so."""
        try:
            await self._upstreams.get_manifest(target, tag, Deadline.after(self._asking))
        except ManifestUnknown:
            pass  # only the tag has gone


class _NoApi(Exception):
    """Leaves the pages: there are none."""

    def __init__(self, found: NoReferrers) -> None:
        super().__init__()
        self.found = found

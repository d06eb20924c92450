"""What is asked of other workers, where those own the upstreams: the same questions as upstreams are asked.

Where the owner does not say a word the upstream is asked without it, by askers whose cache notes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from mirror.cache import ListName
from mirror.download import Sample
from mirror.oci.digest import Digest
from mirror.oci.errors import UpstreamUnavailable
from mirror.oci.reference import Reference, Tag
from mirror.peers import Peers, Silent
from mirror.peers.messages import AskClaim, AskList, AskManifest, AskProof, AskRenewal, ListFound, ManifestFound
from mirror.pull.answers import ManifestAnswer, Source
from mirror.pull.asking import ManifestAsker
from mirror.pull.lists import Ask, ListAnswer, Lists
from mirror.pull.witness import NearWitness
from mirror.routing import Router, Target
from mirror.store.shapes import LinkRecord
from mirror.transport import Deadline


class FarAsker:
    """Asks for manifests as ManifestAsker does; `alone` asks where the owner is silent."""

    def __init__(self, peers: Peers, alone: ManifestAsker, router: Router) -> None:
        self._peers = peers
        self._alone = alone
        self._router = router

    def silence(self, target: Target) -> str | None:
        """As of Asker: as far as it is known here. What the owner knows it answers at once."""
        return offline(self._router, target)

    async def by_tag(self, target: Target, tag: Tag, known: Digest | None, *, head: bool) -> ManifestAnswer:
        """As of Asker."""
        try:
            return await self._ask(target, tag, head=head)
        except Silent:
            return _bypassed(await self._alone.by_tag(target, tag, known, head=head))

    async def by_digest(self, target: Target, digest: Digest, *, head: bool) -> ManifestAnswer:
        """As of Asker."""
        try:
            return await self._ask(target, digest, head=head)
        except Silent:
            return _bypassed(await self._alone.by_digest(target, digest, head=head))

    async def renew(self, target: Target, digest: Digest) -> None:
        """As of Asker; the owner does it, or nobody."""
        await _renew(
            self._peers,
            AskRenewal(host=target.upstream.host, repository=target.repository, kind="manifest", digest=str(digest)),
        )

    async def _ask(self, target: Target, reference: Reference, *, head: bool) -> ManifestAnswer:
        question = AskManifest(
            host=target.upstream.host, repository=target.repository, reference=str(reference), head=head
        )
        found = await self._peers.ask(question, ManifestFound)
        return ManifestAnswer(
            Digest.parse(found.digest), found.size, found.media_type, found.content, Source(found.source)
        )


class FarWitness:
    """Asks for links as NearWitness does; `alone` asks where the owner is silent."""

    def __init__(self, peers: Peers, alone: NearWitness) -> None:
        self._peers = peers
        self._alone = alone

    async def claim(self, target: Target, digest: Digest, deadline: Deadline) -> LinkRecord:
        """As of Witness."""
        question = AskClaim(host=target.upstream.host, repository=target.repository, digest=str(digest))
        try:
            return await self._peers.ask(question, LinkRecord)
        except Silent:
            return await self._alone.claim(target, digest, deadline)

    async def prove(self, target: Target, digest: Digest, size: int, ours: Sample, deadline: Deadline) -> LinkRecord:
        """As of Witness."""
        question = AskProof(
            host=target.upstream.host,
            repository=target.repository,
            digest=str(digest),
            size=size,
            offset=ours.offset,
            data=ours.data,
        )
        try:
            return await self._peers.ask(question, LinkRecord)
        except Silent:
            return await self._alone.prove(target, digest, size, ours, deadline)

    async def renew(self, target: Target, digest: Digest, deadline: Deadline) -> None:
        """As of Witness; the owner does it, or nobody."""
        await _renew(
            self._peers,
            AskRenewal(
                host=target.upstream.host,
                repository=target.repository,
                kind="blob",
                digest=str(digest),
            ),
        )


class ListsElsewhere:
    """Asks for lists where others own the upstreams; `alone` hears them where the owner is silent."""

    def __init__(self, peers: Peers, alone: Lists) -> None:
        self._peers = peers
        self._alone = alone

    def away(self, target: Target) -> bool:
        """As of FarLists."""
        return self._peers.away(target.upstream.host)

    async def hear(self, target: Target, name: ListName, ask: Ask) -> ListAnswer:
        """As of FarLists."""
        question = AskList(
            host=target.upstream.host,
            repository=target.repository,
            kind=name.kind,
            subject="" if name.subject is None else str(name.subject),
            cursor=name.cursor,
        )
        try:
            found = await self._peers.ask(question, ListFound)
        except Silent:
            answer = await self._alone.hear(target, name, ask)
            return replace(answer, source=Source.BYPASS) if answer.source is Source.MISS else answer
        return ListAnswer(found.items, found.rest, Source(found.source))


def silence_by_owner(
    peers: Peers | None, router: Router, near: Callable[[Target], str | None]
) -> Callable[[Target], str | None]:
    """Why nobody who holds a copy should wait, as far as it is known in this worker."""
    if peers is None:
        return near
    return lambda target: offline(router, target) if peers.away(target.upstream.host) else near(target)


def offline(router: Router, target: Target) -> str | None:
    """Why an upstream is never asked, if that is so."""
    return "offline" if router.settings(target.upstream).offline else None


async def _renew(peers: Peers, question: AskRenewal) -> None:
    try:
        renewed = await peers.ask(question, bool)
    except Silent:
        renewed = False
    if not renewed:
        raise UpstreamUnavailable("its owner has not renewed it", reason="peer")


def _bypassed(answer: ManifestAnswer) -> ManifestAnswer:
    return replace(answer, source=Source.BYPASS) if answer.source is Source.MISS else answer

"""What we hold, seen by who may not change it: where another worker owns an upstream, it alone notes what it says."""

from __future__ import annotations

from mirror.cache import Cache, Kind, ListName, Named, Question
from mirror.oci.digest import Digest
from mirror.oci.errors import MirrorError
from mirror.oci.path import Kind as AnyKind
from mirror.oci.reference import Tag
from mirror.routing import Router, Target
from mirror.store.manifests import HeldManifest
from mirror.store.shapes import LinkRecord, ListRecord


class Onlooker(Cache):
    """A cache that is read, and notes nothing of what upstreams say; it answers whoever notes as if it had.

    Except for cursors: those of one query are the same, whoever gives them.
    """

    def __init__(self, cache: Cache, router: Router) -> None:
        vars(self).update(vars(cache))  # the same books and the same copies of them: only what is done differs
        self.router = router

    async def put_tag(self, question: Question, tag: Tag, digest: Digest) -> None:
        """Nothing."""

    async def put_list(
        self,
        question: Question,
        name: ListName,
        items: tuple[str, ...],
        following: str | None,
        checked_at: float,
        *,
        substitute: bool = False,
    ) -> ListRecord:
        """The record that it would be."""
        rest = await self.put_cursor(question.target, name, following) if following is not None else ""
        return ListRecord(items, rest, checked_at, question.epoch, substitute)

    async def put_manifest(self, digest: Digest, content: bytes) -> HeldManifest:
        """What it would be known as."""
        return HeldManifest.of(digest, content, self.now())

    async def put_link(
        self, question: Question, kind: Kind, digest: Digest, size: int, media_type: str = "", *, proven: bool
    ) -> LinkRecord:
        """The record that it would be."""
        now = self.now()
        return LinkRecord(size, media_type, proven, now, now, question.epoch)

    async def put_origin(self, digest: Digest, host: str) -> None:
        """Nothing."""

    async def drop_claim(self, target: Target, kind: Kind, digest: Digest) -> None:
        """Nothing."""

    async def refuse(self, target: Target) -> None:
        """Nothing."""

    async def heard_no(self, target: Target, reference: Named, kind: AnyKind, error: MirrorError) -> None:
        """Nothing."""

"""What we hold: tags, lists, manifests, links and absences by name, blobs by digest."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import msgspec

from mirror.memory import Bounded, Memory
from mirror.oci.digest import Digest
from mirror.oci.errors import (
    BlobUnknown,
    ManifestUnknown,
    MirrorError,
    NameUnknown,
    StorageError,
    Unknown,
    UpstreamRefused,
)
from mirror.oci.path import Kind as AnyKind
from mirror.oci.reference import Reference, Tag
from mirror.routing import Router, Target
from mirror.store.blobs import BlobStore
from mirror.store.database import Key
from mirror.store.epochs import Epochs, epoch_key
from mirror.store.files import SharedFile
from mirror.store.generations import Generations, Watch
from mirror.store.hints import Hints
from mirror.store.manifests import HeldManifest, Manifests
from mirror.store.records import Records
from mirror.store.room import Room
from mirror.store.shapes import AbsenceRecord, CursorRecord, LinkRecord, ListRecord, OriginRecord, TagRecord
from mirror.store.trouble import Trouble
from mirror.store.typed import Copy, TypedRecords

Kind = Literal["manifest", "blob"]
T = TypeVar("T")
_DAY = 86400.0
_KEPT = 30 * _DAY
"""How long names outlive their last renewal at least, in seconds; links and manifests are renewed daily, on use."""
_LIST_BYTES = 64 << 20
"""What the lists that are kept in memory may take there, roughly."""
_LIST_ITEM_BYTES = 64
_PROLONGED = 100_000
_UNKNOWN = {kind.code: kind for kind in (NameUnknown, ManifestUnknown, BlobUnknown)}


@dataclass(frozen=True, slots=True)
class ListName:
    """A repository's tags, or the referrers of `subject` there; from the start, or from where `cursor` points."""

    kind: Literal["tags", "referrers"]
    subject: Digest | None = None
    cursor: str = ""

    @property
    def parts(self) -> Key:
        """What tells it from others of its kind."""
        return ("" if self.subject is None else str(self.subject), self.cursor)


@dataclass(frozen=True, slots=True)
class Question:
    """A question to a repository, taken before it is asked: its answer is void if the repository refuses meanwhile."""

    target: Target
    epoch: int


Named = Reference | ListName
"""What an upstream can say no to."""


class Cache:
    """Records with a memory copy in front, and the blob store. Losing any of it costs requests, never correctness."""

    def __init__(
        self,
        records: Records,
        blobs: BlobStore,
        room: Room,
        trouble: Trouble,
        router: Router,
        *,
        generations: Generations | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`generations`: what tells a copy of ours that another process has changed a record."""
        self.blobs = blobs
        self.room = room
        self.trouble = trouble
        self.generations = generations or Generations()
        self._names = TypedRecords(records, generations=self.generations)
        self._lists = TypedRecords(records, Memory(limit=_LIST_BYTES, weigh=_weight), generations=self.generations)
        self.router = router
        """What it knows of the upstreams; another one with each configuration."""
        self._clock = clock
        self._manifests = Manifests(records, clock)
        self.hints = Hints()
        self._noting: set[asyncio.Task[Any]] = set()
        self._prolonged: Bounded[Key, float] = Bounded(_PROLONGED)
        # A number is there as long as any of its links: without it they are only asked again.
        self._epochs = Epochs(records, useful_for=2 * _KEPT, generations=self.generations)

    async def close(self) -> None:
        """Forgets the memory copies, once what is being noted is."""
        while self._noting:
            await asyncio.wait(self._noting)
        await self._names.close()
        await self._lists.close()

    def in_background(self, noting: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Notes something that nobody needs to wait for."""
        task = asyncio.create_task(noting, name="note")
        self._noting.add(task)
        task.add_done_callback(self._noting.discard)
        return task

    def watch(self, target: Target, reference: Reference, digest: Digest) -> Watch:
        """Tells whether anything has changed that decides which manifest the repository gives for `reference`, which
        means `digest` now, and whether it may; to be taken before any of that is looked at.
        """
        keys = [epoch_key(_repository(target)), _key("link-manifest", target, digest), ("origin", str(digest))]
        if isinstance(reference, Tag):
            keys.append(_key("tag", target, reference))
        return self.generations.watch(keys)

    # Epochs: what a repository showed us before it refused us does not count afterwards.

    async def question(self, target: Target) -> Question:
        """What `put_tag`, `put_list` and `put_link` want to know; taken before the upstream is asked."""
        return Question(target, await self._epoch(target))

    async def still_counts(self, question: Question) -> bool:
        """Whether the repository has not been refused since the question was taken."""
        return await self._epoch(question.target) == question.epoch

    async def refuse(self, target: Target) -> None:
        """The upstream refused the repository: all its links and tags are asked again, one by one, when wanted."""
        await self._epochs.end(_repository(target))

    # Tags.

    async def tag(self, target: Target, tag: Tag) -> TagRecord | None:
        """What we last heard of a tag, however old; None if nothing, or if the repository was refused since."""
        record = await self._names.get(_key("tag", target, tag), TagRecord)
        if record is None or record.epoch != await self._epoch(target):
            return None
        await self._prolong(self._names, _key("tag", target, tag), target, record)
        return record

    async def put_tag(self, question: Question, tag: Tag, digest: Digest) -> None:
        """Notes that the upstream has just named `digest` for the tag."""
        target = question.target
        if not await self._stands(question):
            return
        record = TagRecord(str(digest), self._clock(), question.epoch, await self._before(target, tag, digest))
        useful_for = self.tag_ttl(target, tag) + self.router.settings(target.upstream).stale_if_error
        # A tag past all that still tells whether a HEAD will do in place of a GET.
        await self._names.put(_key("tag", target, tag), record, max(useful_for, _KEPT))
        await self._forget_absence(target, tag, "manifest")

    async def _before(self, target: Target, tag: Tag, digest: Digest) -> str:
        known = await self.tag(target, tag)
        if known is None or await self.manifest(digest) is not None:
            return ""
        return known.digest if await self.manifest(Digest.parse(known.digest)) is not None else known.before

    def tag_ttl(self, target: Target, tag: Tag) -> float:
        """Seconds for which a tag is taken as unmoved: the first matching pattern's, the upstream's, the default."""
        return self.router.tag_ttl(target.upstream, tag.name)

    def now(self) -> float:
        """The wall clock, in seconds since the epoch."""
        return self._clock()

    def overdue(self, checked_at: float, ttl: float) -> float:
        """Seconds for which what was heard at `checked_at` and is good for `ttl` is out of date; below 0: it is fresh.

        0 where the clock was set back: nobody knows how old it is, so it is asked again, and may be served till then.
        """
        age = self._clock() - checked_at
        return age - ttl if age >= 0 else 0.0

    # Lists.

    async def list_of(self, target: Target, name: ListName) -> ListRecord | None:
        """What we last heard of a list, however old; None if nothing, or if the repository was refused since."""
        record = await self._lists.get(_key(name.kind, target, name), ListRecord)
        if record is None or record.epoch != await self._epoch(target):
            return None
        await self._prolong(self._lists, _key(name.kind, target, name), target, record)
        return record

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
        """Notes what the upstream said at `checked_at`; `following` is its query for what comes after `items`."""
        target, rest = question.target, ""
        if following is not None:
            rest = await self.put_cursor(target, name, following)
        record = ListRecord(items, rest, checked_at, question.epoch, substitute)
        if await self._stands(question):
            await self._lists.put(_key(name.kind, target, name), record, self._list_useful_for(target))
            await self._forget_absence(target, name, name.kind)
        return record

    async def put_cursor(self, target: Target, name: ListName, query: str) -> str:
        """A short text that means this query of the upstream; clients get it in place of the query itself."""
        cursor = hashlib.sha256(query.encode()).hexdigest()[:32]
        key = _key(f"cursor-{name.kind}", target, replace(name, cursor=cursor))
        await self._lists.put(key, CursorRecord(query), max(_DAY, self._list_useful_for(target)))
        return cursor

    async def query_of(self, target: Target, name: ListName) -> str | None:
        """The upstream's query that the cursor means; None where we never gave that cursor, or too long ago."""
        record = await self._lists.get(_key(f"cursor-{name.kind}", target, name), CursorRecord)
        return record.query if record else None

    def list_ttl(self, target: Target) -> float:
        """Seconds for which a list is taken as complete."""
        return self.router.list_ttl(target.upstream)

    def _list_useful_for(self, target: Target) -> float:
        return self.list_ttl(target) + self.router.settings(target.upstream).stale_if_error

    # Manifests.

    async def manifest(self, digest: Digest) -> HeldManifest | None:
        """The manifest's bytes, whichever repository they came from: the caller checks the link."""
        return await self._manifests.get(digest)

    async def put_manifest(self, digest: Digest, content: bytes) -> HeldManifest:
        """Stores a manifest whose digest the caller has verified."""
        return await self._manifests.put(digest, content)

    def note_served(self, target: Target, digest: Digest) -> None:
        """An image ages as a whole: serving its manifest is a use of the blobs it names, whose sizes it tells us."""
        for blob, size in self._manifests.blobs_of(digest):
            self.blobs.touch(blob)
            if size is not None:
                self.hints.put(target, blob, size)

    # Links: which repository may give which digest.

    async def link(self, target: Target, kind: Kind, digest: Digest) -> LinkRecord | None:
        """The link of `digest` to the repository; None where the upstream never showed it, or refused since."""
        key = _key(f"link-{kind}", target, digest)
        await self._epoch(target)
        record = await self._names.get(key, LinkRecord)
        if record is None or record.epoch != await self._epoch(target):
            return None
        now = self._clock()
        if now - record.renewed_at > _DAY:
            # Without a pause since it was read: a 404 that comes now must not be undone.
            record = msgspec.structs.replace(record, renewed_at=now)
            await self._names.put(key, record, _KEPT)
            await self._epochs.write(_repository(target), record.epoch)
        return record

    async def permits(self, target: Target, digest: Digest, link: LinkRecord, size: int) -> bool:
        """Whether what we hold under `digest`, of `size` bytes, may be given by this link without asking.

        A claim is good for bytes that came from the same upstream, if it told their length; and for no bytes at all.
        """
        if link.proven or link.size != size:
            return link.proven
        return size == 0 or await self.origin(digest) == target.upstream.host

    async def put_link(
        self, question: Question, kind: Kind, digest: Digest, size: int, media_type: str = "", *, proven: bool
    ) -> LinkRecord:
        """Notes that the upstream has just said that the repository has `digest`, of `size` bytes.

        Returns the link as it is now: a claim takes nothing from what was proven before.
        """
        target, now = question.target, self._clock()
        known = await self.link(target, kind, digest)
        if known is not None and known.proven and not proven:
            size, media_type, proven = known.size, known.media_type, True
        record = LinkRecord(size, media_type, proven, now, now, question.epoch)
        if await self._stands(question):
            await self._names.put(_key(f"link-{kind}", target, digest), record, _KEPT)
            await self._forget_absence(target, digest, kind)
        return record

    async def drop_claim(self, target: Target, kind: Kind, digest: Digest) -> None:
        """The upstream's word on `digest` turned out wrong: it does not count any more, unless it was proven before."""
        link = await self.link(target, kind, digest)
        if link is not None and not link.proven:
            await self._names.delete(_key(f"link-{kind}", target, digest))

    # Whose bytes are these.

    async def origin(self, digest: Digest) -> str | None:
        """The upstream host that the held bytes came from."""
        record = await self._names.get(("origin", str(digest)), OriginRecord)
        return record.host if record else None

    async def put_origin(self, digest: Digest, host: str) -> None:
        """Notes whose bytes were verified and stored."""
        await self._names.put(("origin", str(digest)), OriginRecord(host), 12 * _KEPT)

    # The upstream's no.

    @asynccontextmanager
    async def hearing_no(self, target: Target, reference: Named, kind: AnyKind) -> AsyncIterator[None]:
        """Around a question: acts on an upstream's no before it goes on."""
        try:
            yield
        except (Unknown, UpstreamRefused) as no:
            await self.heard_no(target, reference, kind, no)
            raise

    async def heard_no(self, target: Target, reference: Named, kind: AnyKind, error: MirrorError) -> None:
        """Acts on an answer that denies `reference`: the repository is refused, or this one thing is gone.

        Who may not list may pull all the same, so no more than the list goes with it.
        """
        if isinstance(reference, ListName):
            await self._lists.delete(_key(kind, target, reference))
        elif isinstance(error, (UpstreamRefused, NameUnknown)):
            await self.refuse(target)
        if not isinstance(error, Unknown):
            return
        if not isinstance(reference, ListName):
            await self._names.delete(_key("tag" if isinstance(reference, Tag) else f"link-{kind}", target, reference))
        ttl = self.router.settings(target.upstream).negative_ttl
        if ttl > 0:
            record = AbsenceRecord(error.code, error.message, self._clock())
            await self._names.put(_key(f"absent-{kind}", target, reference), record, ttl)

    async def absence(self, target: Target, reference: Named, kind: AnyKind) -> AbsenceRecord | None:
        """The upstream's 404, while it is young enough."""
        record = await self._names.get(_key(f"absent-{kind}", target, reference), AbsenceRecord)
        ttl = self.router.settings(target.upstream).negative_ttl
        return record if record is not None and self.overdue(record.checked_at, ttl) < 0 else None

    async def check_absence(self, target: Target, reference: Named, kind: AnyKind) -> None:
        """Raises the upstream's 404 again while it is young enough."""
        record = await self.absence(target, reference, kind)
        if record is not None:
            raise _UNKNOWN.get(record.code, BlobUnknown if kind == "blob" else ManifestUnknown)(record.message)

    # Blobs.

    async def open_blob(self, digest: Digest, target: Target) -> SharedFile | None:
        """The blob's file, with the caller as its holder, noted as used; None where it is not held or not readable."""
        file = await self.blobs.open_blob(digest, beside=lambda: self.absence(target, digest, "blob"))
        if file is not None:
            self.blobs.touch(digest)
        return file

    async def drop_blob(self, digest: Digest, file: SharedFile) -> None:
        """Removes a blob whose file cannot be read, unless another file has taken its place."""
        try:
            await self.blobs.checks.judge(digest, file, intact=False)
        except StorageError as error:
            self.trouble.note("blobs", error)

    # Inside.

    async def _prolong(self, names: TypedRecords, key: Key, target: Target, record: TagRecord | ListRecord) -> None:
        """Lets a name that is used outlive its time while nobody may be asked for it anew; at most daily."""
        now = self._clock()
        if self.router.settings(target.upstream).offline and now - (self._prolonged.get(key) or 0.0) > _DAY:
            self._prolonged.set(key, now)
            await names.put(key, record, _KEPT)

    async def _epoch(self, target: Target) -> int:
        return await self._epochs.number(_repository(target))

    async def _stands(self, question: Question) -> bool:
        """Whether the answer to a question may be noted."""
        return await self._epochs.stands(_repository(question.target), question.epoch)

    async def _forget_absence(self, target: Target, reference: Named, kind: AnyKind) -> None:
        key = _key(f"absent-{kind}", target, reference)
        if await self._names.get(key, AbsenceRecord) is not None:
            await self._names.delete(key)


def _key(kind: str, target: Target, reference: Named) -> Key:
    parts = reference.parts if isinstance(reference, ListName) else (str(reference),)
    return (kind, target.upstream.host, target.repository, *parts)


def _weight(_: Key, copy: Copy) -> int:
    record = copy.record
    items = record.items if isinstance(record, ListRecord) else ()
    if isinstance(record, CursorRecord):
        items = (record.query,)
    return _LIST_ITEM_BYTES * (len(items) + 1) + sum(map(len, items))


def _repository(target: Target) -> Key:
    return (target.upstream.host, target.repository)

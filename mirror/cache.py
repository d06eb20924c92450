"""What we hold: tags, manifests, links and absences by name, blobs by digest."""

from __future__ import annotations

import itertools
import secrets
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

import msgspec

from mirror.memory import Bounded
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
from mirror.oci.manifest import Manifest, parse_manifest
from mirror.oci.reference import Reference, Tag
from mirror.routing import Router, Target
from mirror.store.blobs import BlobStore
from mirror.store.budget import Budget
from mirror.store.files import SharedFile
from mirror.store.records import Key, Records
from mirror.store.trouble import Trouble
from mirror.store.typed import TypedRecords

Kind = Literal["manifest", "blob"]
_DAY = 86400.0
_KEPT = 30 * _DAY
"""How long names outlive their last renewal at least, in seconds; links and manifests are renewed daily, on use."""
_MANIFEST_BYTES = 64 << 20
_HINTS = 100_000
_EPOCHS = 100_000
_NAMED_BLOBS = 1000
"""How many blobs of a manifest its use refreshes; real images have a few dozen, forged ones anything."""
_NAMED_BLOB_BYTES = 400
"""What one of them takes in memory, roughly."""
_RENEWED = struct.Struct(">d")
_UNKNOWN = {kind.code: kind for kind in (NameUnknown, ManifestUnknown, BlobUnknown)}


class TagRecord(msgspec.Struct, frozen=True, array_like=True):
    """What a tag meant at `checked_at` (seconds since the epoch).

    `before`: what it meant before, as long as we have not got the manifest that it means now; else empty.
    """

    digest: str
    checked_at: float
    epoch: int
    before: str = ""


class LinkRecord(msgspec.Struct, frozen=True, array_like=True):
    """The upstream itself has said, last at `checked_at`, that this repository has this digest.

    `proven`: it has also shown the bytes; a claim alone gives nobody what we hold from another upstream. `epoch` is the
    repository's when it was asked: a later refusal of the repository ends the link. `media_type` is empty for blobs;
    `size` is in bytes.
    """

    size: int
    media_type: str
    proven: bool
    checked_at: float
    renewed_at: float
    epoch: int


class AbsenceRecord(msgspec.Struct, frozen=True, array_like=True):
    """The upstream answered at `checked_at` that there is no such thing, with this error code."""

    code: str
    message: str
    checked_at: float


class EpochRecord(msgspec.Struct, frozen=True, array_like=True):
    """The number of a repository's present epoch, never used before; there is none where nothing is linked."""

    number: int


class OriginRecord(msgspec.Struct, frozen=True, array_like=True):
    """The upstream host whose bytes were verified and stored under a digest."""

    host: str


@dataclass(frozen=True, slots=True)
class Question:
    """A question to a repository, taken before it is asked: its answer is void if the repository refuses meanwhile."""

    target: Target
    epoch: int


@dataclass(frozen=True, slots=True)
class HeldManifest:
    """A manifest's exact bytes, what they say of themselves (None where that is of no shape we know), and the blobs
    that they name with their sizes.
    """

    digest: Digest
    content: bytes
    outline: Manifest | None
    blobs: tuple[tuple[Digest, int], ...]
    renewed_at: float


@dataclass(frozen=True, slots=True)
class _Epoch:
    number: int
    written: bool


class Cache:
    """Records with a memory copy in front, and the blob store. Losing any of it costs requests, never correctness."""

    def __init__(
        self,
        records: Records,
        blobs: BlobStore,
        budget: Budget,
        trouble: Trouble,
        router: Router,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.blobs = blobs
        self.budget = budget
        self.trouble = trouble
        self._records = records
        self._names = TypedRecords(records)
        self._router = router
        self._clock = clock
        self._manifests: Bounded[Digest, HeldManifest] = Bounded(_MANIFEST_BYTES)
        self._hints: Bounded[tuple[str, str, Digest], int] = Bounded(_HINTS)
        self._epochs: Bounded[tuple[str, str], _Epoch] = Bounded(_EPOCHS)

    async def close(self) -> None:
        """Forgets the memory copies."""
        await self._names.close()

    # Epochs: what a repository showed us before it refused us does not count afterwards.

    async def question(self, target: Target) -> Question:
        """What `put_tag` and `put_link` want to know; taken before the upstream is asked."""
        return Question(target, (await self._epoch(target)).number)

    async def still_counts(self, question: Question) -> bool:
        """Whether the repository has not been refused since the question was taken."""
        return (await self._epoch(question.target)).number == question.epoch

    async def refuse(self, target: Target) -> None:
        """The upstream refused the repository: all its links and tags are asked again, one by one, when wanted."""
        ended = await self._epoch(target)
        self._epochs.set(_repository(target), _new_epoch())
        if ended.written:
            await self._records.delete(_epoch_key(target))

    # Tags.

    async def tag(self, target: Target, tag: Tag) -> TagRecord | None:
        """What we last heard of a tag, however old; None if nothing, or if the repository was refused since."""
        record = await self._names.get(_key("tag", target, tag), TagRecord)
        if record is None or record.epoch != (await self._epoch(target)).number:
            return None
        return record

    async def put_tag(self, question: Question, tag: Tag, digest: Digest) -> None:
        """Notes that the upstream has just named `digest` for the tag."""
        target = question.target
        if not await self._stands(question):
            return
        record = TagRecord(str(digest), self._clock(), question.epoch, await self._before(target, tag, digest))
        useful_for = self.tag_ttl(target, tag) + self._router.settings(target.upstream).stale_if_error
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
        return self._router.tag_ttl(target.upstream, tag.name)

    def overdue(self, checked_at: float, ttl: float) -> float:
        """Seconds for which what was heard at `checked_at` and is good for `ttl` is out of date; below 0: it is fresh.

        0 where the clock was set back: nobody knows how old it is, so it is asked again, and may be served till then.
        """
        age = self._clock() - checked_at
        return age - ttl if age >= 0 else 0.0

    # Manifests.

    async def manifest(self, digest: Digest) -> HeldManifest | None:
        """The manifest's bytes, whichever repository they came from: the caller checks the link."""
        held = self._manifests.get(digest)
        if held is None:
            value = await self._records.get(("manifest", str(digest)))
            if value is None or not digest.matches(content := value[_RENEWED.size :]):
                return None
            held = self._keep(digest, content, _RENEWED.unpack_from(value)[0])
        if self._clock() - held.renewed_at > _DAY:
            held = await self.put_manifest(digest, held.content)
        return held

    async def put_manifest(self, digest: Digest, content: bytes) -> HeldManifest:
        """Stores a manifest whose digest the caller has verified."""
        held = self._keep(digest, content, self._clock())
        await self._records.set(("manifest", str(digest)), _RENEWED.pack(held.renewed_at) + content, _KEPT)
        return held

    def _keep(self, digest: Digest, content: bytes, renewed_at: float) -> HeldManifest:
        manifest = parse_manifest(content)
        blobs = tuple(itertools.islice(manifest.named_blobs(), _NAMED_BLOBS)) if manifest is not None else ()
        outline = manifest.outline() if manifest is not None else None
        held = HeldManifest(digest, content, outline, blobs, renewed_at)
        self._manifests.set(digest, held, len(content) + _NAMED_BLOB_BYTES * len(blobs))
        return held

    def note_served(self, target: Target, digest: Digest) -> None:
        """An image ages as a whole: serving its manifest is a use of the blobs it names, whose sizes it tells us."""
        held = self._manifests.get(digest)
        for blob, size in held.blobs if held is not None else ():
            self.blobs.touch(blob)
            if size >= 0:
                self._hints.set((target.upstream.host, target.repository, blob), size)

    def size_hint(self, target: Target, digest: Digest) -> int | None:
        """The size in bytes that a manifest served from this repository gives the blob."""
        return self._hints.get((target.upstream.host, target.repository, digest))

    def forget_hint(self, target: Target, digest: Digest) -> None:
        """The hint turned out wrong."""
        self._hints.pop((target.upstream.host, target.repository, digest))

    # Links: which repository may give which digest.

    async def link(self, target: Target, kind: Kind, digest: Digest) -> LinkRecord | None:
        """The link of `digest` to the repository; None where the upstream never showed it, or refused since."""
        key = _key(f"link-{kind}", target, digest)
        await self._epoch(target)
        record = await self._names.get(key, LinkRecord)
        if record is None or record.epoch != (await self._epoch(target)).number:
            return None
        now = self._clock()
        if now - record.renewed_at > _DAY:
            # Without a pause since it was read: a 404 that comes now must not be undone.
            record = msgspec.structs.replace(record, renewed_at=now)
            await self._names.put(key, record, _KEPT)
            await self._write_epoch(target, record.epoch)
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
    async def hearing_no(self, target: Target, reference: Reference, kind: Kind) -> AsyncIterator[None]:
        """Around a question: acts on an upstream's no before it goes on."""
        try:
            yield
        except (Unknown, UpstreamRefused) as no:
            await self.heard_no(target, reference, kind, no)
            raise

    async def heard_no(self, target: Target, reference: Reference, kind: Kind, error: MirrorError) -> None:
        """Acts on an answer that denies `reference`: the repository is refused, or this one thing is gone."""
        if isinstance(error, (UpstreamRefused, NameUnknown)):
            await self.refuse(target)
        if not isinstance(error, Unknown):
            return
        await self._names.delete(_key("tag" if isinstance(reference, Tag) else f"link-{kind}", target, reference))
        ttl = self._router.settings(target.upstream).negative_ttl
        if ttl > 0:
            record = AbsenceRecord(error.code, error.message, self._clock())
            await self._names.put(_key(f"absent-{kind}", target, reference), record, ttl)

    async def check_absence(self, target: Target, reference: Reference, kind: Kind) -> None:
        """Raises the upstream's 404 again while it is young enough."""
        record = await self._names.get(_key(f"absent-{kind}", target, reference), AbsenceRecord)
        ttl = self._router.settings(target.upstream).negative_ttl
        if record is not None and self.overdue(record.checked_at, ttl) < 0:
            raise _UNKNOWN.get(record.code, BlobUnknown if kind == "blob" else ManifestUnknown)(record.message)

    # Blobs.

    async def open_blob(self, digest: Digest) -> SharedFile | None:
        """The blob's file, with the caller as its holder, noted as used; None where it is not held or not readable."""
        file = await self.blobs.open_blob(digest)
        if file is not None:
            self.blobs.touch(digest)
        return file

    async def drop_blob(self, digest: Digest) -> None:
        """Removes a blob that cannot be read."""
        try:
            await self.blobs.remove(digest)
        except StorageError as error:
            self.trouble.note("blobs", error)

    # Inside.

    async def _epoch(self, target: Target) -> _Epoch:
        known = self._epochs.get(_repository(target))
        if known is None:
            record = await self._names.read(_epoch_key(target), EpochRecord)
            known = self._epochs.get(_repository(target))  # another request may have been faster
            if known is None:
                known = _new_epoch() if record is None else _Epoch(record.number, written=True)
                self._epochs.set(_repository(target), known)
        return known

    async def _stands(self, question: Question) -> bool:
        """Whether the answer to a question may be noted; then its epoch is written down, too."""
        epoch = await self._epoch(question.target)
        if epoch.number != question.epoch:
            return False
        if not epoch.written:
            await self._write_epoch(question.target, epoch.number)
        return True

    async def _write_epoch(self, target: Target, number: int) -> None:
        known = self._epochs.get(_repository(target))
        if known is None or known.number != number:
            return  # ended meanwhile
        self._epochs.set(_repository(target), _Epoch(number, written=True))
        # It is there as long as any of its links: without it they are only asked again.
        await self._records.set(_epoch_key(target), msgspec.msgpack.encode(EpochRecord(number)), 2 * _KEPT)

    async def _forget_absence(self, target: Target, reference: Reference, kind: Kind) -> None:
        key = _key(f"absent-{kind}", target, reference)
        if await self._names.get(key, AbsenceRecord) is not None:
            await self._names.delete(key)


def _key(kind: str, target: Target, reference: Reference) -> Key:
    return (kind, target.upstream.host, target.repository, str(reference))


def _repository(target: Target) -> tuple[str, str]:
    return (target.upstream.host, target.repository)


def _epoch_key(target: Target) -> Key:
    return ("epoch", *_repository(target))


def _new_epoch() -> _Epoch:
    return _Epoch(secrets.randbits(62), written=False)

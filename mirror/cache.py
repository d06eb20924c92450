"""What we hold: tags, manifests, links and absences by name, blobs by digest."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

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
from mirror.oci.manifest import Manifest, parse_manifest
from mirror.oci.reference import Reference, Tag
from mirror.routing import Router, Target
from mirror.store.blobs import BlobStore
from mirror.store.budget import Budget
from mirror.store.files import SharedFile
from mirror.store.records import Key, Records
from mirror.store.trouble import Trouble

Kind = Literal["manifest", "blob"]
_DAY = 86400.0
_KEPT = 30 * _DAY
"""How long links and manifests outlive their last renewal, in seconds; they are renewed at most daily, on use."""
_IN_MEMORY = 3600.0
_MANIFEST_BYTES = 64 << 20
_HINTS = 100_000
_RENEWED = struct.Struct(">d")


class TagRecord(msgspec.Struct, frozen=True, array_like=True):
    """What a tag meant at `checked_at` (seconds since the epoch); `size` is the manifest's, in bytes."""

    digest: str
    size: int
    media_type: str
    checked_at: float
    epoch: int


class LinkRecord(msgspec.Struct, frozen=True, array_like=True):
    """The upstream itself has said, last at `checked_at`, that this repository has this digest.

    `proven`: it has also shown the bytes; a claim alone gives nobody what we hold from another upstream. `epoch` is the
    repository's at that time: a later refusal of the repository ends the link. `media_type` is empty for blobs; `size`
    is in bytes.
    """

    size: int
    media_type: str
    proven: bool
    checked_at: float
    renewed_at: float
    epoch: int


class AbsenceRecord(msgspec.Struct, frozen=True, array_like=True):
    """The upstream answered at `checked_at` that there is no such thing."""

    message: str
    checked_at: float


class EpochRecord(msgspec.Struct, frozen=True, array_like=True):
    """How often an upstream has refused a whole repository."""

    number: int


class OriginRecord(msgspec.Struct, frozen=True, array_like=True):
    """The upstream host whose bytes were verified and stored under a digest."""

    host: str


R = TypeVar("R", TagRecord, LinkRecord, AbsenceRecord, EpochRecord, OriginRecord)


@dataclass(frozen=True, slots=True)
class HeldManifest:
    """A manifest's exact bytes, and what they name (None where they are of no shape that we know)."""

    digest: Digest
    content: bytes
    named: Manifest | None
    renewed_at: float


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
        self._router = router
        self._clock = clock
        self._memory = Memory()
        self._manifests: Bounded[Digest, HeldManifest] = Bounded(_MANIFEST_BYTES)
        self._hints: Bounded[tuple[str, str, Digest], int] = Bounded(_HINTS)

    async def close(self) -> None:
        """Forgets the memory copies."""
        await self._memory.close()

    # Tags.

    async def tag(self, target: Target, tag: Tag) -> TagRecord | None:
        """What we last heard of a tag, however old; None if nothing, or if the repository was refused since."""
        record = await self._get(_key("tag", target, tag), TagRecord)
        if record is None or record.epoch != await self._epoch(target):
            return None
        return record

    async def put_tag(self, target: Target, tag: Tag, digest: Digest, size: int, media_type: str) -> TagRecord:
        """Notes that the upstream has just named `digest` for the tag."""
        record = TagRecord(str(digest), size, media_type, self._clock(), await self._epoch(target))
        useful_for = self.tag_ttl(target, tag) + self._router.settings(target.upstream).stale_if_error
        await self._put(_key("tag", target, tag), record, useful_for)
        await self._forget_absence(target, tag)
        return record

    def tag_ttl(self, target: Target, tag: Tag) -> float:
        """Seconds for which a tag is taken as unmoved: the first matching pattern's, the upstream's, the default."""
        return self._router.tag_ttl(target.upstream, tag.name)

    def age(self, checked_at: float) -> float:
        """Seconds since `checked_at`; endless where the clock was set back, so that the thing is asked again."""
        age = self._clock() - checked_at
        return age if age >= 0 else float("inf")

    # Manifests.

    async def manifest(self, digest: Digest) -> HeldManifest | None:
        """The manifest's bytes, whichever repository they came from: the caller checks the link."""
        held = self._manifests.get(digest)
        if held is None:
            value = await self._records.get(("manifest", str(digest)))
            if value is None or not digest.matches(content := value[_RENEWED.size :]):
                return None
            held = HeldManifest(digest, content, parse_manifest(content), _RENEWED.unpack_from(value)[0])
            self._manifests.set(digest, held, len(content))
        if self._clock() - held.renewed_at > _DAY:
            held = await self.put_manifest(digest, held.content)
        return held

    async def put_manifest(self, digest: Digest, content: bytes) -> HeldManifest:
        """Stores a manifest whose digest the caller has verified."""
        held = HeldManifest(digest, content, parse_manifest(content), self._clock())
        self._manifests.set(digest, held, len(content))
        await self._records.set(("manifest", str(digest)), _RENEWED.pack(held.renewed_at) + content, _KEPT)
        return held

    def note_served(self, target: Target, digest: Digest) -> None:
        """An image ages as a whole: serving its manifest is a use of the blobs it names, whose sizes it tells us."""
        held = self._manifests.get(digest)
        if held is None or held.named is None:
            return
        for blob, size in held.named.named_blobs():
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

    async def link(self, target: Target, digest: Digest) -> LinkRecord | None:
        """The link of `digest` to the repository; None where the upstream never showed it, or refused since."""
        record = await self._get(_key("link", target, digest), LinkRecord)
        if record is None or record.epoch != await self._epoch(target):
            return None
        now = self._clock()
        if now - record.renewed_at > _DAY:
            record = msgspec.structs.replace(record, renewed_at=now)
            await self._put(_key("link", target, digest), record, _KEPT)
        return record

    async def put_link(
        self, target: Target, digest: Digest, size: int, media_type: str = "", *, proven: bool
    ) -> LinkRecord:
        """Notes that the upstream has just said that the repository has `digest`, of `size` bytes."""
        now = self._clock()
        record = LinkRecord(size, media_type, proven, now, now, await self._epoch(target))
        await self._put(_key("link", target, digest), record, _KEPT)
        await self._forget_absence(target, digest)
        return record

    async def refuse(self, target: Target) -> None:
        """The upstream refused the repository: all its links and tags are asked again, one by one, when wanted."""
        number = await self._epoch(target) + 1
        await self._put(("epoch", target.upstream.host, target.repository), EpochRecord(number), 2 * _KEPT)

    # Whose bytes are these.

    async def origin(self, digest: Digest) -> str | None:
        """The upstream host that the held bytes came from."""
        record = await self._get(("origin", str(digest)), OriginRecord)
        return record.host if record else None

    async def put_origin(self, digest: Digest, host: str) -> None:
        """Notes whose bytes were verified and stored."""
        await self._put(("origin", str(digest)), OriginRecord(host), 12 * _KEPT)

    # The upstream's no.

    async def heard_no(self, target: Target, reference: Reference, kind: Kind, error: MirrorError) -> None:
        """Acts on an answer that denies `reference`: the repository is refused, or this one thing is gone."""
        if isinstance(error, (UpstreamRefused, NameUnknown)):
            await self.refuse(target)
        elif isinstance(error, Unknown):
            await self._drop(_key("tag" if isinstance(reference, Tag) else "link", target, reference))
            ttl = self._router.settings(target.upstream).negative_ttl
            if ttl > 0:
                record = AbsenceRecord(error.message, self._clock())
                await self._put(_key(f"absent-{kind}", target, reference), record, ttl)

    async def check_absence(self, target: Target, reference: Reference, kind: Kind) -> None:
        """Raises the upstream's 404 again while it is young enough."""
        record = await self._get(_key(f"absent-{kind}", target, reference), AbsenceRecord)
        if record is not None and self.age(record.checked_at) < self._router.settings(target.upstream).negative_ttl:
            raise (BlobUnknown if kind == "blob" else ManifestUnknown)(record.message)

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

    async def _epoch(self, target: Target) -> int:
        key = ("epoch", target.upstream.host, target.repository)
        record = await self._get(key, EpochRecord)
        if record is None:
            # Most repositories were never refused; without a copy of that each request would ask the disk for it.
            await self._memory.set(key, EpochRecord(0), _IN_MEMORY)
            return 0
        return record.number

    async def _forget_absence(self, target: Target, reference: Reference) -> None:
        for kind in get_args(Kind):
            key = _key(f"absent-{kind}", target, reference)
            if await self._memory.get(key) is not None:
                await self._drop(key)

    async def _get(self, key: Key, shape: type[R]) -> R | None:
        held = await self._memory.get(key)
        if isinstance(held, shape):
            return held
        value = await self._records.get(key)
        if value is None:
            return None
        try:
            record = msgspec.msgpack.decode(value, type=shape)
        except msgspec.MsgspecError:
            return None
        await self._memory.set(key, record, _IN_MEMORY)
        return record

    async def _put(self, key: Key, record: R, useful_for: float) -> None:
        await self._memory.set(key, record, min(useful_for, _IN_MEMORY))
        await self._records.set(key, msgspec.msgpack.encode(record), useful_for)

    async def _drop(self, key: Key) -> None:
        await self._memory.delete(key)
        await self._records.delete(key)


def _key(kind: str, target: Target, reference: Reference) -> Key:
    return (kind, target.upstream.host, target.repository, str(reference))

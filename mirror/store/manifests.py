"""Manifests by digest: their exact bytes in the records, and what is known of them in memory."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable
from dataclasses import dataclass

from mirror.memory import Bounded
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest, parse_manifest
from mirror.store.records import Records

_DAY = 86400.0
_KEPT = 30 * _DAY
"""Seconds for which one outlives its last renewal; it is renewed daily, on use."""
_BYTES = 64 << 20
"""What those in memory may take there, roughly."""
_NAMED_BLOBS = 1000
"""How many blobs of a manifest its use refreshes; real images have a few dozen, forged ones anything."""
_NAMED_BLOB_BYTES = 400
"""What one of them takes in memory, roughly."""
_RENEWED = struct.Struct(">d")


@dataclass(frozen=True, slots=True)
class HeldManifest:
    """A manifest's exact bytes, what they say of themselves (None where that is of no shape we know), and the blobs
    that they name with their sizes.
    """

    digest: Digest
    content: bytes
    outline: Manifest | None
    blobs: tuple[tuple[Digest, int | None], ...]
    renewed_at: float

    @classmethod
    def of(cls, digest: Digest, content: bytes, renewed_at: float) -> HeldManifest:
        """What is known of bytes whose digest the caller has verified."""
        manifest = parse_manifest(content)
        blobs = tuple(itertools.islice(manifest.named_blobs(), _NAMED_BLOBS)) if manifest is not None else ()
        return cls(digest, content, manifest.outline() if manifest is not None else None, blobs, renewed_at)


class Manifests:
    """Whichever repository they came from: who may have which is for links to say."""

    def __init__(self, records: Records, clock: Callable[[], float]) -> None:
        """`clock` is Unix time."""
        self._records = records
        self._clock = clock
        self._present: Bounded[Digest, HeldManifest] = Bounded(_BYTES)

    async def get(self, digest: Digest) -> HeldManifest | None:
        """The manifest, verified; renewed where it was not for a day."""
        held = self._present.get(digest)
        if held is None:
            value = await self._records.get(("manifest", str(digest)))
            if value is None or not digest.matches(content := value[_RENEWED.size :]):
                return None
            held = self._keep(digest, content, _RENEWED.unpack_from(value)[0])
        if self._clock() - held.renewed_at > _DAY:
            held = await self.put(digest, held.content)
        return held

    async def put(self, digest: Digest, content: bytes) -> HeldManifest:
        """Stores one whose digest the caller has verified."""
        held = self._keep(digest, content, self._clock())
        await self._records.set(("manifest", str(digest)), _RENEWED.pack(held.renewed_at) + content, _KEPT)
        return held

    def blobs_of(self, digest: Digest) -> tuple[tuple[Digest, int | None], ...]:
        """The blobs that one in memory names, with their sizes in bytes where it tells them."""
        held = self._present.get(digest)
        return held.blobs if held is not None else ()

    def _keep(self, digest: Digest, content: bytes, renewed_at: float) -> HeldManifest:
        held = HeldManifest.of(digest, content, renewed_at)
        self._present.set(digest, held, len(content) + _NAMED_BLOB_BYTES * len(held.blobs))
        return held

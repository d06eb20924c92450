"""A few bytes of a blob that is here, to compare with what another upstream says that it has."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from mirror.store.blobs import BlobStore
from mirror.store.files import SharedFile

_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Sample:
    """`data` stands at `offset` of the blob; nobody can know beforehand where."""

    offset: int
    data: bytes


async def sample_of_file(blobs: BlobStore, file: SharedFile, length: int) -> Sample:
    """At most 4 KiB from a random place in the first `length` bytes. Raises StorageError."""
    offset = secrets.randbelow(max(1, length - _BYTES + 1))
    return Sample(offset, await blobs.read(file, min(_BYTES, length - offset), offset))

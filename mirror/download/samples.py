"""A few bytes of a blob that is here or coming, to compare with what another upstream says that it has."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from mirror.download.download import Download
from mirror.download.tracks import SpoolTrack
from mirror.routing import Target
from mirror.store.blobs import BlobStore
from mirror.store.files import SharedFile

_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Sample:
    """`data` stands at `offset` of the blob; nobody can know beforehand where.

    `verified`: the whole blob has its digest, so that other bytes there are wrong; else it may be ours that are.
    """

    offset: int
    data: bytes
    verified: bool


async def sample_of_file(blobs: BlobStore, file: SharedFile, length: int, *, verified: bool = True) -> Sample:
    """At most 4 KiB from a random place in the first `length` bytes. Raises StorageError."""
    offset = secrets.randbelow(max(1, length - _BYTES + 1))
    data = await blobs.read(file, min(_BYTES, length - offset), offset)
    return Sample(offset, data, verified)


async def sample_of_download(blobs: BlobStore, download: Download, target: Target) -> Sample:
    """The same of what has come so far; waits for the first bytes, as long as the caller lets it.

    The caller is one of its readers. Raises StorageError, and what ends the download.
    """
    while True:
        await download.opened(target)
        track = download.track
        assert track is not None, "an opened download has a track"
        if track.error is None and isinstance(track, SpoolTrack) and (track.visible or track.is_complete):
            return await sample_of_file(blobs, track.spool.file, track.visible, verified=track.is_complete)
        if track.error is None and not isinstance(track, SpoolTrack) and (piece := track.newest()) is not None:
            return Sample(piece.offset, piece.data[:_BYTES], track.is_complete)
        await track.news()

"""A few bytes of a blob that is here or coming, to compare with what another upstream says that it has."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from mirror.download.download import Download
from mirror.download.tracks import SpoolTrack
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
    held = file.hold()
    try:
        return Sample(offset, await blobs.run(held.files.read, held.fd, min(_BYTES, length - offset), offset))
    finally:
        held.release()


async def sample_of_download(blobs: BlobStore, download: Download) -> Sample:
    """The same of what has come so far; waits for the first bytes, as long as the caller lets it.

    Raises StorageError, and what ends the download.
    """
    await download.opened()
    while True:
        track = download.track
        assert track is not None, "an opened download has a track"
        if track.error is not None:
            raise track.error
        if isinstance(track, SpoolTrack) and (track.visible or track.is_complete):
            return await sample_of_file(blobs, track.spool.file, track.visible)
        if not isinstance(track, SpoolTrack) and (piece := track.newest()) is not None:
            return Sample(piece.offset, piece.data[:_BYTES])
        await track.news()

"""Comparing a blob's file with its digest, a piece at a time, and leaving the page cache as it was."""

from __future__ import annotations

import os

from mirror.oci.digest import Digest
from mirror.store.files import Files

_PIECE = 1 << 20


class Inspection:
    """An open file that should have the bytes of `digest`. One call at a time; the caller closes the file.

    What was not in memory before is not left there: else reading everything that is held would drive out of the page
    cache what clients want.
    """

    def __init__(self, digest: Digest, files: Files, fd: int) -> None:
        self.size = 0
        """Bytes read so far."""
        self._digest = digest
        self._files = files
        self._fd = fd
        self._hasher = digest.hasher()

    def step(self) -> int:
        """Reads and hashes the next piece; returns its length in bytes, 0 at the end. Blocks. Raises OSError."""
        if self.size == 0:
            # No reading ahead, which would make the next piece look like one that somebody wanted.
            self._files.advise(self._fd, os.POSIX_FADV_RANDOM)
        wanted = self._files.resident(self._fd, self.size, _PIECE)
        piece = self._files.read(self._fd, _PIECE, self.size)
        if not wanted:
            self._files.advise(self._fd, os.POSIX_FADV_DONTNEED, self.size, len(piece))
        self._hasher.update(piece)
        self.size += len(piece)
        return len(piece)

    @property
    def intact(self) -> bool:
        """Whether these bytes are the blob's."""
        return self._hasher.hexdigest() == self._digest.hex

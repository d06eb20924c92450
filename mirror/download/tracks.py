"""Where a blob's bytes are while it is on its way: in a spool file, or in a small window of memory.

Readers follow a track up to `visible`. The last bytes are withheld until the digest matches, so that wrong bytes never
look complete.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from mirror.download.news import News
from mirror.oci.digest import Digest, Hasher
from mirror.oci.errors import MirrorError, UpstreamUnavailable
from mirror.store.blobs import BlobStore, Spool
from mirror.store.files import SharedFile
from mirror.transport.rate import MinimumRate

WITHHELD = 4096
"""Bytes at the end of a blob that nobody gets before the digest has been compared."""

HEAD_BYTES = 64 << 10
"""Of a blob that is being stored: what readers get before the disk has it, so that none waits for that."""

WINDOW_BYTES = 2 << 20


@dataclass(frozen=True, slots=True)
class FilePiece:
    """Bytes `offset` to `offset + count` of an open file; whoever works on it in a thread holds it meanwhile."""

    file: SharedFile
    offset: int
    count: int


@dataclass(frozen=True, slots=True)
class BytesPiece:
    """Bytes in memory."""

    data: bytes | memoryview


Piece = FilePiece | BytesPiece


class Track:
    """How far a blob has come, and how it ended. Everything here happens on the event loop, except `append`."""

    def __init__(self) -> None:
        self.size: int | None = None
        self.written = 0
        """Bytes that have come and been hashed."""
        self.visible = 0
        """Bytes that readers may have."""
        self.error: MirrorError | None = None
        self._news = News()

    @property
    def is_complete(self) -> bool:
        """Whether every byte may be read."""
        return self.size is not None and self.visible >= self.size

    def advance(self, written: int) -> None:
        """More bytes are in place. Nothing is visible while the length is unknown: the tail could be among them."""
        self.written = written
        if self.size is not None:
            self.visible = max(self.visible, min(written, self.size - WITHHELD))
        self.tell()

    def complete(self) -> None:
        """The digest matches: everything is visible."""
        self.size = self.visible = self.written
        self.tell()

    def fail(self, error: MirrorError) -> None:
        """No more bytes will come."""
        self.error = self.error or error
        self.tell()

    def tell(self) -> None:
        """Wakes everybody who waits for news."""
        self._news.tell()

    async def news(self) -> None:
        """Waits until something changed."""
        await self._news.wait()


class SpoolTrack(Track):
    """Bytes in a spool file: any number of readers, at any pace, from anywhere."""

    def __init__(self, spool: Spool, blobs: BlobStore) -> None:
        super().__init__()
        self.spool = spool
        self._blobs = blobs
        self._released = False
        self.frozen: Hasher | None = None
        """Set when the disk takes no more: the hash of the bytes before `frozen_at`, where each reader goes on alone.
        """
        self.frozen_at = 0
        self.head: bytes = b""
        """The first bytes, from when they come until they are in the file."""
        self.written = spool.written

    @property
    def hexdigest(self) -> str:
        """The hash of what is written."""
        return self.spool.hasher.hexdigest()

    async def append(self, pieces: Sequence[bytes]) -> None:
        """Writes and hashes, then advances as far as that went. Raises StorageError."""
        if self._show_head(pieces):
            await asyncio.sleep(0)  # readers first: the thread would take the interpreter from them
        try:
            await self._blobs.append(self.spool, pieces)
        finally:
            if self.spool.written >= len(self.head):
                self.head = b""
            self.advance(self.spool.written)

    def _show_head(self, pieces: Sequence[bytes]) -> bool:
        """Whether readers were shown something."""
        if self.size is None or self.written or self.head or self.size <= WITHHELD:
            return False
        self.head = pieces[0][: min(HEAD_BYTES, self.size - WITHHELD)]
        self.tell()
        return True

    def freeze(self) -> None:
        """The disk takes no more. What is in the file is given in full: the reader's own request withholds the rest."""
        self.frozen, self.frozen_at = self.spool.hasher, self.written
        if len(self.head) > self.written:  # it has been given: what a reader's own request brings must continue it
            self.frozen, self.frozen_at = self.frozen.copy(), len(self.head)
            self.frozen.update(self.head[self.written :])
        if self.size is not None and self.written < self.size:
            self.visible = self.written
        self.tell()

    def begin_anew(self, spool: Spool) -> None:
        """Goes on in another spool; nothing of this one has been visible."""
        assert not self.visible, "readers have bytes of it"
        self.spool.file.release()
        self.spool, self.written = spool, spool.written

    def release(self) -> None:
        """No newcomer will want the file; those who hold it read on. May be called again."""
        if not self._released:
            self._released = True
            self.spool.file.release()


@dataclass(frozen=True, slots=True)
class WindowPiece:
    """Bytes of the window from `offset`; `hasher` has seen the blob up to `hashed`, which may be beyond their end."""

    offset: int
    data: bytes
    hasher: Hasher
    hashed: int

    @property
    def end(self) -> int:
        """The offset after the last byte."""
        return self.offset + len(self.data)


class WindowTrack(Track):
    """Bytes in a small window of memory, not stored: readers that keep pace share it, a slow one is cut loose."""

    def __init__(self, digest: Digest, blobs: BlobStore, pace: MinimumRate) -> None:
        """`pace` is what its readers have to keep, the fastest of them at least."""
        super().__init__()
        self._pace = pace
        self._hasher = digest.hasher()
        self._blobs = blobs
        self._window: deque[WindowPiece] = deque()
        self._bytes = 0
        self._fastest = 0

    @property
    def hexdigest(self) -> str:
        """The hash of what has come."""
        return self._hasher.hexdigest()

    @property
    def start(self) -> int:
        """The first offset that is still held."""
        return self._window[0].offset if self._window else self.written

    async def append(self, pieces: Sequence[bytes]) -> None:
        """Hashes in the pool and holds the bytes, making room by forgetting what the fastest reader has taken.

        Raises UpstreamUnavailable, reason client, where that is too slow.
        """
        data = b"".join(pieces)
        began = time.monotonic()
        await self._make_room(len(data))
        if self._pace.too_slow(time.monotonic() - began, len(data)):
            raise UpstreamUnavailable("it is taken too slowly", reason="client")
        await self._blobs.compute(self._hasher.update, data)
        end = self.written + len(data)
        self._window.append(WindowPiece(self.written, data, self._hasher.copy(), end))
        self._bytes += len(data)
        self.advance(end)

    def reached(self, offset: int) -> None:
        """A reader has taken everything before `offset`."""
        if offset > self._fastest:
            self._fastest = offset
            self.tell()

    def piece(self, offset: int) -> WindowPiece | None:
        """The visible bytes from `offset` to the end of their piece; None where they are forgotten."""
        for held in self._window:
            if held.offset <= offset < held.end:
                end = min(held.end, self.visible)
                data = held.data[offset - held.offset : end - held.offset]
                return WindowPiece(offset, data, held.hasher, held.hashed)
        return None

    async def _make_room(self, need: int) -> None:
        while self._window and self._bytes + need > WINDOW_BYTES:
            if self._window[0].end > self._fastest:
                await self.news()  # nobody has taken the oldest piece yet
                continue
            self._bytes -= len(self._window.popleft().data)

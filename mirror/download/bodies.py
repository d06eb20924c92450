"""What the sender reads from: a blob's bytes by offset, wherever they are at the moment.

The sender asks `at(offset)` for the next piece, sends it, and asks again; a body may answer the first piece from a
file and the next from a request of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol

from mirror.download.download import Download
from mirror.download.fetch import Fetch, Tools
from mirror.download.sources import Sources
from mirror.download.tracks import WITHHELD, BytesPiece, FilePiece, Piece, SpoolTrack, WindowTrack
from mirror.oci.digest import Digest, Hasher
from mirror.oci.errors import UpstreamCorrupt
from mirror.routing import Target
from mirror.store.files import SharedFile

__all__ = ["AloneBody", "Body", "BytesPiece", "FilePiece", "FlightBody", "HeldBody", "Piece"]


class Body(Protocol):
    """A source of pieces; `at` is called with the end of the last piece, or with the start of another wanted part."""

    async def at(self, offset: int) -> Piece:
        """The bytes from `offset`, at least one. Raises MirrorError when they will not come."""

    def storage_failed(self, error: OSError) -> None:
        """The file of the last piece could not be read; the next `at` finds another way."""

    async def close(self) -> None:
        """Lets go of everything. Idempotent."""


class _Body(ABC):
    """A body that may go over to another one, for good."""

    def __init__(self) -> None:
        self._failure: OSError | None = None
        self._instead: Body | None = None

    def storage_failed(self, error: OSError) -> None:
        """As in Body."""
        if self._instead is not None:
            self._instead.storage_failed(error)
        else:
            self._failure = error

    async def close(self) -> None:
        """As in Body."""
        self._leave()
        if self._instead is not None:
            await self._instead.close()

    @abstractmethod
    def _leave(self) -> None:
        """Lets go of what it read from so far. Idempotent."""


class HeldBody(_Body):
    """A blob that we hold. If its file turns out unreadable, `detour` gives a body that fetches it again.

    The file stays open until it has: only as long can it be told from one that has taken its place.
    """

    def __init__(self, file: SharedFile, detour: Callable[[OSError], Awaitable[Body]]) -> None:
        super().__init__()
        self._file: SharedFile | None = file
        self._size = file.size
        self._detour = detour

    async def at(self, offset: int) -> Piece:
        if self._instead is None and self._failure is not None:
            self._instead = await self._detour(self._failure)
            self._leave()
        if self._instead is not None:
            return await self._instead.at(offset)
        assert self._file is not None, "read after close"
        return FilePiece(self._file, offset, self._size - offset)

    def _leave(self) -> None:
        if self._file is not None:
            self._file.release()
            self._file = None


class FlightBody(_Body):
    """A reader of a download. It leaves the common track only where that cannot serve it any more."""

    def __init__(
        self, download: Download, target: Target, tools: Tools, detour: Callable[[OSError], Awaitable[Body]]
    ) -> None:
        super().__init__()
        self._download = download
        self._target = target
        self._tools = tools
        self._detour = detour
        self._track: SpoolTrack | WindowTrack | None = None
        self._size: int | None = None
        self._file: SharedFile | None = None
        self._state: tuple[int, Hasher] = (0, download.digest.hasher())
        self._taken = False
        self._attached = True
        download.attach()

    async def opened(self) -> int:
        """Waits until the blob's length in bytes may be told. Raises what keeps us from it."""
        if self._size is None:
            self._size = await self._download.opened(self._target)
            self._track = self._download.track
        return self._size

    @property
    def download(self) -> Download:
        """What it reads."""
        return self._download

    @property
    def stores(self) -> bool:
        """Whether what is fetched is being kept, and can be read from anywhere."""
        return self._download.stores

    def has(self, offset: int) -> bool:
        """Whether the byte is there, in a file."""
        track = self._track
        if not isinstance(track, SpoolTrack) or self._instead is not None or self._failure is not None:
            return False
        return offset < track.visible and (track.error is None or self._may_finish(track, offset))

    def reaches(self, offset: int, within: float) -> bool:
        """As of Download."""
        return self._download.reaches(offset, within)

    async def reached(self, offset: int) -> bool:
        """Waits until `has`; False where that will not come to be. Raises why the download failed."""
        while not self.has(offset):
            track = self._track
            if not isinstance(track, SpoolTrack) or track.is_complete or track.frozen is not None:
                return False
            if track.error is not None:
                await self._follow_up()
            else:
                await track.news()
        return True

    async def at(self, offset: int) -> Piece:
        await self.opened()
        while self._instead is None:
            piece = await self._next(offset)
            if piece is not None:
                self._taken = True
                return piece
        return await self._instead.at(offset)

    async def _next(self, offset: int) -> Piece | None:
        """A piece of the track; None where the question has to be asked again."""
        track = self._track
        assert track is not None, "read before it was opened"
        if self._failure is not None:
            self._leave()
            self._instead = await self._detour(self._failure)
            return None
        if track.error is not None and not self._may_finish(track, offset):
            await self._follow_up()
            return None
        if track.is_complete and offset >= track.visible:
            raise UpstreamCorrupt(f"{self._download.digest} is shorter than the upstream said")
        if isinstance(track, SpoolTrack):
            return await self._from_spool(track, offset)
        return await self._from_window(track, offset)

    async def _from_spool(self, track: SpoolTrack, offset: int) -> Piece | None:
        if self._file is None:
            self._file = track.spool.file.hold()
        if offset < track.visible:
            return FilePiece(self._file, offset, track.visible - offset)
        if offset < len(track.head):
            return BytesPiece(memoryview(track.head)[offset:])
        if track.frozen is not None:
            self._go_alone(track.frozen_at, track.frozen)
        else:
            await track.news()
        return None

    async def _from_window(self, track: WindowTrack, offset: int) -> Piece | None:
        track.reached(offset)
        if offset < track.start:
            self._go_alone(*(self._state if self._state[0] == offset else (0, self._download.digest.hasher())))
        elif (held := track.piece(offset) if offset < track.visible else None) is not None:
            if held.end == held.hashed:
                self._state = (held.hashed, held.hasher)
            return BytesPiece(held.data)
        else:
            await track.news()
        return None

    def _may_finish(self, track: SpoolTrack | WindowTrack, offset: int) -> bool:
        """Whether to give what is left of a failed track: that helps who has begun, unless the bytes are wrong."""
        return self._taken and offset < track.visible and not isinstance(track.error, UpstreamCorrupt)

    async def _follow_up(self) -> None:
        """After a failed attempt: whoever has no byte of it yet goes on with the next, if there is one."""
        if self._taken:
            raise self._download.failure_for(self._target)
        if await self._download.opened(self._target) != self._size:
            raise UpstreamCorrupt(f"{self._download.digest} has not the length that the upstream said")
        self._release()
        self._track = self._download.track

    def _go_alone(self, start: int, hasher: Hasher) -> None:
        assert self._size is not None
        self._leave()
        self._instead = AloneBody(
            self._download.digest, self._target, self._tools, size=self._size, start=start, hasher=hasher.copy()
        )

    def _leave(self) -> None:
        self._release()
        if self._attached:
            self._attached = False
            self._download.detach()

    def _release(self) -> None:
        if self._file is not None:
            self._file.release()
            self._file = None


class AloneBody:
    """The rest of a blob by a request of one's own, verified: `hasher` has seen everything before `start`."""

    def __init__(self, digest: Digest, target: Target, tools: Tools, *, size: int, start: int, hasher: Hasher) -> None:
        self._fetch = Fetch(digest, Sources(target), tools, start=start, size=size, pace_of=target.upstream)
        self._tools = tools
        self._label = target.upstream.entry
        self._size = size
        self._hasher = hasher
        self._held: deque[memoryview] = deque()
        """What has come and is not taken yet, from `_position` on, never copied: hundreds of clients may read alone."""
        self._position = start
        self._received = start

    async def at(self, offset: int) -> Piece:
        while True:
            self._drop_before(offset)
            ready = sum(map(len, self._held)) - (0 if self._received == self._size else WITHHELD)
            if ready > 0 and self._position == offset:
                return BytesPiece(self._held[0][:ready])
            await self._receive()

    def storage_failed(self, error: OSError) -> None:
        raise AssertionError("nothing here comes from a file") from error

    async def close(self) -> None:
        await self._fetch.close()

    def _drop_before(self, offset: int) -> None:
        while self._held and self._position < offset:
            first = self._held.popleft()
            taken = min(offset - self._position, len(first))
            self._position += taken
            if taken < len(first):
                self._held.appendleft(first[taken:])

    async def _receive(self) -> None:
        chunk = await self._fetch.next()
        if chunk is None:
            raise UpstreamCorrupt(f"{self._fetch.digest} is shorter than the upstream said")
        await self._tools.cache.blobs.compute(self._hasher.update, chunk)
        self._tools.metrics.bypass_bytes.labels(upstream=self._label, reason="alone").inc(len(chunk))
        self._held.append(memoryview(chunk))
        self._received += len(chunk)
        if self._received == self._size and self._hasher.hexdigest() != self._fetch.digest.hex:
            self._received = -1  # never to be complete
            self._tools.metrics.digest_mismatches.labels(upstream=self._label).inc()
            raise UpstreamCorrupt(f"wrong bytes for {self._fetch.digest}")

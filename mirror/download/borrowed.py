"""A blob that another worker fetches: we read the file into which it writes, as far as it says that it has come."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from contextlib import AsyncExitStack

import msgspec
import structlog

from mirror.cache import Question
from mirror.download.attempt import Attempt
from mirror.download.fetch import Tools
from mirror.download.sources import Sources
from mirror.download.tracks import SpoolTrack, WindowTrack
from mirror.oci.digest import Digest, Hasher
from mirror.oci.errors import MirrorError, StorageError, Unknown, UpstreamRefused, UpstreamUnavailable
from mirror.peers import Lost, Peers, Silent, Talk
from mirror.peers.messages import (
    AskFill,
    Broken,
    Complete,
    Frozen,
    Grown,
    Head,
    Held,
    Joined,
    KeepOn,
    News,
    Passing,
    Queued,
    Spooling,
)
from mirror.routing import Target
from mirror.store.blobs import Spool
from mirror.store.files import SharedFile

_news = msgspec.msgpack.Decoder(News)
_MOST_LOSSES = 5
"""Times that the other worker may go in the middle of one blob; then its readers go on without it."""
_AGAIN_SECONDS = 0.1
"""From a loss to the next attempt: whoever stops takes connections till its end."""
_FAREWELL_SECONDS = 0.2
"""For the end of an answer whose last news we have: it is on its way, and the connection is good for the next one."""
_STOPPED = "stopped"
"""The reason of what fails since whoever fetches it stops: that is no failure of the upstream's."""
_PIECE = 1 << 20
_log = structlog.get_logger()


class Borrowed:
    """The same as an Attempt, of which another worker makes the real one; it decides, fetches, verifies and stores.

    Where that worker goes and comes back, reading goes on in the same file. Where it does not, or goes on in another
    one, the track freezes: each reader goes on by itself from the byte that it has reached, verified by the hash of
    what is in the file. Where there is no file to read, the bytes come through that worker, past the disk, to a window
    of our own; where it is silent from the start, from the upstream.
    """

    def __init__(self, digest: Digest, sources: Sources, tools: Tools, peers: Peers, *, background: bool) -> None:
        self.track: SpoolTrack | WindowTrack | None = None
        """As of Attempt."""
        self.size: int | None = None
        self.began_at = 0
        """Bytes that had come when we came."""
        self.queued = False
        """Whether the other worker has not begun."""
        self.joined = False
        """Whether it had begun before we asked."""
        self.alone = False
        """Whether the other worker did not say a word."""
        self._digest = digest
        self._sources = sources
        self._tools = tools
        self._peers = peers
        self._background = background
        self._asked: Question | None = None
        self._shown: Question | None = None
        self._inode = 0
        self._is_held = False
        self._again = False
        self._losses = 0
        self._talk: Talk | None = None
        self._heard_all = False
        """Whether the other worker has said its last."""
        self._talking = AsyncExitStack()
        self._instead: Attempt | None = None
        """Past the disk."""
        sources.on_added = self._tell_joined

    @property
    def shown(self) -> Question | None:
        """As of Attempt."""
        return self._instead.shown if self._instead is not None else self._shown

    @property
    def culprit(self) -> Target:
        """As of Attempt."""
        return self._instead.culprit if self._instead is not None else self._sources.all[0]

    @property
    def improvable(self) -> bool:
        """As of Attempt."""
        return self._instead.improvable if self._instead is not None else self._again

    def keep_on(self) -> None:
        """The other worker is to finish it, whoever leaves."""
        self._background = True
        if self._talk is not None:
            self._talk.tell(KeepOn())

    async def open(self, watched: Callable[[], bool]) -> None:
        """As of Attempt."""
        try:
            news: Spooling | Held | Passing = await self._ask()
            file = await self._file(news)
        except (Silent, Lost):
            self.alone, file = True, None
        except StorageError as error:
            self._tools.cache.trouble.note("blobs", error)
            file = None
        if file is None:
            await self._leave()
            await self._pass_by(watched)
            return
        self.queued = False
        self._read(news, file)

    async def _pass_by(self, watched: Callable[[], bool]) -> None:
        attempt = self._instead = Attempt(self._digest, self._sources, self._tools, first=True, pass_through=True)
        await attempt.open(watched)
        self.track, self.size = attempt.track, attempt.size

    # Filling.

    async def fill(self) -> bool:
        """As of Attempt."""
        if self._instead is not None:
            return await self._instead.fill()
        track = self.track
        assert isinstance(track, SpoolTrack), "filled before it was opened"
        while not self._is_held:
            try:
                news = await self._next(track)
            except (Silent, Lost) as error:
                _log.warning("a blob goes on without its fetcher", digest=str(self._digest), reason=repr(error))
                return await self._freeze(track)
            if isinstance(news, Complete):
                track.written = news.size
                break
            if isinstance(news, Head):
                track.head = news.data
                track.tell()
            elif isinstance(news, Grown | Spooling):
                if news.written >= len(track.head):
                    track.head = b""
                track.advance(max(track.written, news.written))
            elif isinstance(news, Frozen):
                track.advance(news.written)
                return await self._freeze(track)
        track.complete()
        self.size = track.written
        return True

    async def _freeze(self, track: SpoolTrack) -> bool:
        """Nothing more will be read of the file: its readers go on from there."""
        track.written = track.visible
        spool = track.spool
        try:
            spool.hasher = await self._tools.cache.blobs.run(
                _hashed, spool.file, track.visible, self._digest.hasher(), holding=spool.file
            )
        except StorageError as error:
            self._tools.cache.trouble.note("blobs", error)
            raise UpstreamUnavailable(f"the bytes of {self._digest} cannot be read", reason="storage") from error
        track.freeze()
        return False

    async def commit(self) -> None:
        """As of Attempt; the other worker does it."""

    async def close(self, *, keep: bool) -> None:
        """As of Attempt."""
        self._sources.on_added = None
        await self._leave()
        if self._instead is not None:
            await self._instead.close(keep=keep)

    # What the other worker says.

    async def _ask(self) -> Spooling | Held | Passing:
        """Asks, and hears where the bytes are; again where the other worker goes and comes back meanwhile."""
        heard: float | None = None
        while True:
            await self._leave()
            # By our own number: where nothing is noted of a repository yet, each worker has another one for it.
            self._asked = await self._tools.cache.question(self._sources.all[0])
            self._talk = await self._talking.enter_async_context(
                self._peers.talk(self._question(), since=heard, revived=self._losses > 0)
            )
            try:
                while True:
                    news = await self._hear(self._talk)
                    if isinstance(news, Spooling | Held | Passing):
                        return news
                    self.queued = isinstance(news, Queued) and news.waits
            except Lost:
                self._losses += 1
                if self._losses > _MOST_LOSSES:
                    raise
                heard = self._talk.heard
                await asyncio.sleep(_AGAIN_SECONDS)

    async def _next(self, track: SpoolTrack) -> News:
        """What has become of the file. Raises Lost where there is no going on with it, and Silent."""
        assert self._talk is not None, "asked nothing"
        try:
            return await self._hear(self._talk)
        except Lost:
            self._losses += 1
            # Bytes that were shown, and may be in no file, are not among those that will be verified there.
            if self._losses > _MOST_LOSSES or track.head:
                raise
        news = await self._ask()
        if isinstance(news, Passing) or news.inode != self._inode:
            raise Lost
        return Complete(track.size or 0) if isinstance(news, Held) else news

    async def _hear(self, talk: Talk) -> News:
        """The next news. Raises what it says of a failure, noted for each repository; Silent, Lost."""
        try:
            _, payload = await talk.hear()
        except UpstreamUnavailable as error:
            if error.reason == _STOPPED:
                raise Lost from error
            raise
        try:
            news: News = _news.decode(payload)
        except msgspec.MsgspecError as error:
            raise Lost from error
        self._heard_all = isinstance(news, Complete | Frozen | Held | Passing | Broken)
        if isinstance(news, Broken):
            if any(failure.reason == _STOPPED for failure in news.failures.values()):
                raise Lost
            self._again = news.again
            raise self._note_failures(news)
        return news

    def _note_failures(self, broken: Broken) -> MirrorError:
        first, *_ = targets = self._sources.all
        for target in targets:
            failure = broken.failures.get(target.repository)
            if failure is None:
                continue
            error = failure.error
            if isinstance(error, Unknown | UpstreamRefused):
                self._sources.refused(target, error)
            else:
                self._sources.failed(target, error)
        return self._sources.said(first) or UpstreamUnavailable(f"{self._digest} was not fetched", reason="peer")

    def _question(self) -> AskFill:
        first, *others = self._sources.all
        return AskFill(
            host=first.upstream.host,
            repository=first.repository,
            digest=str(self._digest),
            others=[other.repository for other in others],
            background=self._background,
            hint=self._tools.cache.hints.get(first, self._digest),
        )

    def _tell_joined(self, target: Target) -> None:
        if self._talk is not None:
            self._talk.tell(Joined(target.repository))

    async def _leave(self) -> None:
        talk, self._talk = self._talk, None
        heard_all, self._heard_all = self._heard_all, False
        try:
            if talk is not None and heard_all:
                async with asyncio.timeout(_FAREWELL_SECONDS):
                    await talk.end()
        except (TimeoutError, MirrorError, Silent, Lost):
            pass
        finally:  # also where our last reader leaves just then, and we are cancelled
            await self._talking.aclose()

    # The file.

    async def _file(self, news: Spooling | Held | Passing) -> SharedFile | None:
        """The file to read; None where there is none, or not that one any more. Raises StorageError."""
        blobs = self._tools.cache.blobs
        if isinstance(news, Spooling):
            self._inode = news.inode
            return await blobs.open_spool(self._digest, news.name, news.inode)
        self._is_held = isinstance(news, Held)
        return await blobs.open_blob(self._digest) if self._is_held else None

    def _read(self, news: Spooling | Held | Passing, file: SharedFile) -> None:
        """Makes the track. The file is its own from now on."""
        blobs = self._tools.cache.blobs
        track = self.track = SpoolTrack(Spool(self._digest, blobs.root, file), blobs)
        if isinstance(news, Spooling):
            self.joined = news.joined
            self.size = news.size
            self.began_at = track.written = news.written
            if self._asked is not None and self._asked.target.repository == news.shown:
                self._shown = self._asked
        else:
            self.joined = True
            self.size = self.began_at = track.written = file.size
        track.size = self.size


def _hashed(file: SharedFile, count: int, hasher: Hasher) -> Hasher:
    """The hasher, having seen the file's first `count` bytes. Blocks. Raises OSError."""
    offset = 0
    while offset < count:
        piece = file.files.read(file.fd, min(_PIECE, count - offset), offset)
        if not piece:
            raise OSError(errno.EIO, "the file is shorter than it was")
        hasher.update(piece)
        offset += len(piece)
    return hasher

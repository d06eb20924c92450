"""One blob on its way from its sources to the disk, or past it; belongs to nobody's request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from mirror.cache import Question
from mirror.download.attempt import Attempt
from mirror.download.borrowed import Borrowed
from mirror.download.fetch import Tools
from mirror.download.news import News
from mirror.download.sources import Sources
from mirror.download.tracks import SpoolTrack, WindowTrack
from mirror.oci.digest import Digest
from mirror.oci.errors import MirrorError, UpstreamCorrupt, UpstreamUnavailable
from mirror.peers import Peers
from mirror.routing import Target
from mirror.slots import Slot

_log = structlog.get_logger()


class Download:
    """Fetches a blob at most twice (wrong bytes are fetched once more, into a new spool), verifies and stores it.

    Readers wait for `opened`, then follow `track`. Both are replaced when the second attempt begins.
    """

    def __init__(
        self,
        digest: Digest,
        source: Target,
        tools: Tools,
        *,
        abandon_below: int,
        background: bool,
        pass_through: bool,
        peers: Peers | None = None,
    ) -> None:
        """`peers`: the workers one of which owns the upstream, and makes the download that this one follows."""
        self.digest = digest
        self.upstream = source.upstream
        """The one that all its sources belong to."""
        self.host = source.upstream.host
        self.sources = Sources(source)
        self.track: SpoolTrack | WindowTrack | None = None
        self.started = asyncio.get_running_loop().time()
        self.finished = False
        self._tools = tools
        self._abandon_below = abandon_below
        self._background = background
        self._pass_through = pass_through
        self._size: int | None = None
        self._peers = peers
        self._attempt: Attempt | Borrowed | None = None
        self._failure: MirrorError | None = None
        self._news = News()
        self._readers = 0
        self._cancelled = False
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        self._turn: Slot | None = None
        self._paced = pass_through

    # Around it.

    def start(self, at_end: Callable[[Download], None]) -> None:
        """Begins; `at_end` is called on the loop when the download is over, however it ended."""
        self._task = asyncio.create_task(self._run(), name=f"download {self.digest}")
        self._task.add_done_callback(lambda _: self._finish(at_end))

    async def opened(self, target: Target) -> int:
        """Waits until the blob's length in bytes may be told, and there is a track. Raises what `target` may hear of
        what kept us from it.
        """
        while self._failure is None:
            if self._size is not None and self.track is not None:
                return self._size
            await self._news.wait()
        raise self.failure_for(target)

    async def begun(self) -> None:
        """Waits until it is its turn, or it has failed before."""
        while self.queued and self._failure is None:
            await self._news.wait()

    def failure_for(self, target: Target) -> MirrorError:
        """Why it failed, for the readers from one repository: no other repository or upstream is named."""
        said = self.sources.said(target)
        if isinstance(self._failure, UpstreamCorrupt):
            return UpstreamCorrupt(f"the upstream sends wrong bytes for {self.digest}")
        if said is not None:
            return said.with_traceback(None)
        if isinstance(self._failure, UpstreamUnavailable) and self._failure.reason == "queue":
            return UpstreamUnavailable(self._failure.message, reason="queue")
        reason = self._failure.reason if isinstance(self._failure, UpstreamUnavailable) else "refused"
        return UpstreamUnavailable(f"the download of {self.digest}, which others had begun, failed", reason=reason)

    async def wait(self) -> None:
        """Waits for the end; raises nothing."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def cancel(self) -> None:
        """Stops it. A spool stays on the disk, to be resumed when the blob is wanted again."""
        self._stopping = True
        self._cancel()
        await self.wait()

    @property
    def shown(self) -> Question | None:
        """The question that the bytes answer: readers from its repository need no other permission while it counts."""
        return self._attempt.shown if self._attempt is not None else None

    @property
    def queued(self) -> bool:
        """Whether it waits for its turn."""
        if self._peers is not None and not self._paced:
            return isinstance(self._attempt, Borrowed) and self._attempt.queued and not self.finished
        return self._turn is None and not self.finished

    @property
    def joined(self) -> bool:
        """Whether another worker had begun it before this one was made."""
        return isinstance(self._attempt, Borrowed) and self._attempt.joined

    @property
    def alone(self) -> bool:
        """Whether it goes without the worker that should make it."""
        return isinstance(self._attempt, Borrowed) and self._attempt.alone

    @property
    def goes_on(self) -> bool:
        """Whether there will be another attempt, if this one has failed."""
        return self._failure is None

    @property
    def queued_to_store(self) -> bool:
        """Whether it waits behind others that are kept: too long for who has begun to read."""
        return self.queued and not self._paced

    @property
    def joinable(self) -> bool:
        """Whether a newcomer can still be given byte 0."""
        track = self.track
        if self._cancelled or self._failure is not None:
            return False
        if isinstance(track, WindowTrack):
            return track.start == 0
        return track is None or track.frozen is None

    @property
    def stores(self) -> bool:
        """Whether what it fetches is being kept."""
        return isinstance(self.track, SpoolTrack) and self.track.frozen is None

    def reaches(self, offset: int, within: float) -> bool:
        """Whether the bytes before `offset` are here, and kept, or expected within so many seconds.

        A young download has no rate yet, and counts as fast.
        """
        if self.track is None or self._attempt is None or not self.stores:
            return False
        age = asyncio.get_running_loop().time() - self.started
        if age < within / 3:
            return True
        rate = (self.track.written - self._attempt.began_at) / age
        return self.track.written + rate * within >= offset

    # Its audience.

    def keep_on(self) -> None:
        """It will be finished even if everybody leaves: someone took a part, and is likely to come for others."""
        self._background = True
        if isinstance(self._attempt, Borrowed):
            self._attempt.keep_on()

    def attach(self) -> None:
        """One more reader."""
        self._readers += 1

    def detach(self) -> None:
        """A reader left. With nobody left, what has only begun is not finished; nor is what would not be kept."""
        self._readers -= 1
        if self._readers:
            return
        if self.finished:
            self._close_file()
        elif self._failure is None and not self._worth_finishing():  # one that has failed is tidying up
            self._cancel()

    def _worth_finishing(self) -> bool:
        track = self.track
        if self.queued or self._peers is not None:  # whoever fetches it sees to that
            return False
        if track is not None and track.is_complete:
            return True
        if isinstance(track, WindowTrack):
            return False
        arrived = max(track.written if track is not None else 0, self._attempt.began_at if self._attempt else 0)
        return self._background or arrived >= self._abandon_below

    def _cancel(self) -> None:
        """Once: a second time would interrupt the cleaning up."""
        if self._task is not None and not self._cancelled:
            self._cancelled = True
            self._task.cancel()

    def _close_file(self) -> None:
        if isinstance(self.track, SpoolTrack):
            self.track.release()

    # The work.

    async def _run(self) -> None:
        tools, counted = self._tools, False
        try:
            if self._peers is None or self._pass_through:
                lane = tools.lanes.pace if self._pass_through else tools.lanes.fill
                self._turn = await lane(self.upstream, tools.timeouts.first_byte)
                self._news.tell()
            if self._peers is None:
                tools.metrics.downloads_in_flight.inc()
                counted = True
            if not await self._try(first=True):
                self.sources.rotate()
                await self._try(first=False)
        except MirrorError as error:
            self._fail(error)
        except asyncio.CancelledError:
            self._fail(_stopped(self.digest))
            raise
        except Exception as error:
            _log.exception("a download failed unexpectedly", digest=str(self.digest))
            self._fail(UpstreamUnavailable(f"the download of {self.digest} failed: {type(error).__name__}"))
        finally:
            if self._turn is not None:
                self._turn.release()
            if counted:
                tools.metrics.downloads_in_flight.dec()

    async def _go_at_their_pace(self) -> None:
        """Without room for it, it comes no faster than its readers take it; others need not wait for that."""
        if self._paced:
            return
        turn = await self._tools.lanes.pace(self.upstream, self._tools.timeouts.cold_head)
        if self._turn is not None:
            self._turn.release()
        self._turn, self._paced = turn, True

    async def _try(self, *, first: bool) -> bool:
        """One attempt. False if another one may do better; raises MirrorError where it would not."""
        attempt = self._attempt = self._begin(first=first)
        keep = False
        try:
            await attempt.open(lambda: self._readers > 0)
            if isinstance(attempt.track, WindowTrack):
                await self._go_at_their_pace()
            self._show(attempt)
            if await attempt.fill():
                self._show(attempt)
                await attempt.commit()
                return True
            if isinstance(attempt.track, SpoolTrack) and attempt.track.frozen is not None:
                return self._left_to_its_readers()
            await self._tools.cache.drop_claim(attempt.culprit, "blob", self.digest)
            self._drop(self._blame(attempt), last=not first)
        except UpstreamUnavailable as error:
            self._drop(error, last=not attempt.improvable)
        except MirrorError as error:
            self._fail(error)
        except asyncio.CancelledError:
            keep = self._stopping
            raise
        finally:
            await attempt.close(keep=keep)
        return self._failure is not None

    def _begin(self, *, first: bool) -> Attempt | Borrowed:
        if self._peers is not None and not self._pass_through:
            return Borrowed(self.digest, self.sources, self._tools, self._peers, background=self._background)
        return Attempt(self.digest, self.sources, self._tools, first=first, pass_through=self._pass_through)

    def _show(self, attempt: Attempt | Borrowed) -> None:
        self.track, self._size = attempt.track, attempt.size
        if self.track is not None and not self.track.is_complete:
            self.track.advance(self.track.written)
        self._news.tell()

    def _left_to_its_readers(self) -> bool:
        if self._size is None:
            self._fail(UpstreamUnavailable(f"{self.digest} has no known length, and no room here", reason="no_room"))
        return True

    def _blame(self, attempt: Attempt | Borrowed) -> UpstreamCorrupt:
        culprit, details = attempt.culprit, {"source": str(attempt.culprit), "digest": str(self.digest)}
        self._tools.cache.hints.forget(culprit, self.digest)
        if attempt.began_at:
            _log.warning("what an earlier process left of a blob was damaged", **details)
        else:
            _log.error("an upstream sent wrong bytes", **details)
            self._tools.metrics.digest_mismatches.labels(upstream=culprit.upstream.entry).inc()
        return UpstreamCorrupt(f"{culprit} sent wrong bytes for {self.digest}")

    def _drop(self, error: MirrorError, *, last: bool) -> None:
        """Ends an attempt. Before another one, those who have bytes of it fail, the others wait."""
        if last:
            self._fail(error)
            return
        self._background = True  # now: its readers leave while this attempt is cleaned up
        track, self.track, self._size = self.track, None, None
        if track is not None:
            track.fail(error)
            if isinstance(track, SpoolTrack):
                track.release()
        self._news.tell()

    def _fail(self, error: MirrorError) -> None:
        if self._failure is not None:
            return
        self._failure = error
        if not self._cancelled:
            _log.info("a download failed", digest=str(self.digest), error=error.message)
        if self.track is not None:
            self.track.fail(error)
        self._news.tell()

    def _finish(self, at_end: Callable[[Download], None]) -> None:
        self.finished = True
        if self.track is None:  # stopped before it ran at all
            self._fail(_stopped(self.digest))
        if not self._readers:
            self._close_file()
        at_end(self)


def _stopped(digest: Digest) -> UpstreamUnavailable:
    return UpstreamUnavailable(f"the download of {digest} was stopped", reason="stopped")

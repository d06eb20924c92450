"""The bytes of one blob from its sources, resumed as often as it takes, until they are complete or nobody is left."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

from mirror.cache import Cache, Question
from mirror.config import Timeouts
from mirror.download.lanes import Lanes
from mirror.download.sources import Sources
from mirror.metrics import Metrics
from mirror.oci.byte_range import ByteRange
from mirror.oci.digest import Digest
from mirror.oci.errors import MirrorError, Unknown, UpstreamRefused, UpstreamUnavailable
from mirror.peers import FarStream, FarUpstreams
from mirror.routing import Target, UpstreamName
from mirror.slots import Slot
from mirror.store.shapes import LinkRecord
from mirror.transport import BlobStream, Deadline
from mirror.transport.rate import MinimumRate
from mirror.upstream import Upstreams

_PROGRESS = 64 << 10
"""Bytes that count as progress, so that an upstream cannot keep us busy byte by byte."""
_SKIP_FACTOR = 3
"""How often the blob's length may be thrown away where the upstream ignores ranges."""
_NOTED_AFTER = 1.0
"""Seconds before what headers showed is noted: most blobs are complete by then, which shows more."""
NO_PARTS = ("range", "size")
"""Reasons why an upstream cannot be asked for a part: it gives another one, or is not at one about the whole."""
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Tools:
    """What every fetch needs, the same for all of them from upstreams that we ask, or that another worker asks."""

    upstreams: Upstreams | FarUpstreams
    cache: Cache
    metrics: Metrics
    timeouts: Timeouts
    lanes: Lanes


class Fetch:
    """Opens, reads and reopens streams for the bytes from `start` up to `stop` of a blob (None: to its end).

    Links are noted as the sources show the blob, and ended as they deny it. With `pace_of`, the upstream, the bytes go
    at a client's pace: each stream needs a turn for that, and a client that takes less than `min_rate` over the time of
    `timeouts.client` loses it. A byte now and then would keep it from others for ever.
    """

    def __init__(
        self,
        digest: Digest,
        sources: Sources,
        tools: Tools,
        *,
        start: int = 0,
        stop: int | None = None,
        size: int | None = None,
        shown: Question | None = None,
        skip_limit: int | None = None,
        takes_encoded: bool = False,
        pace_of: UpstreamName | None = None,
    ) -> None:
        self.digest = digest
        self.size = size
        """Length of the whole blob in bytes, as the upstream tells it with the bytes."""
        self.stop = stop
        """Where the bytes that are wanted end; may be set after `open`."""
        self.shown = shown
        """The first question that the bytes were an answer to. All sources belong to one upstream host."""
        self.encoded = False
        """Whether the upstream sends a Content-Encoding although it was asked for none: lengths mean nothing then."""
        self.ended_early = False
        """Whether a body without a length of its own ended, in good order, before `stop`: the digest has to tell
        whether it was cut, or was all there is."""
        self.relayed = False
        """Whether another worker of ours sends the bytes, and has counted them."""
        self.received = 0
        """Body bytes that came, wanted or not."""
        self._sources = sources
        self._tools = tools
        self._offset = start
        self._skip_limit = skip_limit
        self._takes_encoded = takes_encoded
        self._pace_of = pace_of
        self._turn: Slot | None = None
        self._claim: tuple[Question, int] | None = None
        """What the last headers showed, and nobody has noted yet: the blob's length in bytes, as said to a question."""
        self._claimed_at = 0.0
        self._noting: asyncio.Task[LinkRecord] | None = None
        self._pace = MinimumRate(tools.timeouts.min_rate, tools.timeouts.client)
        """Of whoever takes the bytes."""
        self._gave: tuple[float, int] | None = None
        """When the last bytes were given, and how many."""
        self._stream: BlobStream | FarStream | None = None
        self._chunks: AsyncGenerator[bytes, None] | None = None
        self._position = 0
        self._whole = False
        self._skipped = 0
        self._gained = 0
        self._tries = 0
        self._waited = 0.0

    @property
    def shown_by(self) -> Target | None:
        """The source that showed the bytes first."""
        return self.shown.target if self.shown is not None else None

    async def open(self, seconds: float) -> None:
        """Gets the first headers; a source has `seconds` from when it joined, or from now.

        Raises Unknown or UpstreamRefused if every source says no; UpstreamUnavailable.
        """
        await self._ask_around(seconds)

    async def next(self) -> bytes | None:
        """The next bytes, in order; None when all that was asked for has come.

        Broken streams are resumed inside. Raises Unknown, UpstreamRefused or UpstreamUnavailable when that is over, and
        reason client where the bytes are taken too slowly.
        """
        self._check_pace()
        if self._claim is not None and time.monotonic() - self._claimed_at > _NOTED_AFTER:
            self._note()
        while not self._done():
            try:
                chunk = await self._read()
            except UpstreamUnavailable as error:
                await self._resume(error)
                continue
            if chunk is None:
                break
            self._count(len(chunk))
            self._gave = time.monotonic(), len(chunk)
            return chunk
        await self._end_stream()
        return None

    def _check_pace(self) -> None:
        if self._pace_of is None or self._gave is None:
            return
        (at, count), self._gave = self._gave, None
        if self._pace.too_slow(time.monotonic() - at, count):
            raise UpstreamUnavailable(f"{self.digest} is taken too slowly", reason="client")

    async def go_on(self) -> None:
        """After `ended_early`: it was cut. Opens a stream for the rest, or raises as `next`."""
        self.ended_early = False
        await self._resume(UpstreamUnavailable(f"the body of {self.digest} ended early", reason="truncated"))

    async def close(self) -> None:
        """Ends the present stream; what it has shown is noted some time."""
        self._note()
        await self._end_stream()

    async def noted(self, *, known_better: bool = False) -> None:
        """Waits until what was shown is noted, where something is to be noted after it; with `known_better`, what
        nobody has begun to note need not be.
        """
        if known_better:
            self._claim = None
        self._note()
        if self._noting is not None:
            await asyncio.shield(self._noting)

    async def _end_stream(self) -> None:
        stream, chunks, self._stream, self._chunks = self._stream, self._chunks, None, None
        if chunks is not None:
            await chunks.aclose()
        if stream is not None:
            await stream.close()
        if self._turn is not None:
            self._turn.release()
            self._turn = None

    def _note(self) -> None:
        claim, self._claim = self._claim, None
        if claim is not None:
            question, size = claim
            noted = self._tools.cache.put_link(question, "blob", self.digest, size, proven=False)
            self._noting = self._tools.cache.in_background(noted)

    # One stream.

    async def _read(self) -> bytes | None:
        """The stream's next bytes that are wanted; None at the clean end of a body that promised no length."""
        if self._stream is None or self._chunks is None:
            raise UpstreamUnavailable(f"no stream of {self.digest} is open", reason="closed")
        with self._waiting():
            while (chunk := await anext(self._chunks, None)) is not None:
                surplus = self._offset - self._position
                self._position += len(chunk)
                self.received += len(chunk)
                if surplus >= len(chunk):
                    self._skipped += len(chunk)
                    continue
                wanted = chunk[surplus:] if surplus > 0 else chunk
                end = self._end()
                return wanted if end is None else wanted[: end - self._offset]
        if self._end() is not None and (self._stream.partial or self._stream.size is not None):
            raise UpstreamUnavailable(f"the body of {self.digest} ended early", reason="truncated")
        self.ended_early = self._end() is not None
        return None

    def _count(self, arrived: int) -> None:
        self._offset += arrived
        self._gained += arrived
        if self._gained >= _PROGRESS:
            self._gained, self._tries, self._waited = 0, 0, 0.0

    def _end(self) -> int | None:
        if self.encoded:
            return None
        return self.stop if self.stop is not None else self.size

    def _done(self) -> bool:
        end = self._end()
        return end is not None and self._offset >= end

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Counts the time inside as spent waiting for the upstream."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._waited += time.monotonic() - began

    # Resuming.

    async def _resume(self, error: UpstreamUnavailable) -> None:
        """Opens a new stream where the last one broke, trying as long as patience lasts. Raises what ends the fetch."""
        await self._end_stream()
        if self._end() is None and self._offset:
            raise error  # nobody can tell whether what a second stream brings continues the first
        while True:
            left = self._patience(error)
            with self._waiting():
                await asyncio.sleep(min(self._pause(error), left))
                self._note_retry(error)
                try:
                    await self._ask_around(min(self._tools.timeouts.first_byte, left))
                    return
                except UpstreamUnavailable as again:
                    if again.reason in NO_PARTS and self._skip_limit is not None:
                        raise  # it will not learn to; whoever set a limit has another way
                    _log.info("resuming failed", digest=str(self.digest), offset=self._offset, reason=again.reason)
                    error = again

    def _patience(self, error: UpstreamUnavailable) -> float:
        """Seconds that may still pass without progress. Raises `error` when there are none."""
        left = self._tools.timeouts.no_progress - self._waited
        end = self._end()
        wasted = end is not None and self._skipped > _SKIP_FACTOR * end
        if wasted or left <= (error.retry_after or 0.0):
            raise error
        return left

    def _pause(self, error: UpstreamUnavailable) -> float:
        """Seconds to wait before the next try: none before the first, then ever longer; or what the upstream said."""
        self._tries += 1
        if error.retry_after is not None:
            return error.retry_after
        if self._tries == 1:
            return 0.0
        unit = self._tools.timeouts.try_ / 50
        return random.uniform(0, min(50 * unit, unit * 2**self._tries))  # noqa: S311 - jitter, not a secret

    def _note_retry(self, error: UpstreamUnavailable) -> None:
        if self.shown_by is None:
            return
        self._tools.metrics.upstream_retries.labels(upstream=self.shown_by.upstream.entry, reason=error.reason).inc()
        _log.info("resuming a blob", digest=str(self.digest), offset=self._offset, reason=error.reason)

    # Asking.

    async def _ask_around(self, seconds: float) -> None:
        """Asks one source after the other, also those that join meanwhile, until one shows the blob."""
        began = time.monotonic()
        if self._pace_of is not None and self._turn is None:
            self._turn = await self._tools.lanes.pace(self._pace_of, seconds / 2)  # the rest is for the asking
        asked: set[Target] = set()
        failure: MirrorError | None = None
        while (target := next((one for one in self._sources.all if one not in asked), None)) is not None:
            asked.add(target)
            try:
                await self._ask(target, Deadline(max(began, self._sources.joined_at(target)) + seconds))
            except (Unknown, UpstreamRefused) as no:
                await self._tools.cache.heard_no(target, self.digest, "blob", no)
                self._sources.refused(target, no)
                failure = failure or no
            except UpstreamUnavailable as error:
                self._sources.failed(target, error)
                failure = error
            else:
                return
        raise failure or UpstreamUnavailable(f"nobody is left to ask for {self.digest}")

    async def _ask(self, target: Target, deadline: Deadline) -> None:
        await self.noted()
        question = await self._tools.cache.question(target)
        try:
            stream: BlobStream | FarStream = await self._tools.upstreams.open_blob(
                target, self.digest, deadline, self._byte_range()
            )
        except UpstreamUnavailable as error:
            if error.reason != "range" or self._whole:
                raise
            self._whole = True
            stream = await self._tools.upstreams.open_blob(target, self.digest, deadline)
        try:
            await self._accept(stream, question)
        except BaseException:
            await stream.close()
            raise

    async def _accept(self, stream: BlobStream | FarStream, question: Question) -> None:
        target = question.target
        surplus = self._offset - stream.start
        if surplus < 0 or (self._skip_limit is not None and surplus > self._skip_limit):
            raise UpstreamUnavailable(f"{target} does not give the range that was asked for", reason="range")
        encoded = stream.content_encoding is not None
        if encoded and (self._offset or not self._takes_encoded):
            raise UpstreamUnavailable(f"{target} sends a part of {self.digest} encoded", reason="range")
        if stream.partial and self.size is not None and stream.size not in (None, self.size):
            raise UpstreamUnavailable(f"{target} gives {self.digest} another length than before", reason="size")
        if stream.size is not None:
            # Headers are a claim; the link is proven when the digest matches.
            self._claim, self._claimed_at = (question, stream.size), time.monotonic()
            self.size = self.size if self.size is not None else stream.size
        self.encoded, self.relayed = encoded, stream.relayed
        self.shown = self.shown or question
        self._stream, self._chunks, self._position = stream, stream.chunks(), stream.start

    def _byte_range(self) -> ByteRange | None:
        """What is missing, always closed: some registries refuse an open end. None asks for the whole blob."""
        end = self._end()
        if self._whole or end is None or (self._offset == 0 and self.stop is None):
            return None
        return ByteRange(self._offset, end - 1)

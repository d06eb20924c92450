"""The bytes of one blob from its sources, resumed as often as it takes, until they are complete or nobody is left."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass

import structlog

from mirror.cache import Cache
from mirror.config import Timeouts
from mirror.download.sources import Sources
from mirror.metrics import Metrics
from mirror.oci.byte_range import ByteRange
from mirror.oci.digest import Digest
from mirror.oci.errors import MirrorError, Unknown, UpstreamRefused, UpstreamUnavailable
from mirror.routing import Target
from mirror.transport import Deadline
from mirror.upstream import BlobStream, Upstreams

_PROGRESS = 64 << 10
"""Bytes that a try must bring to count as progress, so that an upstream cannot keep us busy byte by byte."""
_TRIES_WITHOUT_PROGRESS = 8
_BACKOFF_SECONDS = 0.1
_BACKOFF_LIMIT = 5.0
_SKIP_FACTOR = 3
"""How often the blob's length may be thrown away where the upstream ignores ranges."""
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Tools:
    """What every fetch needs, the same for all of them."""

    upstreams: Upstreams
    cache: Cache
    metrics: Metrics
    timeouts: Timeouts


class Fetch:
    """Opens, reads and reopens streams for the bytes from `start` up to `stop` of a blob (None: to its end).

    Links are noted as the sources show the blob, and ended as they deny it.
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
        skip_limit: int | None = None,
    ) -> None:
        self.digest = digest
        self.size = size
        """Length of the whole blob in bytes, once somebody told us."""
        self.shown_by: Target | None = None
        """The source of the first stream."""
        self.encoded = False
        """Whether the upstream sends a Content-Encoding although it was asked for none: lengths mean nothing then."""
        self.disputed = False
        """Whether the upstream's length is not the one that a manifest gave; the manifest's is taken first."""
        self._sources = sources
        self._tools = tools
        self._offset = start
        self._stop = stop
        self._skip_limit = skip_limit
        self._stream: BlobStream | None = None
        self._chunks: AsyncIterator[bytes] | None = None
        self._position = 0
        self._whole = False
        self._skipped = 0
        self._gained = 0
        self._tries = 0
        self._stuck_since = asyncio.get_running_loop().time()

    async def open(self, deadline: Deadline) -> None:
        """Gets the first headers. Raises Unknown or UpstreamRefused if every source says no; UpstreamUnavailable."""
        await self._ask_around(deadline)

    async def next(self) -> bytes | None:
        """The next bytes, in order; None when all that was asked for has come.

        Broken streams are resumed inside. Raises Unknown, UpstreamRefused or UpstreamUnavailable when that is over.
        """
        while not self._done():
            try:
                chunk = await self._read()
            except UpstreamUnavailable as error:
                await self._reopen(error)
                continue
            if chunk is None:
                break
            self._offset += len(chunk)
            self._gained += len(chunk)
            return chunk
        await self.close()
        return None

    async def close(self) -> None:
        """Ends the present stream."""
        stream, self._stream, self._chunks = self._stream, None, None
        if stream is not None:
            await stream.close()

    # One stream.

    async def _read(self) -> bytes | None:
        """The stream's next bytes that are wanted; None at the clean end of a blob whose length nobody told."""
        if self._stream is None or self._chunks is None:
            raise UpstreamUnavailable(f"no stream of {self.digest} is open", reason="reset")
        while (chunk := await anext(self._chunks, None)) is not None:
            surplus = self._offset - self._position
            self._position += len(chunk)
            if surplus >= len(chunk):
                self._skipped += len(chunk)
                continue
            wanted = chunk[surplus:] if surplus > 0 else chunk
            end = self._end()
            return wanted if end is None else wanted[: end - self._offset]
        if self._end() is None:
            return None
        raise UpstreamUnavailable(f"the body of {self.digest} ended early", reason="truncated")

    def _end(self) -> int | None:
        return self._stop if self._stop is not None else self.size

    def _done(self) -> bool:
        end = self._end()
        return end is not None and self._offset >= end

    async def _reopen(self, error: UpstreamUnavailable) -> None:
        """Waits a little and opens a new stream where the last one broke. Raises what ends the fetch."""
        await self.close()
        if self._end() is None and self._offset:
            raise error  # nobody can tell whether what a second stream brings continues the first
        left = self._patience(error)
        self._tries += 1
        pause = random.uniform(0, min(_BACKOFF_LIMIT, _BACKOFF_SECONDS * 2**self._tries))  # noqa: S311 - jitter
        await asyncio.sleep(min(pause, left))
        for target in self._sources.all[:1]:
            self._tools.metrics.upstream_retries.labels(upstream=target.upstream.entry, reason=error.reason).inc()
        _log.info("resuming a blob", digest=str(self.digest), offset=self._offset, reason=error.reason)
        try:
            await self._ask_around(Deadline.after(min(self._tools.timeouts.first_byte, left)))
        except UpstreamUnavailable as again:
            _log.info("resuming failed", digest=str(self.digest), offset=self._offset, reason=again.reason)

    def _patience(self, error: UpstreamUnavailable) -> float:
        """Seconds that may still pass without progress. Raises `error` when there are none."""
        now = asyncio.get_running_loop().time()
        if self._gained >= _PROGRESS:
            self._gained, self._tries, self._stuck_since = 0, 0, now
        left = self._stuck_since + self._tools.timeouts.no_progress - now
        wasted = self.size is not None and self._skipped > _SKIP_FACTOR * self.size
        if left <= 0 or wasted or self._tries >= _TRIES_WITHOUT_PROGRESS:
            raise error
        return left

    # Asking.

    async def _ask_around(self, deadline: Deadline) -> None:
        failure: MirrorError | None = None
        for target in self._sources.all:
            try:
                await self._ask(target, deadline)
            except (Unknown, UpstreamRefused) as no:
                await self._tools.cache.heard_no(target, self.digest, "blob", no)
                self._sources.drop(target)
                failure = failure or no
            except UpstreamUnavailable as error:
                failure = error
            else:
                return
        raise failure or UpstreamUnavailable(f"nobody is left to ask for {self.digest}")

    async def _ask(self, target: Target, deadline: Deadline) -> None:
        try:
            stream = await self._tools.upstreams.open_blob(target, self.digest, deadline, self._byte_range())
        except UpstreamUnavailable as error:
            if error.reason != "range" or self._whole:
                raise
            self._whole = True
            stream = await self._tools.upstreams.open_blob(target, self.digest, deadline)
        try:
            await self._accept(stream, target)
        except BaseException:
            await stream.close()
            raise

    async def _accept(self, stream: BlobStream, target: Target) -> None:
        surplus = self._offset - stream.start
        if surplus < 0 or (self._skip_limit is not None and surplus > self._skip_limit):
            raise UpstreamUnavailable(f"{target} does not give the range that was asked for", reason="range")
        if stream.partial and self.size is not None and stream.size not in (None, self.size):
            raise UpstreamUnavailable(f"{target} gives {self.digest} another length than before", reason="size")
        encoded = stream.content_encoding is not None
        if stream.size is not None and not encoded:
            await self._note_link(target, stream.size)
            if self.size is None:
                self.size = stream.size
            self.disputed = self.size != stream.size
        self.encoded = encoded
        self.shown_by = self.shown_by or target
        self._stream, self._chunks, self._position = stream, stream.chunks(), stream.start

    async def _note_link(self, target: Target, size: int) -> None:
        """Headers are a claim; the link is proven when the digest matches, unless it was before."""
        link = await self._tools.cache.link(target, self.digest)
        if link is None or not link.proven:
            await self._tools.cache.put_link(target, self.digest, size, proven=False)

    def _byte_range(self) -> ByteRange | None:
        """What is missing, always closed: some registries refuse an open end. None asks for the whole blob."""
        end = self._end()
        if self._whole or end is None or (self._offset == 0 and self._stop is None):
            return None
        return ByteRange(self._offset, end - 1)

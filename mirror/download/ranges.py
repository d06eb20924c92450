"""Parts of a blob that is not all here: from the fill where that has them or gets there soon, else by own requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import pairwise

from mirror.download.bodies import Body, FlightBody
from mirror.download.fetch import NO_PARTS, Fetch, Tools
from mirror.download.sources import Sources
from mirror.download.tracks import BytesPiece, Piece
from mirror.oci.byte_range import ByteRange
from mirror.oci.digest import Digest
from mirror.oci.errors import RangeInvalid, UpstreamUnavailable
from mirror.routing import Target

_FIRST_LENGTH = 1 << 20
_LARGEST_LENGTH = 8 << 20
_SKIP = 1 << 20
"""Bytes that are thrown away at most where an upstream answers a range with more."""
_SMALL = 1 << 20
"""Bytes that a client may want within seconds, headers, waiting and all."""
_GAP = 64 << 10
"""Bytes between two parts that are rather fetched with them than asked around."""
_MOST_SPANS = 32
"""Stretches of a blob that one answer asks for by itself; whoever wants more of them waits for the fill."""
_PATIENT = 4
"""How many times `no_progress` a client waits for the fill who asks for the rest of a blob and has no hurry. 5 minutes
without a byte is what Kubernetes cancels a pull after."""


def plan(parts: Sequence[ByteRange], size: int) -> list[ByteRange]:
    """The stretches to ask for, in the order of the parts: neighbours share one, but no part is fetched twice for it.

    At most _MOST_SPANS of parts in rising order; together never more than `size`, the blob's length.
    """
    for gap in (_GAP, size // _MOST_SPANS + 1):
        spans = _joined(parts, gap)
        if len(spans) <= _MOST_SPANS and sum(span.length for span in spans) <= size:
            return spans
    return _joined(parts, 0)


def _joined(parts: Sequence[ByteRange], gap: int) -> list[ByteRange]:
    spans = [parts[0]]
    for part in parts[1:]:
        last = spans[-1]
        if last.end < part.start <= last.end + 1 + gap:
            spans[-1] = ByteRange(last.start, part.end)
        else:
            spans.append(part)
    return spans


class RangeBody:
    """`parts` of a blob, one after the other; `at` may jump from the end of one to the start of the next.

    Own requests run one at a time: closed ranges of 1 MiB at first, doubling to 8 MiB as the client takes them. Their
    bytes are not verified and not kept. Where the upstream cannot do ranges, and where the parts are scattered too
    wildly, the fill has to come: `flight` is a place on it. Where there is none, `anew` gives the blob from its start,
    which brings parts in rising order. `waits`: the fill may be waited for before. `patient`: the client asks for the
    rest of the blob, of which it may be taking only the next piece (containerd 2 does so), so that its own requests
    would fetch for the second time what the fill brings anyway.

    Raises RangeInvalid for parts that are too scattered to be asked for where there is no fill to wait for.
    """

    def __init__(
        self,
        digest: Digest,
        target: Target,
        tools: Tools,
        *,
        size: int,
        parts: Sequence[ByteRange],
        anew: Callable[[], Body],
        flight: FlightBody | None = None,
        waits: bool = False,
        patient: bool = False,
    ) -> None:
        self._digest = digest
        self._target = target
        self._tools = tools
        self._size = size
        self._parts = parts
        self._spans = plan(parts, size)
        if len(parts) > 1 and 2 * sum(span.length for span in self._spans) > size:
            waits = patient = True  # own requests would bring most of the blob, and the fill does that already
        self._flight = flight
        self._anew = anew
        self._through: Body | None = None
        self._waits = waits
        timeouts = tools.timeouts
        self._horizon = _PATIENT * timeouts.no_progress if patient else timeouts.cold_head
        small = not patient and sum(part.length for part in parts) <= _SMALL
        self._until = asyncio.get_running_loop().time() + timeouts.cold_head if small else None
        """When a client in a hurry has waited long enough for the fill."""
        self._readable = True
        self._stuck: UpstreamUnavailable | None = None
        """Why own requests are of no use."""
        self._index = 0
        """Of the span that is being given."""
        self._leaps = 0
        """Own requests that did not go on, in the same span, after the one before."""
        self._leapt_to: ByteRange | None = None
        self._length = _FIRST_LENGTH
        self._fetch: Fetch | None = None
        self._stop = 0
        self._chunk = b""
        self._received = 0
        """Offset after the chunk, the last one that came of `_fetch`, which brings bytes up to `_stop`."""
        if len(self._spans) > _MOST_SPANS and (flight is None or not flight.stores):
            raise RangeInvalid(f"{len(parts)} ranges, too scattered for a blob that is not held; ask for fewer")

    @property
    def soon(self) -> bool:
        """Whether the first byte is there already, or expected to come with the fill."""
        flight, start = self._flight, self._parts[0].start
        return flight is not None and (flight.has(start) or self._expects(flight, start))

    async def at(self, offset: int) -> Piece:
        if self._through is not None:
            return await self._through.at(offset)
        flight = self._flight
        if flight is not None and not (self._readable and (flight.stores or flight.has(offset))):
            await self._leave_flight()
        if self._stuck is None and not self._coming(offset):
            await self._end_fetch()  # whoever waits for the fill needs no turn meanwhile
            if (piece := await self._from_flight(offset)) is not None:
                return piece
            self._note_leap(offset)
        if self._stuck is None:
            try:
                return BytesPiece(await self._ask(offset))
            except UpstreamUnavailable as error:
                if error.reason not in NO_PARTS:
                    raise
                self._stuck = error
                await self._end_fetch()
        return await self._from_fill(offset, self._stuck)

    def storage_failed(self, error: OSError) -> None:
        if self._through is not None:
            self._through.storage_failed(error)
            return
        self._tools.cache.trouble.note("blobs", error)
        self._readable = False

    async def close(self) -> None:
        await self._leave_flight()
        await self._end_fetch()
        if self._through is not None:
            await self._through.close()

    # From the fill.

    def _expects(self, flight: FlightBody, offset: int) -> bool:
        """Whether the fill is expected in time: with all of a small part, or with the first bytes of a large one."""
        goal = min(offset + _SMALL, self._span(offset).end + 1)
        return self._waits and flight.reaches(goal, self._horizon)

    async def _from_flight(self, offset: int) -> Piece | None:
        """The fill's bytes, if they are there or come in time."""
        flight = self._flight
        if flight is None or not (flight.has(offset) or self._expects(flight, offset)):
            return None
        return await flight.at(offset) if await self._arrives(flight, offset) else None

    async def _arrives(self, flight: FlightBody, offset: int) -> bool:
        """Waits as long as the fill is expected in time: what a young one seemed to promise is looked at again."""
        now = asyncio.get_running_loop().time
        until = now() + self._horizon if self._until is None else self._until
        while flight.has(offset) or self._expects(flight, offset):
            try:
                async with asyncio.timeout(max(0.0, min(until - now(), self._horizon / 3))):
                    return await flight.reached(offset)
            except TimeoutError:
                if now() >= until:
                    break
        self._waits = False
        return False

    async def _from_fill(self, offset: int, failure: UpstreamUnavailable) -> Piece:
        """The fill's bytes, however long they take; without a fill those of the blob from its start.

        Raises `failure` where the parts' order does not allow that.
        """
        if self._flight is not None and await self._flight.reached(offset):
            return await self._flight.at(offset)
        if any(part.end >= after.start for part, after in pairwise(self._parts)):
            raise failure
        await self._leave_flight()
        await self._end_fetch()
        self._through = self._anew()
        return await self._through.at(offset)

    async def _leave_flight(self) -> None:
        flight, self._flight = self._flight, None
        if flight is not None:
            await flight.close()

    # By own requests.

    def _coming(self, offset: int) -> bool:
        """Whether the present request brings the byte, or has just brought it."""
        return self._received - len(self._chunk) <= offset < self._stop

    def _span(self, offset: int) -> ByteRange:
        """The span that `offset` is in: the present one, or else one of those that follow."""
        while not self._spans[self._index].start <= offset <= self._spans[self._index].end:
            self._index += 1
        return self._spans[self._index]

    def _note_leap(self, offset: int) -> None:
        span, before = self._span(offset), self._leapt_to
        self._leapt_to = span
        if (span is before and offset >= self._received) or len(self._parts) == 1:
            return
        self._leaps += 1
        if self._leaps > _MOST_SPANS:
            message = f"too many scattered parts of {self._digest} are wanted"
            self._stuck = UpstreamUnavailable(message, reason="range")

    async def _ask(self, offset: int) -> bytes:
        """The next bytes from `offset` on, of the present request or of a new one."""
        if not self._coming(offset):
            await self._begin(offset)
        while self._received <= offset:
            assert self._fetch is not None, "read after close"
            chunk = await self._next(self._fetch)
            if chunk is None:  # a body that promised no length, and was cut
                await self._fetch.go_on()
                continue
            self._chunk = chunk
            self._received += len(chunk)
        return self._chunk[offset - self._received :]

    async def _next(self, fetch: Fetch) -> bytes | None:
        """The next bytes; all that came for them is counted, what was thrown away included."""
        before = fetch.received
        try:
            return await fetch.next()
        finally:
            label = self._target.upstream.entry
            self._tools.metrics.bypass_bytes.labels(upstream=label, reason="range").inc(fetch.received - before)

    async def _begin(self, offset: int) -> None:
        """Asks for bytes from `offset` on."""
        first = self._length == _FIRST_LENGTH
        await self._end_fetch()
        self._stop = min(offset + self._length, self._span(offset).end + 1)
        self._length = min(2 * self._length, _LARGEST_LENGTH)
        self._received, self._chunk = offset, b""
        self._fetch = Fetch(
            self._digest,
            Sources(self._target),
            self._tools,
            start=offset,
            stop=self._stop,
            size=self._size,
            skip_limit=_SKIP,
            pace_of=self._target.upstream,
        )
        if first:  # what fails now can still be said in a status
            await self._fetch.open(self._tools.timeouts.cold_head)

    async def _end_fetch(self) -> None:
        fetch, self._fetch, self._stop = self._fetch, None, 0
        if fetch is not None:
            await fetch.close()

"""The asking of other workers: whom, over which connection, and for how long without a word."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgspec
import structlog

from mirror.metrics import Metrics
from mirror.oci.errors import UpstreamUnavailable
from mirror.peers.messages import Failure, Question, Told
from mirror.peers.wire import Kind, Wire
from mirror.slots import Slots
from mirror.store.owners import owner_of
from mirror.store.spools import origin_of

T = TypeVar("T")
_MOST = 512
"""Questions at a time to one other worker."""
_IDLE = 16
"""Connections to it that are kept for the next ones."""
_REST_SECONDS = 1.0
"""How long who was silent is not asked: each that asked would wait again."""
_REVIVAL = 4
"""Times that silence: how long somebody in the middle of a blob waits for a worker that is started again."""
_MOST_LOSSES = 5
"""Times that who is asked may go in the middle of one question; it may be the question that it cannot bear."""
_AGAIN_SECONDS = 0.05
"""Between attempts to connect to who does not listen at the moment, and after each loss."""
_LOOK_SECONDS = 0.1
"""After too long a silence we look once more: it may have been we who did not listen."""
_encoder = msgspec.msgpack.Encoder()
_failures = msgspec.msgpack.Decoder(Failure)
answering_a_peer: contextvars.ContextVar[bool] = contextvars.ContextVar("answering_a_peer", default=False)
"""Set in what answers another worker: it asks upstreams itself, whoever it thinks owns them, or two that disagree on
that would ask each other in circles."""
_log = structlog.get_logger()


class Silent(Exception):
    """The other worker does not say a word: do without, and keep nothing."""


class Lost(Exception):
    """The other worker has gone in the middle of its answer."""


class Peers:
    """The workers of this machine, by slot; `me` is our own.

    `names` are those of their Unix sockets; `silence` is how long in seconds one of them may say nothing at all.
    """

    def __init__(self, names: Sequence[str], me: int, metrics: Metrics, silence: float) -> None:
        self._names = names
        self._me = me
        self._metrics = metrics
        self._silence = silence
        self._owners: dict[str, int] = {}
        self._idle: dict[str, deque[Wire]] = {name: deque() for name in names}
        self._places = {name: Slots(_MOST, _MOST, what="questions to another worker") for name in names}
        self._silent_until: dict[str, float] = {}
        self._closed = False

    def away(self, host: str) -> bool:
        """Whether another worker asks the upstream `host`, so that we are to ask that one."""
        return not answering_a_peer.get() and self._owner(host) != self._me

    async def ask(self, question: Question, reply: type[T]) -> T:
        """The owner's answer. Asks again where the owner goes and comes back. Raises MirrorError and Silent."""
        heard = time.monotonic()
        for _ in range(_MOST_LOSSES):
            try:
                async with self.talk(question, since=heard) as talk:
                    await talk.end()
                    return msgspec.msgpack.decode(talk.answer, type=reply)
            except Lost:
                heard = max(heard, talk.heard)
                await asyncio.sleep(_AGAIN_SECONDS)
        raise Silent

    @asynccontextmanager
    async def talk(
        self, question: Question, since: float | None = None, *, revived: bool = False
    ) -> AsyncIterator[Talk]:
        """The question, asked; whoever leaves before the end takes it back.

        Raises Silent, also where the owner was silent just now, and UpstreamUnavailable, reason queue. `since`: when
        the owner was last heard of, on the monotonic clock; None for now. `revived`: it has died, and a process takes
        longer to begin than one that is there takes to say a word.
        """
        silence = _REVIVAL * self._silence if revived else self._silence
        slot = self._owner(question.host)
        name = self._names[slot]
        heard = time.monotonic() if since is None else since
        requests = self._metrics.peer_requests
        result = "left"
        place = None
        try:
            self._check_silence(name)
            place = await self._places[name].take(question.host, self._silence)
            wire = await self._connect(name, heard + silence)
            wire.write(Kind.ASK, _encoder.encode(question))
            talk = Talk(wire, self._silence, heard + silence - time.monotonic())
            try:
                yield talk
            finally:
                self._keep(name, wire, done=talk.done)
            result = "answered"
        except Lost:
            result = "lost"
            raise
        except Silent:
            result = "silent"
            self._note_silence(slot, name)
            raise
        except msgspec.MsgspecError as error:
            result = "error"
            raise unexpected(error) from error
        except Exception:
            result = "error"
            raise
        finally:
            requests.labels(str(slot), result).inc()
            if place is not None:
                place.release()

    async def close(self) -> None:
        """Closes the connections that nobody uses, and keeps none from now on."""
        self._closed = True
        for idle in self._idle.values():
            while idle:
                idle.pop().close()

    def _owner(self, host: str) -> int:
        owner = self._owners.get(host)
        if owner is None:
            if len(self._owners) > 10_000:  # however many hosts clients make up under a pattern
                self._owners.clear()
            owner = self._owners[host] = owner_of(origin_of(host), len(self._names))
        return owner

    async def _connect(self, name: str, until: float) -> Wire:
        idle = self._idle[name]
        while idle:
            wire = idle.pop()
            if wire.is_usable:
                return wire
            wire.close()
        while True:
            try:
                async with asyncio.timeout(max(_LOOK_SECONDS, until - time.monotonic())):
                    return await Wire.connect(name)
            except TimeoutError:
                raise Silent from None
            except OSError as error:  # it is being started again
                if time.monotonic() >= until:
                    raise Silent from error
                await asyncio.sleep(_AGAIN_SECONDS)

    def _keep(self, name: str, wire: Wire, *, done: bool) -> None:
        if done and wire.is_usable and not self._closed and len(self._idle[name]) < _IDLE:
            self._idle[name].append(wire)
        else:
            wire.close()

    def _check_silence(self, name: str) -> None:
        if self._silent_until.get(name, 0.0) > time.monotonic():
            raise Silent

    def _note_silence(self, slot: int, name: str) -> None:
        now = time.monotonic()
        if self._silent_until.get(name, 0.0) <= now:
            self._silent_until[name] = now + _REST_SECONDS
            _log.warning("another worker does not answer: its upstreams are asked without it", slot=slot)


class Talk:
    """A question that was asked. `answer` is there after its `end`; `heard`: when we last had a word."""

    def __init__(self, wire: Wire, silence: float, first: float) -> None:
        """`silence` in seconds, and as many before the `first` word."""
        self.answer = b""
        self.done = False
        self.heard = time.monotonic()
        self._wire = wire
        self._silence = silence
        self._first: float | None = first

    async def hear(self) -> tuple[Kind, bytes]:
        """The next news or data, or the answer, after which there is nothing. Raises MirrorError, Silent and Lost."""
        while True:
            frame = await self._frame()
            self.heard = time.monotonic()
            if frame is None:
                raise Lost
            kind, payload = frame
            if kind is Kind.HERE:
                continue
            self.done = kind in (Kind.ANSWER, Kind.FAILED)
            if kind is Kind.FAILED:
                raise _failures.decode(payload).error
            return kind, payload

    async def end(self) -> None:
        """Hears the answer. Raises as `hear`."""
        while not self.done:
            _, self.answer = await self.hear()

    def tell(self, told: Told) -> None:
        """Lets whoever answers know."""
        self._wire.write(Kind.TELL, _encoder.encode(told))

    async def _frame(self) -> tuple[Kind, bytes] | None:
        first, self._first = self._first, None
        for seconds in (self._silence if first is None else first, _LOOK_SECONDS):
            try:
                async with asyncio.timeout(seconds):
                    return await self._wire.read()
            except TimeoutError:
                pass
        raise Silent


def unexpected(error: Exception) -> UpstreamUnavailable:
    """What another worker hears of a fault of ours; the log has the rest."""
    return UpstreamUnavailable(f"another worker failed: {type(error).__name__}", reason="peer")


def encode(message: Any) -> bytes:
    """A message as it crosses."""
    return _encoder.encode(message)

"""Client connections: aiohttp's, each with an end whatever its client does, and errors in the specification's words."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from aiohttp import EMPTY_PAYLOAD, StreamReader, http_exceptions, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import RawRequestMessage
from yarl import URL

from mirror.api.admission import Admission
from mirror.api.responses import SERVER, malformed_response, refusal

Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
AtOnce = Callable[[RawRequestMessage, str | None], "Departure | None"]
Malformed = Callable[[str | None, int, str], None]

_LONGEST = 2**31 - 1
"""Milliseconds that the kernel can count."""
_LONGEST_TARGET = 8190
"""Bytes of a request's target, query included; a longer one is a 414."""
_LONGEST_FIELD = 32 << 10
"""Bytes of one header: a Range of 1,024 parts fits. What is longer is a 431."""
_MOST_FIELDS = 128
"""Headers of a request; more are a 431."""
_LONGEST_HEAD = 128 << 10
"""Bytes that may have come of a request's target and headers while they are not complete; more are a 431."""
_LINGERING_SECONDS = 10.0
"""How long the rest of a body that nobody wants is read and dropped, so that its sender sees the answer."""


class ClientGone(ConnectionResetError):
    """The client closed its connection, or took no byte for too long."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a client may take over things, in seconds. Without end is only an answer that it keeps taking."""

    request: float
    """From a request's first byte, or from the connection, to the end of its headers."""
    idle: float
    """From one answer to the next request."""
    stall: float
    """Without a byte taken. The kernel sees to that, wherever the bytes wait and whoever wrote them."""
    linger: float = _LINGERING_SECONDS
    """From an answer to the end of a body that came with its request."""


class Departure(Protocol):
    """An answer as it goes out; nothing had to be found out for it."""

    data: bytes
    """Status, headers and body."""

    def waits(self) -> None:
        """The kernel has not taken all of it: until it is `over`, somebody is being served."""

    def over(self, *, gone: bool = False) -> None:
        """The kernel has all of it, or the client has `gone` before."""


class HttpServer(web.Server):
    """Serves connections: `answer` is called for each request, and cancelled when its client leaves.

    `at_once` is asked before, with the client's address, for an answer that takes no finding out: it goes out without a
    task, in the turn of the loop in which the request came. `malformed` hears of what is no request: the client's
    address, the status it was answered, and why.
    """

    def __init__(
        self,
        answer: Answer,
        *,
        malformed: Malformed,
        limits: Limits,
        admission: Admission,
        at_once: AtOnce | None = None,
    ) -> None:
        super().__init__(
            answer,
            request_factory=_request,
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,
            max_line_size=_LONGEST_TARGET,
            max_field_size=_LONGEST_FIELD,
            max_headers=_MOST_FIELDS,
            keepalive_timeout=limits.idle,
            lingering_time=limits.linger,
        )
        self.at_once = at_once
        self.malformed = malformed
        self.limits = limits
        self.admission = admission

    def adjust(self, limits: Limits) -> None:
        """Other limits, for the connections that come from now on."""
        self.limits = limits
        self._kwargs |= {"keepalive_timeout": limits.idle, "lingering_time": limits.linger}

    def __call__(self, client: str | None = None) -> _Connection:
        """The protocol of one more connection; `client` is the address under which it has been counted already."""
        return _Connection(self, client, loop=self._loop, **self._kwargs)


async def taken(sending: Awaitable[object]) -> None:
    """Awaits what aiohttp sends. Raises ClientGone for its connection errors."""
    try:
        await sending
    except ConnectionError as error:
        raise ClientGone(*error.args) from error


async def flushed(request: web.BaseRequest) -> None:
    """Waits until the kernel has all that was written, for more to follow it. Raises ClientGone."""
    await taken(request.writer.drain())
    if request.transport is None or request.transport.is_closing():
        raise ClientGone("the client closed the connection")


def _request(
    message: RawRequestMessage,
    payload: StreamReader,
    protocol: web.RequestHandler,
    writer: AbstractStreamWriter,
    task: asyncio.Task[None],
) -> web.BaseRequest:
    """A request as aiohttp makes it; but a CONNECT to nowhere comes without a target, which it does not survive."""
    if not message.path:
        message = message._replace(path="", url=URL())
    return web.BaseRequest(message, payload, protocol, writer, task, asyncio.get_running_loop())


class _Connection(web.RequestHandler):
    """One timer watches over the heads of requests, while one is awaited that has begun, or the first one."""

    __slots__ = ("_body", "_client", "_departure", "_head_bytes", "_head_timer", "_server")

    def __init__(self, server: HttpServer, client: str | None, **options: Any) -> None:
        super().__init__(server, **options)
        self._server = server
        self._client = client
        """Its address, while the connection counts."""
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        """That came of a request whose head is not complete."""
        self._body: StreamReader | None = None
        """Of the last request."""
        self._departure: Departure | None = None
        """One that was ready, and that the kernel has not taken whole."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        if self._client is None:
            self._client = self._server.admission.enter(transport)
        if self._client is None:
            return
        # Every drain then waits until the kernel has everything: an answer is over when it has left us.
        transport.set_write_buffer_limits(high=0)
        client: socket.socket = transport.get_extra_info("socket")
        if client.family in (socket.AF_INET, socket.AF_INET6):
            stall = min(max(1, int(self._server.limits.stall * 1000)), _LONGEST)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, stall)
        super().connection_made(transport)
        self._watch_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._head_is_there()
        self.leave()
        if self._departure is not None:
            departure, self._departure = self._departure, None
            departure.over(gone=True)
        super().connection_lost(exc)

    def close(self) -> None:
        """Takes no further request, and ends behind the answers under way; at once where there are none.

        aiohttp leaves a connection open on which nothing is asked, and deaf: its client would wait for nothing.
        """
        ends = self._is_idle() and self._departure is None
        super().close()
        if ends and self.transport is not None:
            self.transport.close()

    def leave(self) -> None:
        """It counts no longer. Idempotent."""
        client, self._client = self._client, None
        if client is not None:
            self._server.admission.leave(client)

    def data_received(self, data: bytes) -> None:
        before = self._request_count
        # What follows a body in the same bytes counts when more comes; until then the connection counts as idle.
        is_head = self._body is None or self._body.is_eof()
        # aiohttp wakes who waits for a request: not before it is known whether there is still one to wait for.
        waiter, self._waiter = self._waiter, None
        try:
            super().data_received(data)
        finally:
            self._waiter = waiter
        if self._request_count != before:
            self._body = self._messages[-1][1]
            self._head_is_there()
        elif is_head and data and not self._upgraded:  # what follows an upgrade is read later
            self._head_bytes += len(data)
            if self._head_bytes > _LONGEST_HEAD:
                self._turn_away(431, "the request's headers are too long")
            elif self._head_timer is None:
                self._watch_head()
        if self._messages and waiter is not None and not waiter.done():
            if self._server.at_once is not None:
                self._answer_at_once(self._server.at_once)
            if self._messages:
                waiter.set_result(None)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._departure is None:
            return
        departure, self._departure = self._departure, None
        departure.over()
        if not self._close:
            self._idle_from_now()
        elif self._is_idle() and self.transport is not None:
            self.transport.close()  # nobody else does: aiohttp's own part has ended without it

    def _answer_at_once(self, at_once: AtOnce) -> None:
        """Answers of the requests that have come those for which nothing has to be found out, up to the first other."""
        while self._messages and not (self._paused or self._buffer_paused or self._upgraded):
            message, payload = self._messages[0]
            if payload is not EMPTY_PAYLOAD or not isinstance(message, RawRequestMessage):
                return
            departure = at_once(message, self._client or None)
            if departure is None or self._parser is None or self.transport is None:
                return
            self._messages.popleft()
            self._parser.message_consumed()
            self.transport.write(departure.data)
            if self.writing_paused:
                departure.waits()
                self._departure = departure
            else:
                departure.over()
                self._idle_from_now()

    def _idle_from_now(self) -> None:
        """As aiohttp does after its own answers."""
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        if self._keepalive_handle is None:
            self._keepalive_handle = self._loop.call_at(self._next_keepalive_close_time, self._process_keepalive)

    def _watch_head(self) -> None:
        self._head_timer = self._loop.call_later(self._server.limits.request, self._head_is_late)

    def _head_is_there(self) -> None:
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        if not self._is_waiting():
            self._watch_head()  # whoever is being answered may leave the next request for later
        elif self._head_bytes:
            self._turn_away(408, "the request did not come to its end in time")
        else:
            self.force_close()

    def _process_keepalive(self) -> None:
        if self._head_bytes or self._departure is not None:  # not idle: a head has a time of its own
            self._keepalive_handle = None
        else:
            super()._process_keepalive()

    def _is_idle(self) -> bool:
        """Whether no request is being answered, or waits for that: aiohttp closes behind its own answers."""
        if self._messages:
            return False
        return self._waiter is not None or self._task_handler is None or self._task_handler.done()

    def _is_waiting(self) -> bool:
        return self._departure is None and self._waiter is not None and not self._waiter.done()

    def _turn_away(self, status: int, reason: str) -> None:
        """Ends the connection over the request that is coming in; those before it are answered."""
        self._head_is_there()
        if not self._is_waiting():
            self.close()
        elif self.transport is not None:
            self._server.malformed(self._client, status, reason)
            self.transport.write(refusal(status, "UNSUPPORTED", reason))
            self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What aiohttp could not read; whatever goes wrong later is answered for by `answer`."""
        if request.writer.output_size > 0:
            raise ConnectionError("part of another answer was sent")
        status, reason = _status(exc, message, status), _reason(exc, message)
        self._server.malformed(request.remote, status, reason)
        response = malformed_response(status, reason)
        response.headers["Server"] = SERVER
        response.force_close()
        return response


_TOO_MANY_FIELDS = "Too many headers received"
_SAID_WITHOUT_BYTES: tuple[tuple[type[Exception], str], ...] = (
    (http_exceptions.LineTooLong, "the request's target or one of its headers is too long"),
    (http_exceptions.InvalidURLError, "the request's target is no URL"),
    (http_exceptions.InvalidHeader, "a header is not valid"),
)


def _status(error: BaseException | None, message: str | None, otherwise: int) -> int:
    """The particular status for what is too long or too much."""
    if isinstance(error, http_exceptions.LineTooLong):
        line, limit, *_ = error.args
        if limit == _LONGEST_TARGET:
            return 414
        # Who asks for too many ranges asks for fewer after a 400, and gives up after anything else.
        return otherwise if bytes(line).startswith(b"bytes=") else 431
    return 431 if message == _TOO_MANY_FIELDS else otherwise


def _reason(error: BaseException | None, message: str | None) -> str:
    """What was wrong, without the bytes that were: they may be a credential."""
    for kind, words in _SAID_WITHOUT_BYTES:
        if isinstance(error, kind):
            return words
    text = message or str(error) or type(error).__name__
    if isinstance(error, http_exceptions.BadStatusLine) and error.line:
        text = text.replace(repr(error.line), "").replace(error.line, "")
    return text.strip().partition("\n")[0].rstrip(": ")[:200]

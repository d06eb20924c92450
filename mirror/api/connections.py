"""Client connections: aiohttp's, with an end for clients that take nothing and errors in the specification's words."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import StreamReader, http_exceptions, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import RawRequestMessage
from yarl import URL

from mirror.api.responses import malformed_response

Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
Malformed = Callable[[web.BaseRequest, str], None]


_LONGEST = 2**31 - 1
"""Milliseconds that the kernel can count."""
_LONGEST_FIELD = 32 << 10
"""Bytes of one header: a Range of 1,024 parts fits. What is longer is a 400."""
SERVER = "mirror"
"""The Server header; aiohttp's own would tell versions."""


class ClientGone(ConnectionResetError):
    """The client closed its connection, or took no byte for too long."""


class HttpServer(web.Server):
    """Serves connections: `answer` is called for each request, and cancelled when its client leaves.

    `malformed` hears of what is no request, and why. A client that takes no byte for `stall` seconds is cut off: the
    kernel sees to that, wherever the bytes wait and whoever wrote them. Further options are aiohttp's.
    """

    def __init__(self, answer: Answer, *, malformed: Malformed, stall: float, **options: Any) -> None:
        super().__init__(
            answer,
            request_factory=_request,
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,
            max_field_size=_LONGEST_FIELD,
            **options,
        )
        self.malformed = malformed
        self.stall = stall

    def __call__(self) -> web.RequestHandler:
        """The protocol of one more connection."""
        return _Connection(self, loop=self._loop, **self._kwargs)


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
    __slots__ = ("_server",)

    def __init__(self, server: HttpServer, **options: Any) -> None:
        super().__init__(server, **options)
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        # Every drain then waits until the kernel has everything: an answer is over when it has left us.
        transport.set_write_buffer_limits(high=0)
        client: socket.socket = transport.get_extra_info("socket")
        if client.family in (socket.AF_INET, socket.AF_INET6):
            stall = min(max(1, int(self._server.stall * 1000)), _LONGEST)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, stall)
        super().connection_made(transport)

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
        reason = _reason(exc, message)
        self._server.malformed(request, reason)
        response = malformed_response(status, reason)
        response.headers["Server"] = SERVER
        response.force_close()
        return response


_SAID_WITHOUT_BYTES: tuple[tuple[type[Exception], str], ...] = (
    (http_exceptions.LineTooLong, "the request's target or one of its headers is too long"),
    (http_exceptions.InvalidURLError, "the request's target is no URL"),
    (http_exceptions.InvalidHeader, "a header is not valid"),
)


def _reason(error: BaseException | None, message: str | None) -> str:
    """What was wrong, without the bytes that were: they may be a credential."""
    for kind, words in _SAID_WITHOUT_BYTES:
        if isinstance(error, kind):
            return words
    text = message or str(error) or type(error).__name__
    if isinstance(error, http_exceptions.BadStatusLine) and error.line:
        text = text.replace(repr(error.line), "").replace(error.line, "")
    return text.strip().partition("\n")[0].rstrip(": ")[:200]

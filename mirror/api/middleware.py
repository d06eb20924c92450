"""Around every request: its id, its errors, its access line and its metrics; and who is still being served."""

from __future__ import annotations

import asyncio
import re
import secrets

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from mirror.api.exchange import EXCHANGE, Exchange
from mirror.api.responses import error_response, unexpected_response
from mirror.metrics import Metrics
from mirror.oci.errors import InvalidRequest, MirrorError, Unknown, UpstreamRefused

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}", re.ASCII)
_CLIENT_GONE = 499
_log = structlog.get_logger()


class Traffic:
    """Counts the requests being answered, and tells their clients to go elsewhere once we are draining."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._active = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.draining = False
        """Set on SIGTERM: answers say `Connection: close`."""

    async def idle(self) -> None:
        """Waits until nobody is being served."""
        await self._idle.wait()

    async def prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        """The headers of every answer (an `on_response_prepare` signal)."""
        response.headers["Docker-Distribution-Api-Version"] = "registry/2.0"
        exchange = request.get(EXCHANGE)
        if exchange is not None:
            response.headers["X-Request-Id"] = exchange.request_id
            exchange.first_byte = exchange.elapsed()
        if self.draining:
            response.headers["Connection"] = "close"
            response.force_close()

    @web.middleware
    async def observe(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answers errors, and records what became of the request."""
        exchange = request[EXCHANGE] = Exchange(_request_id(request))
        self._active += 1
        self._idle.clear()
        with structlog.contextvars.bound_contextvars(request_id=exchange.request_id):
            try:
                response = await self._answer(request, handler, exchange)
                exchange.status = response.status
                if isinstance(response, web.Response) and request.method != "HEAD":
                    exchange.sent = response.body_length if response.prepared else len(response.body or b"")  # type: ignore[arg-type]  # bytes in all our answers
            except asyncio.CancelledError:
                exchange.status = _CLIENT_GONE
                raise
            finally:
                self._record(request, exchange)
                self._active -= 1
                if not self._active:
                    self._idle.set()
        return response

    async def _answer(self, request: web.Request, handler: Handler, exchange: Exchange) -> web.StreamResponse:
        try:
            return await handler(request)
        except MirrorError as error:
            denied = isinstance(error, (InvalidRequest, Unknown, UpstreamRefused))
            exchange.result = "refused" if denied else "error"
            exchange.failure = error.message
            return error_response(error)
        except ConnectionError:
            # The client left; there is nobody to answer.
            exchange.result = "error"
            exchange.failure = "the client left"
            raise
        except Exception:
            exchange.result = "error"
            _log.exception("a request failed unexpectedly", path=request.path[:256])
            return unexpected_response()

    def _record(self, request: web.Request, exchange: Exchange) -> None:
        seconds = exchange.elapsed()
        kind, upstream, result = exchange.kind, exchange.upstream, exchange.result
        self._metrics.requests.labels(upstream, kind, result, str(exchange.status)).inc()
        self._metrics.request_duration.labels(kind).observe(seconds)
        first_byte = exchange.first_byte if exchange.first_byte is not None else seconds
        self._metrics.first_byte.labels(kind, result).observe(first_byte)
        if exchange.sent:
            self._metrics.served_bytes.labels(upstream, kind, result).inc(exchange.sent)
        _log.info(
            "request",
            method=request.method,
            path=request.path[:512],
            client=request.remote,
            upstream=upstream,
            repository=exchange.repository,
            kind=kind,
            result=result,
            status=exchange.status,
            bytes=exchange.sent,
            duration=round(seconds, 6),
            **({"failure": exchange.failure} if exchange.failure else {}),
        )


def _request_id(request: web.Request) -> str:
    given = request.headers.get("X-Request-Id", "")
    return given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)

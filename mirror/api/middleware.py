"""Around every request: its id, its errors, its access line and its metrics; and who is still being served."""

from __future__ import annotations

import asyncio
import itertools
import re
import secrets
from functools import lru_cache
from typing import NamedTuple

import structlog
from aiohttp import web
from prometheus_client import Counter, Histogram

from mirror.api.connections import Answer, ClientGone, taken
from mirror.api.exchange import EXCHANGE, Exchange
from mirror.api.forwarded import Proxies
from mirror.api.responses import SERVER, error_response, unexpected_response
from mirror.metrics import Metrics
from mirror.oci.errors import InvalidRequest, MirrorError, Unknown, UpstreamRefused

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}", re.ASCII)
_ids = itertools.count(secrets.randbits(60))
_CLIENT_GONE = 499
_CHILDREN = 4096


class Traffic:
    """Counts the requests being answered, and tells their clients to go elsewhere once we are draining."""

    def __init__(self, metrics: Metrics, proxies: Proxies) -> None:
        self._metrics = metrics
        self._proxies = proxies
        self._children = lru_cache(_CHILDREN)(self._find_children)
        self._log = structlog.get_logger().bind()
        self._active = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._steps: set[asyncio.Future[int]] = set()
        """Those that may outlive their requests, which are recorded at their ends."""
        self.draining = False
        """Set on SIGTERM: answers say `Connection: close`."""

    @property
    def active(self) -> int:
        """How many requests are being answered."""
        return self._active

    async def idle(self) -> None:
        """Waits until nobody is being served: the kernel has the last byte of each answer."""
        await self._idle.wait()

    async def recorded(self) -> None:
        """Waits until nobody is being served, and what became of everyone is in the log and the metrics."""
        await self.idle()
        while self._steps:
            await asyncio.wait(self._steps)
            await asyncio.sleep(0)  # for what they call back

    def around(self, handler: Answer) -> Answer:
        """`handler`, with its errors answered, its answers sent, and what became of them recorded."""

        async def observe(request: web.BaseRequest) -> web.StreamResponse:
            forwarded = self._proxies.read(request.remote, request.headers)
            exchange = request[EXCHANGE] = Exchange(_request_id(request), forwarded)
            # Each request has a task, and so a context, of its own: nothing is left behind for the next one.
            structlog.contextvars.bind_contextvars(request_id=exchange.request_id)
            self._active += 1
            self._idle.clear()
            left = False
            try:
                return await self._answer(request, handler, exchange)
            except (asyncio.CancelledError, ClientGone):
                left = True
                raise
            finally:
                self._active -= 1
                if not self._active:
                    self._idle.set()
                if left and exchange.step is not None:
                    # Only behind the step's own callback is it known how much went out, even where it is over by now.
                    self._steps.add(exchange.step)
                    exchange.step.add_done_callback(lambda step: self._record_at_last(request, exchange, step))
                else:
                    self._record(request, exchange, left=left)

        return observe

    async def begin(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Sends the headers, with those that every answer has; once. Raises ClientGone."""
        if response.prepared:
            return
        exchange = request[EXCHANGE]
        exchange.status = response.status
        response.headers["Docker-Distribution-Api-Version"] = "registry/2.0"
        response.headers["X-Request-Id"] = exchange.request_id
        response.headers["Server"] = SERVER
        if exchange.namespace is not None:
            response.headers["OCI-Namespace"] = exchange.namespace
        if self.draining:
            response.force_close()
        await taken(response.prepare(request))
        exchange.first_byte = exchange.elapsed()

    def malformed(self, client: str | None, status: int, reason: str) -> None:
        """Records what is no request, and so has no headers either that could say whose it is."""
        self._metrics.requests.labels("none", "none", "refused", str(status)).inc()
        self._log.info("malformed request", client=client, status=status, reason=reason)

    async def _answer(self, request: web.BaseRequest, handler: Answer, exchange: Exchange) -> web.StreamResponse:
        try:
            response = await handler(request)
            await self.begin(request, response)
        except MirrorError as error:
            denied = isinstance(error, (InvalidRequest, Unknown, UpstreamRefused))
            exchange.result = "refused" if denied else "error"
            exchange.failure = error.message
            response = error_response(error)
        except ClientGone:
            raise
        except Exception as error:
            exchange.result = "error"
            exchange.failure = type(error).__name__
            self._log.exception("a request failed unexpectedly", path=request.path[:256])
            response = unexpected_response()
        if not response.prepared:
            await self.begin(request, response)
        await taken(response.write_eof())
        if isinstance(response, web.Response) and request.method != "HEAD":
            exchange.sent = len(response.body or b"")  # type: ignore[arg-type]  # bytes in all our answers
        await taken(request.writer.drain())
        return response

    def _record_at_last(self, request: web.BaseRequest, exchange: Exchange, step: asyncio.Future[int]) -> None:
        self._steps.discard(step)
        self._record(request, exchange, left=True)

    def _record(self, request: web.BaseRequest, exchange: Exchange, *, left: bool) -> None:
        # Many clients close the moment they have the last byte; that is not leaving.
        if left and exchange.failure is None and not exchange.is_whole:
            exchange.status = _CLIENT_GONE
            exchange.failure = "the client left"
        seconds = exchange.elapsed()
        kind, upstream, result = exchange.kind, exchange.upstream, exchange.result
        children = self._children(upstream, kind, result, exchange.status)
        children.requests.inc()
        children.duration.observe(seconds)
        if exchange.first_byte is not None:
            children.first_byte.observe(exchange.first_byte)
        if exchange.sent:
            children.served_bytes.inc(exchange.sent)
        failure = {"failure": exchange.failure} if exchange.failure else {}
        self._log.info(
            "request",
            method=request.method,
            path=request.path[:512],
            client=exchange.forwarded.client,
            upstream=upstream,
            repository=exchange.repository,
            kind=kind,
            result=result,
            status=exchange.status,
            bytes=exchange.sent,
            duration=round(seconds, 6),
            **failure,
        )

    def _find_children(self, upstream: str, kind: str, result: str, status: int) -> _Children:
        """Looking them up by label for each request would cost more than counting does."""
        return _Children(
            self._metrics.requests.labels(upstream, kind, result, str(status)),
            self._metrics.request_duration.labels(kind),
            self._metrics.first_byte.labels(kind, result),
            self._metrics.served_bytes.labels(upstream, kind, result),
        )


class _Children(NamedTuple):
    requests: Counter
    duration: Histogram
    first_byte: Histogram
    served_bytes: Counter


def _request_id(request: web.BaseRequest) -> str:
    given = request.headers.get("X-Request-Id", "")
    return given if _REQUEST_ID.fullmatch(given) else f"{next(_ids):016x}"

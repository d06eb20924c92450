"""Around every request: its id, its errors, its access line and its metrics; and who is still being served."""

from __future__ import annotations

import asyncio
import itertools
import re
import secrets
from collections.abc import Mapping

import structlog
from aiohttp import web
from aiohttp.http import RawRequestMessage
from multidict import istr

from mirror.api.connections import Answer, ClientGone, Departure, taken
from mirror.api.exchange import EXCHANGE, Exchange
from mirror.api.forwarded import Proxies
from mirror.api.ready import Ready, ReadyAnswers
from mirror.api.responses import SERVER, error_response, unexpected_response
from mirror.api.tally import Tally
from mirror.log import RequestLine
from mirror.metrics import Metrics
from mirror.oci.errors import InvalidRequest, MirrorError, Unknown, UpstreamRefused

_REQUEST_ID_FIELD = istr("X-Request-Id")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}", re.ASCII)
_ids = itertools.count(secrets.randbits(60))
_CLIENT_GONE = 499
_LEFT = "the client left"


class Traffic:
    """Counts the requests being answered, and tells their clients to go elsewhere once we are draining."""

    def __init__(self, metrics: Metrics, proxies: Proxies) -> None:
        self._metrics = metrics
        self._proxies = proxies
        self.ready: ReadyAnswers | None = None
        """Where answers are kept: another object as soon as the same requests may have others."""
        self._tally = Tally(metrics)
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
            exchange = request[EXCHANGE] = Exchange(_request_id(request.headers), forwarded)
            if (ready := self.ready) is not None:
                exchange.key = ready.key(
                    request.method,
                    request.raw_path,
                    request.version,
                    request.headers,
                    forwarded,
                    keep_alive=request.keep_alive,
                )
            # Each request has a task, and so a context, of its own: nothing is left behind for the next one.
            structlog.contextvars.bind_contextvars(request_id=exchange.request_id)
            self.enter()
            left = False
            try:
                response = await self._answer(request, handler, exchange)
                if ready is not None and exchange.lasting is not None:
                    self._keep(ready, request, response, exchange)
                return response
            except (asyncio.CancelledError, ClientGone):
                left = True
                raise
            finally:
                self.leave()
                if left and exchange.step is not None:
                    # Only behind the step's own callback is it known how much went out, even where it is over by now.
                    self._steps.add(exchange.step)
                    exchange.step.add_done_callback(lambda step: self._record_at_last(request, exchange, step))
                else:
                    self._record(request, exchange, left=left)

        return observe

    def at_once(self, message: RawRequestMessage, peer: str | None) -> Departure | None:
        """The answer to a request of which nothing has to be found out, since it is ready; None for every other one."""
        if self.draining or self.ready is None:
            return None
        forwarded = self._proxies.read(peer, message.headers)
        key = self.ready.key(
            message.method,
            message.path,
            message.version,
            message.headers,
            forwarded,
            keep_alive=not message.should_close,
        )
        ready = None if key is None else self.ready.get(key)
        return None if ready is None else _Departure(self, ready, _request_id(message.headers), forwarded.client)

    def enter(self) -> None:
        """One more is being answered, until it is time to `leave`."""
        self._active += 1
        self._idle.clear()

    def leave(self) -> None:
        """One less is."""
        self._active -= 1
        if not self._active:
            self._idle.set()

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
            exchange.failure = _LEFT
        seconds = exchange.elapsed()
        counts = self._tally.of(exchange.upstream, exchange.kind, exchange.result, exchange.status)
        counts.add(seconds, exchange.first_byte, exchange.sent)
        line = RequestLine(_asked(request), _answered(exchange))
        line.write(exchange.request_id, exchange.forwarded.client, seconds, exchange.failure)

    def _keep(
        self, ready: ReadyAnswers, request: web.BaseRequest, response: web.StreamResponse, exchange: Exchange
    ) -> None:
        """Has the answer that was just given ready for whoever asks the same, where it may be given again."""
        if exchange.key is None or exchange.lasting is None or not isinstance(response, web.Response):
            return
        if "Connection" in response.headers:  # it said that we are leaving
            return
        counts = self._tally.of(exchange.upstream, exchange.kind, exchange.result, exchange.status)
        line = RequestLine(_asked(request), _answered(exchange))
        ready.keep(exchange.key, response, exchange.sent, exchange.lasting, counts, line)

    def record_gone(self, ready: Ready, request_id: str, client: str | None, seconds: float, first_byte: float) -> None:
        """Records a ready answer of which the kernel had not everything when its client left."""
        said = {**ready.line.answered, "status": _CLIENT_GONE}
        labels = (str(said["upstream"]), str(said["kind"]), str(said["result"]), _CLIENT_GONE)
        self._tally.of(*labels).add(seconds, first_byte, ready.sent)
        line = RequestLine(ready.line.asked, said)
        line.write(request_id, client, seconds, _LEFT)


class _Departure:
    """A ready answer on its way to its client."""

    __slots__ = ("_client", "_first_byte", "_ready", "_request_id", "_started", "_traffic", "data")

    def __init__(self, traffic: Traffic, ready: Ready, request_id: str, client: str | None) -> None:
        self._traffic = traffic
        self._ready = ready
        self._request_id = request_id
        self._client = client
        self._started = asyncio.get_running_loop().time()
        self._first_byte: float | None = None
        self.data = ready.render(request_id)

    def waits(self) -> None:
        self._first_byte = asyncio.get_running_loop().time() - self._started
        self._traffic.enter()

    def over(self, *, gone: bool = False) -> None:
        seconds, first_byte = asyncio.get_running_loop().time() - self._started, self._first_byte
        if first_byte is None:
            first_byte = seconds
        else:
            self._traffic.leave()
        if gone:
            self._traffic.record_gone(self._ready, self._request_id, self._client, seconds, first_byte)
        else:
            self._ready.counts.add(seconds, first_byte, self._ready.sent)
            self._ready.line.write(self._request_id, self._client, seconds)


def _asked(request: web.BaseRequest) -> dict[str, object]:
    return {"method": request.method, "path": request.path[:512]}


def _answered(exchange: Exchange) -> dict[str, object]:
    return {
        "upstream": exchange.upstream,
        "repository": exchange.repository,
        "kind": exchange.kind,
        "result": exchange.result,
        "status": exchange.status,
        "bytes": exchange.sent,
    }


def _request_id(headers: Mapping[str, str]) -> str:
    given = headers.get(_REQUEST_ID_FIELD)
    return given if given and _REQUEST_ID.fullmatch(given) else f"{next(_ids):016x}"

"""The transport: one request through its redirects, and again where that may help, within one deadline."""

from __future__ import annotations

import asyncio
import random
import re
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import quote

from aiohttp.abc import AbstractResolver
from prometheus_client import Counter
from yarl import URL

from mirror.config import Timeouts
from mirror.memory import Memory
from mirror.metrics import Metrics
from mirror.oci.errors import UpstreamTimeout, UpstreamUnavailable
from mirror.slots import Slots
from mirror.transport import addresses
from mirror.transport.addresses import LONGEST_HOST, literal_of
from mirror.transport.breakers import Effort
from mirror.transport.deadline import Deadline
from mirror.transport.failures import CAUGHT, RETRIED, RedirectExpired, translate
from mirror.transport.gate import Gate, Passage
from mirror.transport.probes import Probes
from mirror.transport.request import Destination, Request, host_of
from mirror.transport.response import Response
from mirror.transport.sessions import Sessions

_QUESTIONS = 192
"""That are with upstreams at the same time, up to their headers, or to the end of a small body."""
_QUESTIONS_WAITING = 2048
"""One that waits costs little, and others are done within moments: so many, rather than a refusal."""
REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MOST_REDIRECTS = 5
_REDIRECT_TRIES = 2
_PRIVACY_TTL = 60.0
_UNSENDABLE = re.compile(r"[^\x21-\x7e]")


class Transport:
    """Sends requests to upstreams; one per process. Everything it raises is of mirror.oci.errors.

    `is_global` decides which addresses count as public; `resolver` finds them (the system's by default); `clock` is
    Unix time, against which Retry-After dates are read. `streams`: bodies at most that callers are reading by
    themselves at the same time; for these there are connections besides those for questions, whose answers are short.
    `gate`: what is known of hosts already.
    """

    def __init__(
        self,
        timeouts: Timeouts,
        *,
        metrics: Metrics,
        resolver: AbstractResolver | None = None,
        is_global: Callable[[str], bool] | None = None,
        clock: Callable[[], float] = time.time,
        streams: int = 384,
        gate: Gate | None = None,
    ) -> None:
        self.timeouts = timeouts
        self._observe = _Observer(metrics)
        self._is_global = is_global or addresses.is_global
        self._questions = Slots(_QUESTIONS, _QUESTIONS_WAITING, what="questions")
        self._sessions = Sessions(timeouts, resolver, self._is_global, connections=streams + _QUESTIONS)
        self._private = Memory(max_keys=1024)
        self._gate = gate or Gate(timeouts, metrics, clock)
        self._probes = Probes()
        self._backoff = 0.05 * timeouts.try_

    async def send(self, request: Request, deadline: Deadline) -> Response:
        """The answer to `request`: any status but 408, 429 and 5xx (501 and 505 are answers, too).

        Connect errors, resets, timeouts, those statuses and broken bodies that are read whole are tried again with
        full-jitter backoff; pauses that the host asked for are waited out. Of a host that is known not to answer, who
        comes then hears so at once. Raises UpstreamUnavailable and its children: reason timeout, throttled,
        unreachable, local, dns, tls, reset, stall, slow, size, status, protocol, redirect, breaker, queue, stopped.
        """
        tried, effort = 0, Effort()
        heard: UpstreamUnavailable | None = None
        if deadline.expired:
            raise UpstreamTimeout(f"{request.asked}: no time left to ask")
        while True:
            try:
                return await self._attempt(request, effort, deadline)
            except UpstreamUnavailable as error:
                tried += 1
                if heard is None or error.reason != "breaker":
                    heard = error  # what it met with itself says more than that others fared no better
                delay = random.uniform(0, self._backoff * 2**tried)  # noqa: S311 (not a secret)
                if effort.over or not _again(error, tried, request, deadline) or delay >= deadline.remaining():
                    raise heard from None
                self._observe.retried(request, error.reason)
            await asyncio.sleep(delay)

    def check_pause(self, url: URL, deadline: Deadline) -> None:
        """Raises UpstreamThrottled, or UpstreamUnavailable after a 503, where the host's pause outlasts `deadline`."""
        self._gate.check_pause(url, deadline)

    def is_silent(self, url: URL) -> bool:
        """Whether the host is known not to answer."""
        return self._gate.is_silent(url)

    async def close(self) -> None:
        """Closes every connection."""
        await self._probes.close()
        await self._sessions.close()
        await self._private.close()

    async def _attempt(self, request: Request, effort: Effort, deadline: Deadline) -> Response:
        self._gate.check(
            request.url, request.kind, effort, deadline
        )  # who will not be let through need not wait for a place
        half = deadline.remaining() / 2  # a turn is of no use without time to ask
        place = await self._questions.take(host_of(request.url), half)
        try:
            return await self._ask_through(request, effort, deadline)
        finally:
            place.release()

    async def _ask_through(self, request: Request, effort: Effort, deadline: Deadline) -> Response:
        hop = _Hop(request.url, request.authorization, request.led_by)
        for _ in range(_MOST_REDIRECTS + 1):
            response = await self._ask(request, hop, effort, deadline)
            if response.status not in REDIRECTS or not request.follow:
                return await self._finish(request, response, deadline)
            hop = hop.redirected_to(_target(request, response))
        raise UpstreamUnavailable(f"{request.asked}: more than {_MOST_REDIRECTS} redirects", reason="redirect")

    async def _ask(self, request: Request, hop: _Hop, effort: Effort, deadline: Deadline) -> Response:
        """One answer from one address; any body that is not wanted has been read."""
        passage = await self._gate.enter(hop.url, request.kind, request.destination.name.entry, effort, deadline)
        if not (effort.over and passage.is_probe):
            return await self._exchange(request, hop, passage, deadline)
        exchange = self._exchange(request, hop, passage, Deadline.after(self.timeouts.try_))
        response = await self._probes.run(exchange, min(self._gate.interval, deadline.remaining()))
        if response is None:
            raise passage.refusal()
        return response

    async def _exchange(self, request: Request, hop: _Hop, passage: Passage, deadline: Deadline) -> Response:
        session = self._sessions.get(guarded=await self._guarded(request.destination, hop))
        tls = await self._tls(request.destination)
        asked = f"{request.asked}, redirected to {host_of(hop.url)}" if hop.redirected else request.asked
        headers = dict(request.headers)
        if hop.authorization is not None:
            headers["Authorization"] = hop.authorization
        began = time.monotonic()
        try:
            async with asyncio.timeout(min(self.timeouts.try_, deadline.remaining())):
                answer = await session.request(
                    request.method, hop.url, headers=headers, data=request.form, allow_redirects=False, ssl=tls
                )
        except CAUGHT as error:
            failure = translate(error, asked, hop.led_by or "redirect")
            self._observe.failed(request, failure.reason)
            passage.unanswered(failure.reason, time.monotonic() - began, deadline)
            raise failure from None
        received = self._observe.answered(request, answer.status, time.monotonic() - began)
        response = Response(answer, asked, self.timeouts, received, redirected=hop.redirected)
        if not hop.redirected:
            self._observe.quota(request, response)
        if request.method == "HEAD":
            response.close()
        elif not 200 <= response.status < 300:
            await response.drain(within=min(self.timeouts.try_ / 5, deadline.remaining()))
        passage.answered(response)
        return response

    async def _finish(self, request: Request, response: Response, deadline: Deadline) -> Response:
        """The final answer of a chain, or the error that it means."""
        status = response.status
        if response.redirected and 400 <= status < 500 and status not in request.heeded:
            raise RedirectExpired(f"{response.asked}: answered {status}")
        if 200 <= status < 300 and request.read is not None:
            await deadline.bound(response.read(request.read), request.asked)
        return response

    async def _tls(self, destination: Destination) -> ssl.SSLContext | bool:
        try:
            return await self._sessions.tls(destination.settings)
        except OSError as error:
            problem = error.strerror or type(error).__name__
            raise UpstreamUnavailable(
                f"{destination.url.raw_host}: ca_file {destination.settings.ca_file} cannot be used: {problem}",
                reason="tls",
            ) from error

    async def _guarded(self, destination: Destination, hop: _Hop) -> bool:
        """Whether this hop may reach global addresses only; a literal one is checked here, resolvers never see it."""
        if hop.led_by is None or destination.settings.allow_private or await self._is_private(destination):
            return False
        literal = literal_of(hop.url.raw_host or "")
        if literal is not None and not self._is_global(literal):
            raise UpstreamUnavailable(
                f"{destination.url.raw_host} is public and led us to {host_of(hop.url)}, which is not; "
                "allow_private permits it",
                reason=hop.led_by,
            )
        return True

    async def _is_private(self, destination: Destination) -> bool:
        """Whether the operator pointed us at a host of a private network, so that it may lead us to others there."""
        host = destination.url.raw_host or ""
        if (literal := literal_of(host)) is not None:
            return not self._is_global(literal)
        known = await self._private.get((host,))
        if known is None:
            try:
                async with asyncio.timeout(self.timeouts.connect_address):
                    found = await self._sessions.resolver.resolve(host, 0, socket.AF_UNSPEC)
            except OSError:
                return False  # not known: the stricter rule, and not remembered
            known = not all(self._is_global(result["host"]) for result in found)
            await self._private.set((host,), known, _PRIVACY_TTL)
        return bool(known)


@dataclass(frozen=True, slots=True)
class _Hop:
    """Where one request of a chain goes, what it may show there, and who sent us (None: the operator)."""

    url: URL
    authorization: str | None = field(repr=False)
    led_by: str | None
    redirected: bool = False

    def redirected_to(self, target: URL) -> _Hop:
        authorization = self.authorization if target.origin() == self.url.origin() else None
        return _Hop(target, authorization, self.led_by or "redirect", redirected=True)


class _Observer:
    """Counts what was asked and what came, by configured entry."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def answered(self, request: Request, status: int, seconds: float) -> Counter:
        """Notes headers; returns the counter for the body's bytes."""
        entry = request.destination.name.entry
        self._metrics.upstream_requests.labels(entry, request.kind, str(status)).inc()
        self._metrics.upstream_first_byte.labels(entry).observe(seconds)
        self._metrics.upstream_up.labels(entry).set(status < 500)
        return self._metrics.upstream_bytes.labels(entry, request.kind)

    def failed(self, request: Request, reason: str) -> None:
        """Notes that no headers came."""
        entry = request.destination.name.entry
        self._metrics.upstream_requests.labels(entry, request.kind, reason).inc()
        self._metrics.upstream_up.labels(entry).set(0)

    def retried(self, request: Request, reason: str) -> None:
        """Notes that the request is sent again."""
        self._metrics.upstream_retries.labels(request.destination.name.entry, reason).inc()

    def quota(self, request: Request, response: Response) -> None:
        """Notes what Docker Hub says of its limit: `100;w=21600`."""
        entry = request.destination.name.entry
        for header, gauge in (
            ("ratelimit-limit", self._metrics.upstream_quota_limit),
            ("ratelimit-remaining", self._metrics.upstream_quota_remaining),
        ):
            text = response.headers.get(header, "").partition(";")[0].strip()
            if text.isascii() and text.isdigit() and len(text) < 16:
                gauge.labels(entry).set(int(text))


def _again(error: UpstreamUnavailable, tried: int, request: Request, deadline: Deadline) -> bool:
    """Whether asking again may help and the deadline leaves room for what the upstream asked us to wait."""
    if isinstance(error, RedirectExpired):
        # Signed URLs are bound to a method, usually GET: a HEAD is refused for good.
        return request.method == "GET" and tried < min(request.tries, _REDIRECT_TRIES)
    if error.reason not in RETRIED or tried >= request.tries:
        return False
    return error.retry_after is None or error.retry_after < deadline.remaining()


def _target(request: Request, response: Response) -> URL:
    """Where a redirect leads. Raises UpstreamUnavailable, reason redirect, for what must not be followed."""
    target = _location(response)
    if target is None or target.scheme not in ("http", "https") or "@" in target.raw_authority:
        raise UpstreamUnavailable(f"{response.asked}: redirects to nowhere that we can follow", reason="redirect")
    if response.url.scheme == "https" and target.scheme == "http":
        raise UpstreamUnavailable(f"{response.asked}: redirects from https to http", reason="redirect")
    if request.check_redirect is not None:
        request.check_redirect(target)
    return target


def _location(response: Response) -> URL | None:
    """The Location as an absolute URL, byte for byte: signed URLs do not survive requoting."""
    text = response.headers.get("Location", "").strip()
    if not text:
        return None
    try:
        # Only what cannot stand in a request line is encoded.
        target = URL(_UNSENDABLE.sub(_encode, text), encoded=True)
        if not target.absolute:
            target = response.url.join(target)
        target.origin()
        # Only now its port is read, which may be none.
        return target if 0 < len(target.raw_host or "") <= LONGEST_HOST else None
    except ValueError:
        return None


def _encode(match: re.Match[str]) -> str:
    return quote(match[0].encode("utf-8", "surrogateescape"))

"""The admin port: is the process alive, may it be sent traffic, what has it counted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

import msgspec
from aiohttp import web
from prometheus_client import Metric, exposition

from mirror.api.admission import Admission
from mirror.api.connections import HttpServer, Limits
from mirror.api.listener import Listener
from mirror.api.middleware import Traffic
from mirror.api.responses import SERVER
from mirror.config import Timeouts
from mirror.metrics import Metrics

_CONNECTIONS = 256
"""Few clients come here, and they must have a place when the registry port is crowded."""
_CANCEL_SECONDS = 0.1
_METHODS = ("GET", "HEAD")
_ALLOW = ", ".join(_METHODS)


class Samples(Protocol):
    """What has been counted: a registry, or the sum of several."""

    def collect(self) -> Iterable[Metric]: ...


class State(msgspec.Struct, omit_defaults=True):
    """What is to be known of us before we are sent traffic: the body of `/readyz`."""

    ready: bool
    draining: bool
    degraded: list[str]
    workers: dict[str, int] | None = None
    """Where there are any: how many of them are `serving`, and how many there should be (`of`)."""


class AdminApi:
    """`/livez`, `/readyz` and `/metrics`, on a port that clients do not reach."""

    def __init__(self, scrape: Callable[[], Awaitable[Samples]], state: Callable[[], State]) -> None:
        self._scrape = scrape
        self._state = state
        self._answers: dict[str, Callable[[web.BaseRequest], Awaitable[web.Response]]] = {
            "/livez": self.livez,
            "/readyz": self.readyz,
            "/metrics": self.metrics,
        }

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Any request."""
        answer = self._answers.get(request.path)
        if answer is None:
            response = web.Response(status=404, text="there are /livez, /readyz and /metrics here\n")
        elif request.method not in _METHODS:
            response = web.Response(status=405, text="nothing can be changed here\n", headers={"Allow": _ALLOW})
        else:
            response = await answer(request)
        response.headers["Server"] = SERVER
        return response

    async def livez(self, _: web.BaseRequest) -> web.Response:
        """200 while the event loop turns."""
        return web.Response(text="ok\n")

    async def readyz(self, _: web.BaseRequest) -> web.Response:
        """200 while we take traffic, also with a broken disk: a mirror that goes unready sends every node upstream."""
        state = self._state()
        return web.Response(
            status=200 if state.ready else 503, body=msgspec.json.encode(state), content_type="application/json"
        )

    async def metrics(self, request: web.BaseRequest) -> web.Response:
        """Every metric, in the format that the scraper prefers."""
        samples = await self._scrape()
        try:
            encode, content_type = exposition.choose_encoder(request.headers.get("Accept", ""))
        except (TypeError, ValueError):  # the library trusts what it is sent
            encode, content_type = exposition.choose_encoder("")
        return web.Response(body=encode(samples), headers={"Content-Type": content_type})


def admin_listener(api: AdminApi, timeouts: Timeouts, metrics: Metrics, traffic: Traffic) -> Listener:
    """The port to open for `api`."""
    admission = Admission(_CONNECTIONS, _CONNECTIONS, is_proxy=lambda _: False, refused=metrics.connections_refused)
    server = HttpServer(
        api.handle,
        malformed=traffic.malformed,
        limits=Limits(request=timeouts.request, idle=timeouts.idle, stall=timeouts.client),
        admission=admission,
    )
    return Listener(web.ServerRunner(server, shutdown_timeout=_CANCEL_SECONDS))

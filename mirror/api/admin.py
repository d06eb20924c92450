"""The admin port: is the process alive, may it be sent traffic, what has it counted."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from aiohttp import web
from prometheus_client import exposition

from mirror.api.responses import SERVER
from mirror.metrics import Metrics
from mirror.store.trouble import Trouble

_METHODS = ("GET", "HEAD")
_ALLOW = ", ".join(_METHODS)


class AdminApi:
    """`/livez`, `/readyz` and `/metrics`, on a port that clients do not reach."""

    def __init__(self, metrics: Metrics, trouble: Trouble, draining: Callable[[], bool]) -> None:
        self._metrics = metrics
        self._trouble = trouble
        self._draining = draining
        self._answers: dict[str, Callable[[web.BaseRequest], web.Response]] = {
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
            response = answer(request)
        response.headers["Server"] = SERVER
        return response

    def livez(self, _: web.BaseRequest) -> web.Response:
        """200 while the event loop turns."""
        return web.Response(text="ok\n")

    def readyz(self, _: web.BaseRequest) -> web.Response:
        """200 while we take traffic, also with a broken disk: a mirror that goes unready sends every node upstream."""
        draining = self._draining()
        body = {"ready": not draining, "draining": draining, "degraded": self._trouble.reasons}
        return web.Response(
            status=503 if draining else 200, body=msgspec.json.encode(body), content_type="application/json"
        )

    def metrics(self, request: web.BaseRequest) -> web.Response:
        """Every metric, in the format that the scraper prefers."""
        try:
            encode, content_type = exposition.choose_encoder(request.headers.get("Accept", ""))
        except (TypeError, ValueError):  # the library trusts what it is sent
            encode, content_type = exposition.choose_encoder("")
        return web.Response(body=encode(self._metrics.registry), headers={"Content-Type": content_type})

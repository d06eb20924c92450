"""The admin port: is the process alive, may it be sent traffic, what has it counted."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from aiohttp import web
from prometheus_client import exposition

from mirror.metrics import Metrics
from mirror.store.trouble import Trouble


class AdminApi:
    """`/livez`, `/readyz` and `/metrics`, on a port that clients do not reach."""

    def __init__(self, metrics: Metrics, trouble: Trouble, draining: Callable[[], bool]) -> None:
        self._metrics = metrics
        self._trouble = trouble
        self._draining = draining

    def add_routes(self, application: web.Application) -> None:
        """Adds what the admin port serves."""
        application.router.add_get("/livez", self.livez)
        application.router.add_get("/readyz", self.readyz)
        application.router.add_get("/metrics", self.metrics)

    async def livez(self, _: web.Request) -> web.Response:
        """200 while the event loop turns."""
        return web.Response(text="ok\n")

    async def readyz(self, _: web.Request) -> web.Response:
        """200 while we take traffic, also with a broken disk: a mirror that goes unready sends every node upstream."""
        draining = self._draining()
        body = {"ready": not draining, "draining": draining, "degraded": self._trouble.reasons}
        return web.Response(
            status=503 if draining else 200, body=msgspec.json.encode(body), content_type="application/json"
        )

    async def metrics(self, request: web.Request) -> web.Response:
        """Every metric, in the format that the scraper prefers."""
        try:
            encode, content_type = exposition.choose_encoder(request.headers.get("Accept", ""))
        except (TypeError, ValueError):  # the library trusts what it is sent
            encode, content_type = exposition.choose_encoder("")
        return web.Response(body=encode(self._metrics.registry), headers={"Content-Type": content_type})

"""A whole mirror in the test's own event loop, in front of fake upstreams, with a client that remembers nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
from multidict import CIMultiDictProxy

from mirror.config import Address, Settings, Storage, Timeouts, UpstreamSettings
from mirror.metrics import Metrics
from mirror.oci.digest import Digest
from mirror.server import Mirror
from mirror.store.files import Files
from tests.certificates import client_tls
from tests.upstream import FakeRegistry

SHRINK = 20
"""Time limits in tests are the defaults divided by this."""

HEALTHY = {"try_": 0.8, "first_byte": 2.0, "cold_head": 0.7, "stale_after": 0.5, "request": 10.0, "idle": 20.0}
"""Those that the healthy have to keep on a busy machine: else a test would count what it did not mean."""


def short_timeouts(**changes: float) -> Timeouts:
    """The default time limits at 1/20, except HEALTHY; `min_rate` stays as it is, per second."""
    defaults = Timeouts()
    seconds = {name: getattr(defaults, name) / SHRINK for name in Timeouts.model_fields if name != "min_rate"}
    return Timeouts(**{**seconds, "min_rate": defaults.min_rate, **HEALTHY, **changes})


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, read whole."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes

    @property
    def cache(self) -> str | None:
        """The X-Cache header."""
        return self.headers.get("X-Cache")

    @property
    def code(self) -> str:
        """The first error code of the envelope."""
        return str(json.loads(self.body)["errors"][0]["code"])


class RunningMirror:
    """A mirror with its data in `path`; `upstreams` maps names to fake registries, docker.io being the default one.

    `files` stands below the store, `clock` is its wall clock, `wiring` are further arguments of mirror.server.Mirror.
    """

    def __init__(
        self,
        path: Path,
        upstreams: Mapping[str, FakeRegistry | UpstreamSettings],
        *,
        files: Files | None = None,
        clock: Callable[[], float] | None = None,
        storage: Mapping[str, Any] | None = None,
        timeouts: Timeouts | None = None,
        wiring: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        self.settings = Settings(
            listen=Address("127.0.0.1", 0),
            admin_listen=Address("127.0.0.1", 0),
            # Without a scrub: it would read, and be counted, where a test looks at what a request does to the disk.
            storage=Storage(
                **{"path": path, "max_size": 1 << 30, "min_free": "0%", "scrub_rate": 0, **(storage or {})}
            ),
            timeouts=timeouts or short_timeouts(),
            upstreams={
                name: UpstreamSettings(url=upstream.url) if isinstance(upstream, FakeRegistry) else upstream
                for name, upstream in upstreams.items()
            },
            **settings,
        )
        self._wiring: dict[str, Any] = {**(wiring or {})}
        if files is not None:
            self._wiring["files"] = files
        if clock is not None:
            self._wiring["clock"] = clock
        self._session: aiohttp.ClientSession | None = None
        self.app: Mirror

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Builds a fresh application over the same data directory."""
        self.app = Mirror(self.settings, metrics=Metrics(), **self._wiring)
        try:
            await self.app.start()
        except BaseException:
            await self.app.stop()
            raise
        connector = aiohttp.TCPConnector(limit=0, ssl=client_tls())
        self._session = aiohttp.ClientSession(
            auto_decompress=False, connector=connector, cookie_jar=aiohttp.DummyCookieJar()
        )

    async def stop(self, **how: float) -> None:
        """A clean stop."""
        if self._session is not None:
            await self._session.close()
        await self.app.stop(**how)

    async def reload(self, **changes: Any) -> list[str]:
        """Goes on under another configuration; returns the keys that need a restart."""
        self.settings = self.settings.model_copy(update=changes)
        return await self.app.reload(self.settings)

    async def restart(self) -> None:
        """A clean stop and a start."""
        await self.stop()
        await self.start()

    @property
    def url(self) -> str:
        """Of the registry API, without a final slash."""
        scheme = "https" if self.settings.tls.certificate is not None else "http"
        return f"{scheme}://127.0.0.1:{self.app.port}"

    @property
    def admin_url(self) -> str:
        """Of the admin port."""
        return f"http://127.0.0.1:{self.app.admin_port}"

    @property
    def session(self) -> aiohttp.ClientSession:
        """For requests that `get` cannot make."""
        assert self._session is not None
        return self._session

    async def get(self, path: str, *, method: str = "GET", **headers: str) -> Reply:
        """Asks for a path such as `/v2/library/demo/manifests/1`; header names with `_` for `-`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.request(method, self.url + path, headers=named) as response:
            return Reply(response.status, response.headers, await response.read())

    async def manifest(self, repository: str, reference: str | Digest, **options: Any) -> Reply:
        """GET (or `method=`) of a manifest."""
        return await self.get(f"/v2/{repository}/manifests/{reference}", **options)

    async def blob(self, repository: str, digest: Digest | str, **options: Any) -> Reply:
        """GET (or `method=`) of a blob."""
        return await self.get(f"/v2/{repository}/blobs/{digest}", **options)

    async def together(self, clients: int, path: str) -> list[Reply]:
        """The same GET by many clients at once."""
        return await asyncio.gather(*(self.get(path) for _ in range(clients)))

    def metric(self, name: str, **labels: str) -> float:
        """The value of a sample, 0.0 where it was never touched; all samples with these labels are added up."""
        total = 0.0
        for family in self.app.metrics.registry.collect():
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    total += sample.value
        return total

    async def quiet(self, limit: float = 5.0) -> None:
        """Waits until no download is under way, so that what they leave behind can be looked at."""
        async with asyncio.timeout(limit):
            while running := self.app.downloads.all:
                await asyncio.gather(*(download.wait() for download in running))

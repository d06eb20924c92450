"""What is built anew from each configuration: whom we ask, under which rules, and how requests are answered by that."""

from __future__ import annotations

import time
from collections.abc import Callable

from aiohttp.abc import AbstractResolver

from mirror.api.content import ContentApi
from mirror.api.listings import ListingsApi
from mirror.api.middleware import Traffic
from mirror.api.ready import ReadyAnswers
from mirror.api.registry import RegistryApi
from mirror.api.sender import Sender
from mirror.auth import Authenticator
from mirror.cache import Cache
from mirror.config import Settings
from mirror.download import PACED, Downloads, Lanes, Tools
from mirror.memory import Key, Memory
from mirror.metrics import Metrics
from mirror.pull import (
    PROOFS,
    BlobPuller,
    Lists,
    ManifestAsker,
    ManifestPuller,
    Permissions,
    ReferrersPuller,
    Renewals,
    TagsPuller,
)
from mirror.routing import Router
from mirror.transport import Transport
from mirror.upstream import Upstreams

_SECRET_BYTES = 16 << 20
"""Of tokens and challenges: how long one is, and the names by which it is found, is an upstream's choice."""


class Engine:
    """Answers registry requests from `cache` and the upstreams; `registry` is the way in, `close` the end.

    `router` says what `cache` is to know of the upstreams.
    """

    def __init__(
        self,
        settings: Settings,
        router: Router,
        cache: Cache,
        traffic: Traffic,
        sender: Sender,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.time,
        resolver: AbstractResolver | None = None,
        is_global: Callable[[str], bool] | None = None,
    ) -> None:
        timeouts = settings.timeouts

        # Whom we ask.
        self._transport = Transport(
            timeouts,
            metrics=metrics,
            resolver=resolver,
            is_global=is_global,
            clock=clock,
            streams=settings.max_downloads + PACED + PROOFS,
        )
        self._secrets = Memory(max_keys=10_000, limit=_SECRET_BYTES, weigh=_secret_weight)
        authenticator = Authenticator(self._transport, self._secrets, metrics=metrics, clock=clock)
        upstreams = Upstreams(router, self._transport, authenticator)

        # What is done with it.
        lanes = Lanes(settings.max_downloads, lambda name: router.settings(name).max_downloads, metrics)
        tools = Tools(upstreams, cache, metrics, timeouts, lanes)
        self.downloads = Downloads(tools, abandon_below=settings.abandon_below)
        self.renewals = Renewals(cache, router)
        self._permissions = Permissions(cache, upstreams, self.renewals, metrics, timeouts.first_byte)
        asker = ManifestAsker(cache, upstreams, metrics, timeouts.first_byte)
        self._manifests = ManifestPuller(cache, asker, self.renewals, router, metrics, timeouts)
        blobs = BlobPuller(cache, self.downloads, self._permissions, metrics, timeouts)
        self._lists = Lists(cache, router, metrics, timeouts, upstreams.silence)
        tags = TagsPuller(cache, upstreams, self._lists, timeouts.first_byte)
        referrers = ReferrersPuller(cache, upstreams, self._manifests, self._lists, timeouts.first_byte)

        # Who asks us.
        content = ContentApi(self._manifests, blobs, traffic, sender)
        self.registry = RegistryApi(router, content, ListingsApi(tags, referrers))
        self.ready = ReadyAnswers(clock, by_host=router.has_aliases)
        """Answers made by this configuration: `traffic.ready` while it counts."""

    async def close(self) -> None:
        """Stops what is being asked, and closes every connection to an upstream; after the last download."""
        await self.renewals.close()
        await self._permissions.close()
        await self._lists.close()
        await self._manifests.close()
        await self._transport.close()
        await self._secrets.close()


def _secret_weight(key: Key, value: object) -> int:
    return sum(map(len, key)) + len(value if isinstance(value, str) else repr(value))

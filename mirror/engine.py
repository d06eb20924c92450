"""What is built anew from each configuration: whom we ask, under which rules, and how requests are answered by that."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from aiohttp import web
from aiohttp.abc import AbstractResolver

from mirror.api.content import ContentApi
from mirror.api.listings import ListingsApi
from mirror.api.middleware import Traffic
from mirror.api.peer import PeerApi
from mirror.api.ready import ReadyAnswers
from mirror.api.registry import RegistryApi
from mirror.api.sender import Sender
from mirror.auth import Authenticator
from mirror.cache import Cache
from mirror.config import Settings
from mirror.download import PACED, Downloads, Flights, Lanes, Tools
from mirror.memory import Key, Memory
from mirror.metrics import Metrics
from mirror.peers import FarUpstreams, Onlooker, Peers
from mirror.pull import (
    PROOFS,
    Asker,
    BlobPuller,
    FarAsker,
    FarWitness,
    Lists,
    ListsElsewhere,
    ManifestAsker,
    ManifestPuller,
    NearWitness,
    Permissions,
    ReferrersPuller,
    Renewals,
    TagsPuller,
    Witness,
    silence_by_owner,
)
from mirror.routing import Router, Target, UpstreamName
from mirror.transport import Transport
from mirror.transport.gate import Gate
from mirror.upstream import Upstreams

T = TypeVar("T")
_HOP = 0.95
"""Share of `first_byte` that the asking itself has where there are several workers: what came of it has to cross to who
waits while that one still does, or another error would be told."""
_SECRET_BYTES = 16 << 20
"""Of tokens and challenges: how long one is, and the names by which it is found, is an upstream's choice."""


class Inheritance:
    """What outlives a configuration: what upstreams have told us, whose turn it is, and what is under way."""

    def __init__(self, settings: Settings, router: Router, metrics: Metrics, clock: Callable[[], float]) -> None:
        self.gate = Gate(settings.timeouts, metrics, clock)
        self.secrets = Memory(max_keys=10_000, limit=_SECRET_BYTES, weigh=_secret_weight)
        self.lanes = Lanes(settings.max_downloads, _share(router), metrics)
        self.flights = Flights()
        self._router = router

    def adopt(self, settings: Settings, router: Router) -> None:
        """Goes on under another configuration."""
        before, self._router = self._router, router
        self.gate.adjust(settings.timeouts)
        self.lanes.adjust(settings.max_downloads, _share(router))
        self.flights.part(lambda upstream: before.settings(upstream).url != router.settings(upstream).url)

    async def close(self) -> None:
        """Forgets the secrets."""
        await self.secrets.close()


class Engine:
    """Answers registry requests from `cache` and the upstreams; `handle` is the way in, `close` the end.

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
        inheritance: Inheritance,
        *,
        clock: Callable[[], float] = time.time,
        resolver: AbstractResolver | None = None,
        is_global: Callable[[str], bool] | None = None,
        neighbours: Neighbours | None = None,
    ) -> None:
        """`neighbours`: the workers of this machine, where there is more than one."""
        timeouts = settings.timeouts

        # Whom we ask.
        self._transport = Transport(
            timeouts,
            metrics=metrics,
            resolver=resolver,
            is_global=is_global,
            clock=clock,
            streams=settings.max_downloads + PACED + PROOFS,
            gate=inheritance.gate,
        )
        self._authenticator = Authenticator(self._transport, inheritance.secrets, metrics=metrics, clock=clock)
        upstreams = Upstreams(router, self._transport, self._authenticator)

        # Or who asks them for us: where another worker is silent we do, and note nothing.
        self._peers = peers = (
            Peers(neighbours.names, neighbours.me, metrics, timeouts.peer) if neighbours is not None else None
        )
        onlooker = Onlooker(cache, router)
        asking = timeouts if peers is None else timeouts.model_copy(update={"first_byte": _HOP * timeouts.first_byte})
        silence = silence_by_owner(peers, router, upstreams.silence)

        # What is done with it.
        tools = Tools(upstreams, cache, metrics, asking, inheritance.lanes)
        self.downloads = Downloads(
            tools,
            abandon_below=settings.abandon_below,
            flights=inheritance.flights,
            peers=peers,
            far_tools=(
                Tools(FarUpstreams(upstreams, peers), onlooker, metrics, asking, inheritance.lanes) if peers else None
            ),
        )
        self.renewals = Renewals(cache, router)
        witness: Callable[[Target], Witness] = _chosen(
            peers,
            NearWitness(cache, upstreams, metrics),
            lambda peers: FarWitness(peers, NearWitness(onlooker, upstreams, metrics)),
        )
        self._permissions = Permissions(cache, witness, self.renewals, asking.first_byte)
        asker: Callable[[Target], Asker] = _chosen(
            peers,
            ManifestAsker(cache, upstreams, metrics, asking.first_byte),
            lambda peers: FarAsker(peers, ManifestAsker(onlooker, upstreams, metrics, asking.first_byte), router),
        )
        self._manifests = ManifestPuller(cache, asker, self.renewals, router, metrics, timeouts)
        blobs = BlobPuller(cache, self.downloads, self._permissions, metrics, timeouts)
        alone = Lists(onlooker, router, metrics, timeouts, upstreams.silence)
        self._lists = Lists(
            cache, router, metrics, timeouts, silence, ListsElsewhere(peers, alone) if peers is not None else None
        )
        tags = TagsPuller(cache, upstreams, self._lists, timeouts.first_byte, asking.first_byte)
        referrers = ReferrersPuller(
            cache, upstreams, self._manifests, self._lists, timeouts.first_byte, asking.first_byte
        )

        # Who asks us.
        content = ContentApi(self._manifests, blobs, traffic, sender)
        self._registry = RegistryApi(router, content, ListingsApi(tags, referrers))
        self.ready = ReadyAnswers(clock, by_host=router.has_aliases)
        """Answers made by this configuration: `traffic.ready` while it counts."""
        self.peer = PeerApi(router, cache, upstreams, self._manifests, tags, referrers, self._permissions, blobs)

        self._users = 0
        self._unused = asyncio.Event()
        self._unused.set()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answers any request. Raises MirrorError, for what is around it to answer, and ClientGone."""
        with self.in_use():
            return await self._registry.handle(request)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keeps it open while somebody needs it."""
        self._users += 1
        self._unused.clear()
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._unused.set()

    async def outlived(self) -> None:
        """Waits until nobody needs it: each request that came to it is answered, and its downloads are over."""
        while self._users or self.downloads.flying:
            await self._unused.wait()
            await self.downloads.landed()

    async def close(self) -> None:
        """Stops what is being asked, and closes every connection to an upstream; after the last download."""
        await self.renewals.close()
        await self._permissions.close()
        await self._lists.close()
        await self._manifests.close()
        if self._peers is not None:
            await self._peers.close()
        await self._authenticator.close()
        await self._transport.close()


def _share(router: Router) -> Callable[[UpstreamName], int | None]:
    """The most downloads of an upstream, where it has a number of its own."""
    return lambda upstream: router.settings(upstream).max_downloads


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The workers of a machine: the names of their Unix sockets, by slot, and which slot is ours."""

    names: tuple[str, ...]
    me: int


def _chosen(peers: Peers | None, near: T, far: Callable[[Peers], T]) -> Callable[[Target], T]:
    """Who asks a target's upstream: `near` where it is ours."""
    if peers is None:
        return lambda _: near
    others, away = far(peers), peers.away
    return lambda target: others if away(target.upstream.host) else near


def _secret_weight(key: Key, value: object) -> int:
    return sum(map(len, key)) + len(value if isinstance(value, str) else repr(value))

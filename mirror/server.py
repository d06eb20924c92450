"""From settings to a wired application, served until SIGTERM."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import structlog
from aiohttp import web
from aiohttp.abc import AbstractResolver

from mirror import allocator, log
from mirror.api.admin import AdminApi, Samples, State, admin_listener
from mirror.api.admission import Admission, places, share
from mirror.api.connections import HttpServer, Limits
from mirror.api.forwarded import Proxies
from mirror.api.listener import Listener
from mirror.api.middleware import Traffic
from mirror.api.peer import PeerServer
from mirror.api.secured import Entrance
from mirror.api.sender import Sender
from mirror.api.tls import read_files
from mirror.cache import Cache
from mirror.config import Settings, take_over
from mirror.download import Downloads
from mirror.engine import Engine, Inheritance, Neighbours
from mirror.engines import Engines
from mirror.metrics import Metrics
from mirror.process import raise_descriptor_limit, run
from mirror.pull import Renewals
from mirror.routing import Router
from mirror.sockets import Listening
from mirror.store.blobs import BlobStore
from mirror.store.budget import Budget
from mirror.store.files import Files
from mirror.store.keeper import Keeper
from mirror.store.lodger import Lodger
from mirror.store.trouble import Trouble
from mirror.store.upkeep import Upkeep

_CANCEL_SECONDS = 0.1
"""What a handler that is cut off gets to let go of its things."""
_HANGING_SECONDS = 5.0
"""How long downloads that hang in the disk are waited for once their time is over."""
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Post:
    """A worker's place among the others: what it is given instead of opening it itself."""

    slot: int
    """From 0 on."""
    peers: tuple[str, ...]
    """By slot: names of the Unix sockets on which workers hear each other."""
    asked: Listening
    """The one on which this worker does."""
    listening: list[Listening]
    """The registry port, at which all of them listen."""
    store: Lodger


class Mirror:
    """One application: build it, `start` it, `stop` it. `port` and `admin_port` are known once it has started.

    `patience`: how long in seconds a client waits for our disk before the disk counts as failed. One that has a `post`
    keeps no store and has no admin port: its supervisor does.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        metrics: Metrics | None = None,
        files: Files | None = None,
        clock: Callable[[], float] = time.time,
        resolver: AbstractResolver | None = None,
        is_global: Callable[[str], bool] | None = None,
        patience: float = 10.0,
        post: Post | None = None,
    ) -> None:
        self.settings = self._begun = settings
        self.metrics = metrics or Metrics()
        self.port = 0
        self.admin_port = 0
        router = Router(settings)
        self._post = post
        self._store: Keeper | Lodger = (
            post.store if post else Keeper(settings.storage, self.metrics, files=files, clock=clock, patience=patience)
        )
        self._cache = Cache(
            self._store.records,
            self._store.blobs,
            self._store.room,
            self._store.trouble,
            router,
            generations=self._store.generations,
            clock=clock,
        )
        self._proxies = Proxies(settings.trusted_proxies)
        self.traffic = Traffic(self.metrics, self._proxies)
        sender = Sender(patience, self._store.trouble)
        inheritance = Inheritance(settings, router, self.metrics, clock)

        def build(settings: Settings, router: Router) -> Engine:
            return Engine(
                settings,
                router,
                self._cache,
                self.traffic,
                sender,
                self.metrics,
                inheritance,
                clock=clock,
                resolver=resolver,
                is_global=is_global,
                neighbours=Neighbours(post.peers, post.slot) if post else None,
            )

        self._engines = Engines(settings, router, inheritance, self._cache, self.traffic, self.metrics, build)
        self._peers = PeerServer(lambda: self._engines.current, settings.timeouts.peer)
        self._admin = AdminApi(self._scrape, self._state)
        self._listener: Listener | None = None
        self._admission: Admission
        self._entrance: Entrance
        self._closing = AsyncExitStack()
        """What is to be let go of, in the reverse order of its making."""
        self._stopping = asyncio.Lock()
        self._hurry = asyncio.Event()
        self._closing.push_async_callback(self._store.close)
        self._closing.push_async_callback(self._cache.close)
        self._closing.callback(sender.close)
        self._closing.push_async_callback(self._engines.close)
        self._closing.push_async_callback(self._peers.close)

    # Its parts, for whoever looks into one.

    @property
    def blobs(self) -> BlobStore:
        """The blobs on the disk."""
        return self._store.blobs

    @property
    def budget(self) -> Budget:
        """What they may take."""
        assert isinstance(self._store, Keeper), "a worker has no budget of its own"
        return self._store.budget

    @property
    def upkeep(self) -> Upkeep:
        """The store's chores."""
        assert isinstance(self._store, Keeper), "a worker has no chores"
        return self._store.upkeep

    @property
    def trouble(self) -> Trouble:
        """What is wrong with the disk."""
        return self._store.trouble

    @property
    def downloads(self) -> Downloads:
        """Those under way."""
        return self._engines.current.downloads

    @property
    def renewals(self) -> Renewals:
        """Links that are being asked for again."""
        return self._engines.current.renewals

    async def start(self) -> None:
        """Opens the store and listens. Raises StorageError where the data directory is not ours, OSError for a port.

        A start that fails or is cancelled leaves nothing open.
        """
        try:
            await self._store.open()
            self._store.begin()
            self._listener = self._keep(self._registry_listener(await self._context(self.settings)))
            if self._post is not None:
                await self._peers.open(self._post.asked)
                await self._listener.adopt(self._post.listening)
                return
            self.port = await self._listener.open(self.settings.listen)
            admin = admin_listener(self._admin, self.settings.timeouts, self.metrics, self.traffic)
            self.admin_port = await self._keep(admin).open(self.settings.admin_listen)
        except BaseException:
            await self.stop()
            raise
        self.metrics.start_time.set(time.time())
        most = places(self.settings.max_connections)
        _log.info(
            "serving",
            listen=str(self.settings.listen),
            port=self.port,
            admin_port=self.admin_port,
            max_connections=most,
        )

    async def stop(self, *, drain: float = 0.0, grace: float = 0.0) -> None:
        """Says that we are leaving for `drain` seconds, lets transfers run for `grace` seconds, writes state out.

        Idempotent, and safe after a start that went half way.
        """
        self.traffic.draining = True
        async with self._stopping:
            listener, self._listener = self._listener, None
            if listener is not None:
                await self._unless_hurried(asyncio.Event().wait(), drain)
                ends = asyncio.get_running_loop().time() + grace
                await self._finish_requests(listener, grace)
                # Other workers have clients, too.
                await self._unless_hurried(self._peers.idle(), max(0.0, ends - asyncio.get_running_loop().time()))
                await self._finish_downloads(max(0.0, ends - asyncio.get_running_loop().time()))
            await self._closing.aclose()

    async def reload(self, settings: Settings) -> list[str]:
        """Goes on under another configuration, and what it names in files; returns the keys that need a restart.

        What is under way ends as it began, no connection is lost, and what upstreams have told us is still known.
        Raises OSError and ValueError where the files for TLS cannot be used; nothing has changed then.
        """
        settings, restart = take_over(self._begun, settings)
        context = await self._context(settings)
        self._engines.adopt(settings)
        self._peers.adjust(settings.timeouts.peer)
        self._entrance.context = context
        self._entrance.server.adjust(_limits(settings))
        self._admission.adjust(*self._places(settings))
        self._proxies.adopt(settings.trusted_proxies)
        if isinstance(self._store, Keeper):
            self._store.adjust(settings.storage)
        self.settings = settings
        return restart

    def hurry(self) -> None:
        """Cuts the waiting of a running `stop` short; what is to be written still is."""
        self._hurry.set()

    # Starting.

    def _keep(self, listener: Listener) -> Listener:
        self._closing.push_async_callback(listener.close)
        return listener

    async def _context(self, settings: Settings) -> ssl.SSLContext | None:
        """What begins TLS with clients from now on. Raises OSError and ValueError."""
        pool = ThreadPoolExecutor(1, "certificates")
        try:
            context, ends = await asyncio.get_running_loop().run_in_executor(pool, read_files, settings.tls)
        finally:
            pool.shutdown(wait=False)
        self.metrics.certificate_expiry.set(ends)
        return context

    def _places(self, settings: Settings) -> tuple[int, int]:
        """How many connections this process takes, in all and from one address."""
        slots = len(self._post.peers) if self._post else 1
        return places(share(settings.max_connections, slots)), share(settings.max_connections_per_client, slots)

    def _registry_listener(self, context: ssl.SSLContext | None) -> Listener:
        self._admission = Admission(
            *self._places(self.settings),
            is_proxy=self._proxies.trusts,
            refused=self.metrics.connections_refused,
            present=self.metrics.connections,
        )
        server = HttpServer(
            self.traffic.around(self._engines.handle),
            at_once=self.traffic.at_once,
            malformed=self.traffic.malformed,
            limits=_limits(self.settings),
            admission=self._admission,
        )
        self._entrance = Entrance(server, context)
        return Listener(web.ServerRunner(server, shutdown_timeout=_CANCEL_SECONDS), self._entrance)

    async def _scrape(self) -> Samples:
        return self.metrics.registry

    def _state(self) -> State:
        draining = self.traffic.draining
        return State(ready=not draining, draining=draining, degraded=self._store.trouble.reasons)

    # Stopping.

    async def _finish_requests(self, listener: Listener, grace: float) -> None:
        """Closes the port and idle connections, then waits for those who are being served."""
        await listener.stop_accepting()
        if not await self._unless_hurried(self.traffic.idle(), grace):
            _log.warning("some transfers did not finish in time", grace=grace)
        await listener.close()  # cuts them off

    async def _finish_downloads(self, grace: float) -> None:
        await self._unless_hurried(self.downloads.finish(grace), grace)
        try:
            async with asyncio.timeout(_HANGING_SECONDS):
                await self.downloads.finish(0)
        except TimeoutError:
            _log.warning("some downloads could not be stopped: the disk does not answer")

    async def _unless_hurried(self, event: Awaitable[object], seconds: float) -> bool:
        """Waits for `event`, but for `seconds` at most, and no longer once there is a hurry; whether it came."""
        waits = [asyncio.ensure_future(event), asyncio.ensure_future(self._hurry.wait())]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            return waits[0].done()
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)


def _limits(settings: Settings) -> Limits:
    timeouts = settings.timeouts
    return Limits(request=timeouts.request, idle=timeouts.idle, stall=timeouts.client)


def serve(
    settings: Settings,
    read: Callable[[], Settings] | None = None,
    *,
    watched: Path | None = None,
    files: Files | None = None,
) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit code. Raises StorageError and OSError where it cannot start.

    `read` gives the configuration again on SIGHUP, or raises ConfigError; without it, only what it names is read again.
    So does a change of `watched`, the configuration's file, or of a file that it names.
    """
    allocator.set_up()
    metrics = Metrics()
    log.configure(level=settings.log_level, metrics_dropped=metrics.log_lines_dropped)
    raise_descriptor_limit()
    wanted, most = settings.max_connections, places(settings.max_connections)
    if most < wanted:
        _log.warning("the limit on open files allows fewer connections", max_connections=wanted, connections=most)
    return asyncio.run(run(Mirror(settings, metrics=metrics, files=files), read, watched=watched))

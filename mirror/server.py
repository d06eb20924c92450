"""From settings to a wired application, served until SIGTERM."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import structlog
from aiohttp import web
from aiohttp.abc import AbstractResolver

from mirror import __version__, allocator, log
from mirror.api.admin import AdminApi
from mirror.api.admission import Admission, places
from mirror.api.connections import Answer, AtOnce, HttpServer, Limits
from mirror.api.forwarded import Proxies
from mirror.api.listener import Listener
from mirror.api.middleware import Traffic
from mirror.api.secured import Entrance
from mirror.api.sender import Sender
from mirror.api.tls import server_context
from mirror.cache import Cache
from mirror.config import Settings
from mirror.download import Downloads
from mirror.engine import Engine
from mirror.metrics import Metrics
from mirror.pull import (
    Renewals,
)
from mirror.routing import Router
from mirror.store.blobs import BlobStore
from mirror.store.budget import Budget
from mirror.store.files import Files
from mirror.store.keeper import Keeper
from mirror.store.trouble import Trouble
from mirror.store.upkeep import Upkeep

_ADMIN_CONNECTIONS = 256
"""To the admin port, which has few clients, and must have a place for them when the other one is crowded."""
_MOST_DESCRIPTORS = 1 << 20
_CANCEL_SECONDS = 0.1
"""What a handler that is cut off gets to let go of its things."""
_HANGING_SECONDS = 5.0
"""How long threads that hang in the disk or in the resolver are waited for once everything is written."""
_log = structlog.get_logger()


class Mirror:
    """One application: build it, `start` it, `stop` it. `port` and `admin_port` are known once it has started.

    `patience`: how long in seconds a client waits for our disk before the disk counts as failed.
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
    ) -> None:
        self.settings = settings
        self.metrics = metrics or Metrics()
        self.port = 0
        self.admin_port = 0
        router = Router(settings)
        self._keeper = Keeper(settings.storage, self.metrics, files=files, clock=clock, patience=patience)
        self._cache = Cache(
            self._keeper.records,
            self._keeper.blobs,
            self._keeper.room,
            self._keeper.trouble,
            router,
            generations=self._keeper.generations,
            clock=clock,
        )
        self._proxies = Proxies(settings.trusted_proxies)
        self.traffic = Traffic(self.metrics, self._proxies)
        sender = Sender(patience, self._keeper.trouble)
        self._engine = Engine(
            settings,
            router,
            self._cache,
            self.traffic,
            sender,
            self.metrics,
            clock=clock,
            resolver=resolver,
            is_global=is_global,
        )
        self.traffic.ready = self._engine.ready
        self._admin = AdminApi(self.metrics, self._keeper.trouble, lambda: self.traffic.draining)
        self._listener: Listener | None = None
        self._entrance: Entrance | None = None
        self._closing = AsyncExitStack()
        """What is to be let go of, in the reverse order of its making."""
        self._stopping = asyncio.Lock()
        self._hurry = asyncio.Event()
        self._closing.push_async_callback(self._keeper.close)
        self._closing.push_async_callback(self._cache.close)
        self._closing.callback(sender.close)
        self._closing.push_async_callback(self._engine.close)

    # Its parts, for whoever looks into one.

    @property
    def blobs(self) -> BlobStore:
        """The blobs on the disk."""
        return self._keeper.blobs

    @property
    def budget(self) -> Budget:
        """What they may take."""
        return self._keeper.budget

    @property
    def upkeep(self) -> Upkeep:
        """The store's chores."""
        return self._keeper.upkeep

    @property
    def trouble(self) -> Trouble:
        """What is wrong with the disk."""
        return self._keeper.trouble

    @property
    def downloads(self) -> Downloads:
        """Those under way."""
        return self._engine.downloads

    @property
    def renewals(self) -> Renewals:
        """Links that are being asked for again."""
        return self._engine.renewals

    async def start(self) -> None:
        """Opens the store and listens. Raises StorageError where the data directory is not ours, OSError for a port.

        A start that fails or is cancelled leaves nothing open.
        """
        try:
            await self._keeper.open()
            self._keeper.begin()
            self._listener = self._keep(self._registry_listener())
            self.port = await self._listener.open(self.settings.listen)
            self.admin_port = await self._keep(self._admin_listener()).open(self.settings.admin_listen)
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
                await self._finish_downloads(max(0.0, ends - asyncio.get_running_loop().time()))
            await self._closing.aclose()

    def hurry(self) -> None:
        """Cuts the waiting of a running `stop` short; what is to be written still is."""
        self._hurry.set()

    # Starting.

    def _keep(self, listener: Listener) -> Listener:
        self._closing.push_async_callback(listener.close)
        return listener

    def _registry_listener(self) -> Listener:
        admission = Admission(
            places(self.settings.max_connections),
            self.settings.max_connections_per_client,
            is_proxy=self._proxies.trusts,
            refused=self.metrics.connections_refused,
            present=self.metrics.connections,
        )
        server = self._http_server(self.traffic.around(self._engine.registry.handle), admission, self.traffic.at_once)
        context = server_context(self.settings.tls)
        self._entrance = Entrance(server, context) if context is not None else None
        return Listener(_runner(server), self._entrance)

    def _admin_listener(self) -> Listener:
        admission = Admission(
            _ADMIN_CONNECTIONS,
            _ADMIN_CONNECTIONS,
            is_proxy=self._proxies.trusts,
            refused=self.metrics.connections_refused,
        )
        return Listener(_runner(self._http_server(self._admin.handle, admission)))

    def _http_server(self, answer: Answer, admission: Admission, at_once: AtOnce | None = None) -> HttpServer:
        timeouts = self.settings.timeouts
        return HttpServer(
            answer,
            at_once=at_once,
            malformed=self.traffic.malformed,
            limits=Limits(request=timeouts.request, idle=timeouts.idle, stall=timeouts.client),
            admission=admission,
        )

    # Stopping.

    async def _finish_requests(self, listener: Listener, grace: float) -> None:
        """Closes the port and idle connections, then waits for those who are being served."""
        await listener.stop_accepting()
        if not await self._unless_hurried(self.traffic.idle(), grace):
            _log.warning("some transfers did not finish in time", grace=grace)
        await listener.close()  # cuts them off

    async def _finish_downloads(self, grace: float) -> None:
        await self._unless_hurried(self._engine.downloads.finish(grace), grace)
        try:
            async with asyncio.timeout(_HANGING_SECONDS):
                await self._engine.downloads.finish(0)
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


def _runner(server: HttpServer) -> web.BaseRunner:
    return web.ServerRunner(server, shutdown_timeout=_CANCEL_SECONDS)


def serve(settings: Settings, *, files: Files | None = None) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit code. Raises StorageError and OSError where it cannot start."""
    allocator.set_up()
    metrics = Metrics()
    log.configure(level=settings.log_level, metrics_dropped=metrics.log_lines_dropped)
    _raise_descriptor_limit()
    wanted, most = settings.max_connections, places(settings.max_connections)
    if most < wanted:
        _log.warning("the limit on open files allows fewer connections", max_connections=wanted, connections=most)
    return asyncio.run(_serve(Mirror(settings, metrics=metrics, files=files)))


async def _serve(mirror: Mirror) -> int:
    settings, stopping = mirror.settings, asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    # A second Ctrl-C means now. A second SIGTERM does not: it may be the same one, sent to us and to our group.
    loop.add_signal_handler(signal.SIGINT, lambda: mirror.hurry() if stopping.is_set() else stopping.set())
    _log.info("starting", version=__version__, data=str(settings.storage.path))
    starting, stop = asyncio.create_task(mirror.start()), asyncio.create_task(stopping.wait())
    await asyncio.wait((starting, stop), return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        await starting
        await stop
        _log.info("stopping", grace=settings.shutdown_grace)
        await mirror.stop(drain=settings.drain_delay, grace=settings.shutdown_grace)
    else:
        starting.cancel()
        await asyncio.wait([starting])
    _log.info("stopped")
    _leave_hanging_threads_behind()
    return 0


def _leave_hanging_threads_behind() -> None:
    """Everything is written: a thread that no disk and no name server ever answers does not keep the process."""
    timer = threading.Timer(_HANGING_SECONDS, os._exit, (0,))
    timer.daemon = True
    timer.start()


def _raise_descriptor_limit() -> None:
    """The soft limit is low for the sake of programs that use select(); the hard one is what we may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
    if soft == resource.RLIM_INFINITY or soft >= most:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    except (OSError, ValueError):
        pass  # not ours to change; connections are then fewer

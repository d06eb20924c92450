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
from mirror.api.connections import Answer, HttpServer, Limits
from mirror.api.content import ContentApi
from mirror.api.forwarded import Proxies
from mirror.api.listener import Listener
from mirror.api.listings import ListingsApi
from mirror.api.middleware import Traffic
from mirror.api.registry import RegistryApi
from mirror.api.sender import Sender
from mirror.auth import Authenticator
from mirror.cache import Cache
from mirror.config import Address, Settings
from mirror.download import PACED, Downloads, Lanes, Tools
from mirror.memory import Key, Memory
from mirror.metrics import Metrics
from mirror.oci.errors import StorageError
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
from mirror.store.blobs import BlobStore
from mirror.store.budget import Budget
from mirror.store.files import Files
from mirror.store.home import Home, mistake
from mirror.store.records import Records
from mirror.store.scrub import Scrub
from mirror.store.trouble import Trouble
from mirror.store.upkeep import Upkeep
from mirror.transport import Transport
from mirror.upstream import Upstreams

_ADMIN_CONNECTIONS = 256
"""To the admin port, which has few clients, and must have a place for them when the other one is crowded."""
_MOST_DESCRIPTORS = 1 << 20
_SECRET_BYTES = 16 << 20
"""Of tokens and challenges: how long one is, and the names by which it is found, is an upstream's choice."""
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
        timeouts, storage = settings.timeouts, settings.storage
        router = Router(settings)

        # What we hold.
        self.trouble = Trouble(self.metrics, time.monotonic)
        self.blobs = BlobStore(storage.path, files or Files(), clock, patience=patience)
        self._home = Home(storage.path, patience=patience)
        self.records = Records(storage.path / "records", self.trouble, check_home=self._home.check)
        self.budget = Budget(storage, self.blobs, self.trouble, self.metrics, clock=clock)
        self.upkeep = Upkeep(storage, self._home, self.blobs, self.budget, self.records, self.trouble, self.metrics)
        self.scrub = Scrub(storage.scrub_rate, self.blobs, self.records, self.trouble, self.metrics, clock=clock)
        self.cache = Cache(self.records, self.blobs, self.budget, self.trouble, router, clock=clock)

        # Whom we ask.
        self._transport = Transport(
            timeouts,
            metrics=self.metrics,
            resolver=resolver,
            is_global=is_global,
            clock=clock,
            streams=settings.max_downloads + PACED + PROOFS,
        )
        self._secrets = Memory(max_keys=10_000, limit=_SECRET_BYTES, weigh=_secret_weight)
        authenticator = Authenticator(self._transport, self._secrets, metrics=self.metrics, clock=clock)
        upstreams = Upstreams(router, self._transport, authenticator)

        # What is done with it.
        lanes = Lanes(settings.max_downloads, lambda name: router.settings(name).max_downloads, self.metrics)
        tools = Tools(upstreams, self.cache, self.metrics, timeouts, lanes)
        self.downloads = Downloads(tools, abandon_below=settings.abandon_below)
        self.renewals = Renewals(self.cache, router)
        self._permissions = Permissions(self.cache, upstreams, self.renewals, self.metrics, timeouts.first_byte)
        asker = ManifestAsker(self.cache, upstreams, self.metrics, timeouts.first_byte)
        self._manifests = ManifestPuller(self.cache, asker, self.renewals, router, self.metrics, timeouts)
        blobs = BlobPuller(self.cache, self.downloads, self._permissions, self.metrics, timeouts)
        self._lists = Lists(self.cache, router, self.metrics, timeouts, upstreams.silence)
        tags = TagsPuller(self.cache, upstreams, self._lists, timeouts.first_byte)
        referrers = ReferrersPuller(self.cache, upstreams, self._manifests, self._lists, timeouts.first_byte)

        # Who asks us.
        self._proxies = Proxies(settings.trusted_proxies)
        self.traffic = Traffic(self.metrics, self._proxies)
        sender = Sender(patience, self.trouble)
        content = ContentApi(self._manifests, blobs, self.traffic, sender)
        self._registry = RegistryApi(router, content, ListingsApi(tags, referrers))
        self._admin = AdminApi(self.metrics, self.trouble, lambda: self.traffic.draining)
        self._listener: Listener | None = None
        self._closing = AsyncExitStack()
        """What is to be let go of, in the reverse order of its making."""
        self._stopping = asyncio.Lock()
        self._hurry = asyncio.Event()
        self._closing.callback(sender.close)
        self._closing.push_async_callback(self._secrets.close)
        self._closing.push_async_callback(self._transport.close)

    async def start(self) -> None:
        """Opens the store and listens. Raises StorageError where the data directory is not ours, OSError for a port.

        A start that fails or is cancelled leaves nothing open.
        """
        try:
            await self._open_store()
            self._begin_work()
            self._listener, self.port = await self._listen(self._registry_runner(), self.settings.listen)
            _, self.admin_port = await self._listen(self._admin_runner(), self.settings.admin_listen)
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

    async def _open_store(self) -> None:
        self._closing.push_async_callback(self._home.release)
        await self._home.take()
        self._closing.push_async_callback(self.cache.close)
        self._closing.push_async_callback(self.records.close)
        self._closing.push_async_callback(self._close_blobs)
        try:
            clean = await self.blobs.open()
        except StorageError as error:
            if isinstance(error.__cause__, OSError):
                raise mistake(self.settings.storage.path, error.__cause__) from error
            raise
        if not clean:
            _log.warning("the last stop was not clean; the youngest blobs are verified before they are served")
        await self.records.open()
        await self.upkeep.begin(clean=clean)

    def _begin_work(self) -> None:
        chores = (self.upkeep, self.scrub)
        tasks = [asyncio.create_task(chore.run(), name=type(chore).__name__) for chore in chores]

        async def end_upkeep() -> None:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await self.budget.close()
            for chore in chores:
                await chore.finish()

        self._closing.push_async_callback(end_upkeep)
        self._closing.push_async_callback(self._manifests.close)
        self._closing.push_async_callback(self._lists.close)
        self._closing.push_async_callback(self._permissions.close)
        self._closing.push_async_callback(self.renewals.close)

    async def _listen(self, runner: web.BaseRunner, address: Address) -> tuple[Listener, int]:
        listener = Listener(runner)
        self._closing.push_async_callback(listener.close)
        return listener, await listener.open(address)

    def _runner(self, answer: Answer, admission: Admission) -> web.BaseRunner:
        timeouts = self.settings.timeouts
        server = HttpServer(
            answer,
            malformed=self.traffic.malformed,
            limits=Limits(request=timeouts.request, idle=timeouts.idle, stall=timeouts.client),
            admission=admission,
        )
        return web.ServerRunner(server, shutdown_timeout=_CANCEL_SECONDS)

    def _registry_runner(self) -> web.BaseRunner:
        admission = Admission(
            places(self.settings.max_connections),
            self.settings.max_connections_per_client,
            is_proxy=self._proxies.trusts,
            refused=self.metrics.connections_refused,
            present=self.metrics.connections,
        )
        return self._runner(self.traffic.around(self._registry.handle), admission)

    def _admin_runner(self) -> web.BaseRunner:
        admission = Admission(
            _ADMIN_CONNECTIONS,
            _ADMIN_CONNECTIONS,
            is_proxy=self._proxies.trusts,
            refused=self.metrics.connections_refused,
        )
        return self._runner(self._admin.handle, admission)

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

    async def _close_blobs(self) -> None:
        try:
            await self.blobs.close()
        except StorageError as error:
            self.trouble.note("blobs", error)

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


def _secret_weight(key: Key, value: object) -> int:
    return sum(map(len, key)) + len(value if isinstance(value, str) else repr(value))


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

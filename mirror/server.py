"""From settings to a wired application, served until SIGTERM."""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import structlog
from aiohttp import web
from aiohttp.abc import AbstractResolver

from mirror import __version__, log
from mirror.api.admin import AdminApi
from mirror.api.middleware import Traffic
from mirror.api.registry import RegistryApi
from mirror.api.sender import Sender
from mirror.auth import Authenticator
from mirror.cache import Cache
from mirror.config import Address, Settings
from mirror.download import Downloads, Tools
from mirror.memory import Memory
from mirror.metrics import Metrics
from mirror.oci.errors import StorageError
from mirror.pull import BlobPuller, ManifestAsker, ManifestPuller, Permissions
from mirror.routing import Router
from mirror.store.blobs import BlobStore
from mirror.store.budget import Budget
from mirror.store.files import Files
from mirror.store.records import Records
from mirror.store.trouble import Trouble
from mirror.store.upkeep import Upkeep
from mirror.transport import Transport
from mirror.upstream import Upstreams

_SEND_THREADS = 16
_DISK_THREADS = 8
_BACKLOG = 1024
_KEEPALIVE_SECONDS = 75.0
_log = structlog.get_logger()


class Mirror:
    """One application: build it, `start` it, `stop` it. `port` and `admin_port` are known once it has started."""

    def __init__(
        self,
        settings: Settings,
        *,
        metrics: Metrics | None = None,
        files: Files | None = None,
        clock: Callable[[], float] = time.time,
        resolver: AbstractResolver | None = None,
        is_global: Callable[[str], bool] | None = None,
    ) -> None:
        self.settings = settings
        self.metrics = metrics or Metrics()
        self.port = 0
        self.admin_port = 0
        timeouts, storage = settings.timeouts, settings.storage
        router = Router(settings)

        # What we hold.
        self._disk_pool = ThreadPoolExecutor(_DISK_THREADS, thread_name_prefix="disk")
        self._send_pool = ThreadPoolExecutor(_SEND_THREADS, thread_name_prefix="send")
        self.trouble = Trouble(self.metrics, time.monotonic)
        self.blobs = BlobStore(storage.path, files or Files(), self._disk_pool, clock)
        self.records = Records(storage.path / "records", self.trouble)
        self.budget = Budget(storage, self.blobs, self.metrics, clock=clock)
        self.upkeep = Upkeep(storage, self.blobs, self.budget, self.records, self.trouble, self.metrics)
        self.cache = Cache(self.records, self.blobs, self.budget, self.trouble, router, clock=clock)

        # Whom we ask.
        self._transport = Transport(timeouts, metrics=self.metrics, resolver=resolver, is_global=is_global, clock=clock)
        self._secrets = Memory(max_keys=10_000)
        authenticator = Authenticator(self._transport, self._secrets, metrics=self.metrics, clock=clock)
        upstreams = Upstreams(router, self._transport, authenticator)

        # What is done with it.
        tools = Tools(upstreams, self.cache, self.metrics, timeouts)
        self.downloads = Downloads(tools, abandon_below=settings.abandon_below)
        self._permissions = Permissions(self.cache, upstreams, router, timeouts.first_byte)
        asker = ManifestAsker(self.cache, upstreams, self.metrics, timeouts.first_byte)
        self._manifests = ManifestPuller(self.cache, asker, router, self.metrics, timeouts)
        blobs = BlobPuller(self.cache, self.downloads, self._permissions, self.metrics, timeouts)

        # Who asks us.
        self.traffic = Traffic(self.metrics)
        sender = Sender(self._send_pool, timeouts.client)
        self._registry = RegistryApi(router, self._manifests, blobs, sender, timeouts.first_byte)
        self._admin = AdminApi(self.metrics, self.trouble, lambda: self.traffic.draining)
        self._runners: list[web.AppRunner] = []
        self._upkeep_task: asyncio.Task[None] | None = None
        self._lock: int | None = None

    async def start(self) -> None:
        """Opens the store and listens. Raises StorageError where the data directory is not ours, OSError for a port."""
        loop = asyncio.get_running_loop()
        self._lock = await loop.run_in_executor(self._disk_pool, _lock, self.settings.storage.path)
        clean = await loop.run_in_executor(self._disk_pool, self._open_store)
        if not clean:
            _log.warning("the last stop was not clean; the youngest blobs are verified before they are served")
        await self.upkeep.begin()
        self._upkeep_task = asyncio.create_task(self.upkeep.run(), name="upkeep")
        self.admin_port = await self._listen(self._admin_application(), self.settings.admin_listen)
        self.port = await self._listen(self._registry_application(), self.settings.listen)
        self.metrics.start_time.set(time.time())
        _log.info("serving", listen=str(self.settings.listen), port=self.port, admin_port=self.admin_port)

    async def stop(self, *, drain: float = 0.0, grace: float = 0.0) -> None:
        """Says that we are leaving for `drain` seconds, lets transfers run for `grace` seconds, writes state out."""
        self.traffic.draining = True
        if drain:
            await asyncio.sleep(drain)
        ends = asyncio.get_running_loop().time() + grace
        await self._finish_requests(grace)
        await self.downloads.finish(max(0.0, ends - asyncio.get_running_loop().time()))
        for runner in reversed(self._runners):
            await runner.cleanup()
        await self._permissions.close()
        await self._manifests.close()
        if self._upkeep_task is not None:
            self._upkeep_task.cancel()
            await asyncio.gather(self._upkeep_task, return_exceptions=True)
        await self.budget.close()
        await self.upkeep.finish()
        await self._close_store()
        await self._transport.close()
        await self._secrets.close()

    def _open_store(self) -> bool:
        try:
            clean = self.blobs.open()
        except OSError as error:
            raise StorageError(f"cannot use {self.settings.storage.path}: {error.strerror or error}") from error
        self.records.open()
        return clean

    async def _close_store(self) -> None:
        try:
            await self.blobs.run(self.blobs.close)
        except StorageError as error:
            self.trouble.note("blobs", error)
        await self.records.close()
        await self.cache.close()
        self._send_pool.shutdown(wait=False)
        self._disk_pool.shutdown(wait=True)
        if self._lock is not None:
            os.close(self._lock)

    async def _finish_requests(self, grace: float) -> None:
        """Closes the listener and idle connections, then waits for those who are being served."""
        if len(self._runners) > 1:
            runner = self._runners[-1]
            for site in list(runner.sites):
                await site.stop()
            if runner.server is not None:
                runner.server.pre_shutdown()
        try:
            async with asyncio.timeout(grace):
                await self.traffic.idle()
        except TimeoutError:
            _log.warning("some transfers did not finish in time", grace=grace)

    async def _listen(self, application: web.Application, address: Address) -> int:
        runner = web.AppRunner(
            application,
            access_log=None,
            handler_cancellation=True,
            keepalive_timeout=_KEEPALIVE_SECONDS,
            shutdown_timeout=0.1,
        )
        await runner.setup()
        self._runners.append(runner)
        site = web.TCPSite(runner, address.host, address.port, backlog=_BACKLOG)
        try:
            await site.start()
        except OSError as error:
            raise OSError(f"cannot listen on {address}: {error.strerror or error}") from error
        port: int = runner.addresses[0][1]
        return port

    def _registry_application(self) -> web.Application:
        application = web.Application(middlewares=[self.traffic.observe])
        application.on_response_prepare.append(self.traffic.prepare)
        application.router.add_route("*", "/{path:.*}", self._registry.handle)
        return application

    def _admin_application(self) -> web.Application:
        application = web.Application()
        self._admin.add_routes(application)
        return application


def serve(settings: Settings) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit code. Raises StorageError and OSError where it cannot start."""
    _keep_freed_memory()
    metrics = Metrics()
    log.configure(level=settings.log_level, metrics_dropped=metrics.log_lines_dropped)
    return asyncio.run(_serve(Mirror, settings, metrics))


async def _serve(make: type[Mirror], settings: Settings, metrics: Metrics) -> int:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    mirror = make(settings, metrics=metrics)
    _log.info("starting", version=__version__, data=str(settings.storage.path))
    try:
        await mirror.start()
        await stopping.wait()
        _log.info("stopping", grace=settings.shutdown_grace)
        await mirror.stop(drain=settings.drain_delay, grace=settings.shutdown_grace)
    except BaseException:
        await mirror.stop()
        raise
    _log.info("stopped")
    return 0


def _lock(path: Path) -> int:
    """Keeps a second process out of the data directory. Blocks. Raises StorageError."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(f"cannot use {path} as data directory: {error.strerror or error}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 200, 0).decode("utf-8", "replace").strip() or "another process"
        os.close(fd)
        raise StorageError(f"{path} is in use by {holder}") from None
    os.truncate(fd, 0)
    os.pwrite(fd, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return fd


def _keep_freed_memory() -> None:
    """Tells glibc to keep freed buffers: without it each network buffer may be mapped and faulted in anew."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # not glibc
    trim_threshold, mmap_threshold = -1, -3
    mallopt(trim_threshold, 64 << 20)
    mallopt(mmap_threshold, 8 << 20)

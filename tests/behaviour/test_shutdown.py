"""How a mirror ends: in order on SIGTERM, in bounded time whatever hangs, and without a trace where it cannot start."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from mirror.config import Address, Settings, Storage
from mirror.server import Mirror
from mirror.store.lock import DataLock
from tests.certificates import SERVER
from tests.conftest import StartMirror
from tests.faulty import METHODS, FaultyFiles
from tests.harness import RunningMirror, short_timeouts
from tests.raw import RawClient, SecuredClient
from tests.reading import blob_path, nothing_unheard
from tests.served import Served
from tests.storing import until
from tests.upstream import Blob, FakeRegistry, stall_at

MIB = 1 << 20
PATIENT = short_timeouts(first_byte=10.0, cold_head=10.0, stall=10.0, no_progress=20.0)


Serve = Callable[..., Served]


# The process


@pytest.fixture
async def served(tmp_path: Path, upstream: FakeRegistry) -> AsyncIterator[Serve]:
    made: list[Served] = []

    def make(**settings: Any) -> Served:
        made.append(Served(tmp_path, upstream, **settings))
        return made[-1]

    yield make
    for each in made:
        await each.stop()


@contextlib.asynccontextmanager
async def downloading(
    served: Served, upstream: FakeRegistry, blob: Blob
) -> AsyncIterator[tuple[asyncio.Task[bytes], Any]]:
    """A client in the middle of a blob whose upstream waits to be released."""
    rule = upstream.fault(blob, stall_at(2 * MIB))

    async def take() -> bytes:
        _, _, body = await served.get(blob_path("demo", blob))
        return body

    client = asyncio.create_task(take())
    await asyncio.wait_for(rule.reached.wait(), 5)
    yield client, rule
    client.cancel()
    await asyncio.gather(client, return_exceptions=True)


@pytest.mark.parametrize("wire", [RawClient, SecuredClient])
async def test_connections_without_a_request_end_at_once(
    start_mirror: StartMirror, upstream: FakeRegistry, wire: type[RawClient]
) -> None:
    """While others are still being served: whoever asked there now would wait for nothing until the last one is."""
    mirror = await start_mirror(timeouts=PATIENT, **({"tls": SERVER} if wire is SecuredClient else {}))
    blob = upstream.put_blob("library/demo", MIB)
    held = upstream.fault(blob, stall_at(MIB // 2))
    async with (
        await wire.connect(mirror.app.port) as served,
        await wire.connect(mirror.app.port) as idle,
        await wire.connect(mirror.app.port) as fresh,
    ):
        await served.ask(blob_path("demo", blob))
        await served.head()
        await idle.ask("/v2/")
        await idle.answer()

        stopping = asyncio.create_task(mirror.app.stop(grace=30))
        assert [await idle.rest(), await fresh.rest()] == [b"", b""]
        assert not stopping.done()
        held.release()
        assert await served.read(blob.size) == blob.content
        await stopping


async def test_sigterm_lets_clients_finish_and_keeps_what_they_fetched(served: Serve, upstream: FakeRegistry) -> None:
    """Not ready and `Connection: close` at once, deaf after drain_delay, gone after the last transfer; all is kept."""
    mirror = await served(drain_delay="0.5s", shutdown_grace="20s").start()
    blob = upstream.put_blob("library/demo", 4 * MIB)
    async with downloading(mirror, upstream, blob) as (client, rule):
        mirror.process.send_signal(signal.SIGTERM)
        await mirror.told("stopping")
        status, _, body = await mirror.get("/readyz", mirror.admin_port)
        assert (status, json.loads(body)["draining"]) == (503, True)
        assert (await mirror.get("/v2/"))[:2] == (200, "close")
        await mirror.deaf()
        assert not client.done()
        mirror.process.send_signal(signal.SIGTERM)  # a second one changes nothing

        rule.release()

        assert await client == blob.content
    assert await mirror.ended() == 0
    assert (mirror.data / "unsettled").read_bytes() == b""
    assert list((mirror.data / "spool").iterdir()) == []
    assert sorted(path.name for path in (mirror.data / "records").iterdir()) == ["cache.db"]

    upstream.reset()
    async with RunningMirror(mirror.data, {"docker.io": upstream}) as again:
        reply = await again.blob("demo", blob.digest)
    assert (reply.cache, reply.body) == ("hit", blob.content)
    assert upstream.content_requests() == []


async def test_the_wait_for_transfers_is_bounded(served: Serve, upstream: FakeRegistry) -> None:
    """After shutdown_grace the rest is cut short, which no client takes for whole; what came is kept for later."""
    mirror = await served(shutdown_grace="0.3s").start()
    blob = upstream.put_blob("library/demo", 4 * MIB)
    async with downloading(mirror, upstream, blob) as (client, _):
        mirror.process.send_signal(signal.SIGTERM)

        with pytest.raises(aiohttp.ClientPayloadError):
            await client
    assert await mirror.ended() == 0
    assert [path.stat().st_size for path in (mirror.data / "spool").iterdir()] == [2 * MIB]


async def test_a_second_interrupt_ends_the_wait(served: Serve, upstream: FakeRegistry) -> None:
    """Who presses Ctrl-C twice means now; what is to be written is written all the same."""
    mirror = await served(drain_delay="60s", shutdown_grace="60s").start()
    blob = upstream.put_blob("library/demo", 4 * MIB)
    async with downloading(mirror, upstream, blob):
        mirror.process.send_signal(signal.SIGINT)
        await mirror.told("stopping")
        mirror.process.send_signal(signal.SIGINT)
        assert await mirror.ended() == 0
    assert (mirror.data / "unsettled").read_bytes() == b""


HANGING = """
import time
from mirror import cli, process, server
from mirror.store.blobs import BlobStore
from mirror.store.files import Files

server._HANGING_SECONDS = process._HANGING_SECONDS = 0.3
BlobStore.close.__defaults__ = (0.3,)
fsync, create_spool, spools = Files.fsync, BlobStore.create_spool, []
Files.fsync = lambda self, fd: time.sleep(1000) if spools else fsync(self, fd)
BlobStore.create_spool = lambda *arguments: spools.append(1) or create_spool(*arguments)
cli.main()
"""


async def test_threads_that_hang_do_not_keep_the_process(served: Serve, upstream: FakeRegistry) -> None:
    """A disk that never answers: the process ends all the same, and the journal still tells what to verify."""
    mirror = await served(program=("-c", HANGING), shutdown_grace="0.2s").start()
    blob = upstream.put_blob("library/demo", MIB)
    assert (await mirror.get(blob_path("demo", blob)))[2] == blob.content

    mirror.process.send_signal(signal.SIGTERM)

    assert await mirror.ended() == 0
    assert any("stopped" in line for line in mirror.lines)


async def test_sigterm_ends_a_start(served: Serve, upstream: FakeRegistry) -> None:
    """While it still waits for its records; it never serves, and exits 0."""
    mirror = served()
    (mirror.data / "records").mkdir(parents=True)
    lock = sqlite3.connect(mirror.data / "records" / "cache.db", isolation_level=None)
    lock.execute("CREATE TABLE taken (x)")
    lock.execute("BEGIN EXCLUSIVE")
    await mirror.begin()
    await mirror.told("starting")

    mirror.process.send_signal(signal.SIGTERM)

    assert await mirror.ended() == 0
    assert not any("serving" in line for line in mirror.lines)
    lock.close()


async def test_a_mirror_that_cannot_start_says_why_in_one_line(served: Serve, tmp_path: Path) -> None:
    """Exit 1, no traceback: a directory that another process holds or that is none, a port that is taken."""
    holder = await served().start()
    journal = holder.data / "unsettled"
    journal.write_bytes(b"\nsha256:" + b"0" * 64)
    (tmp_path / "file").write_text("in the way")
    expected = {
        f"{holder.data} is in use by process {holder.process.pid}": served(),
        f"cannot use {tmp_path / 'file'} as data directory": served(storage={"path": str(tmp_path / "file")}),
        f"cannot listen on 127.0.0.1:{holder.port}: Address already in use": served(
            storage={"path": str(tmp_path / "other")}, listen=f"127.0.0.1:{holder.port}"
        ),
    }
    await asyncio.gather(*(each.begin() for each in expected.values()))

    for reason, each in expected.items():
        assert await each.ended() == 1
        (said,) = [line for line in each.lines if not line.startswith("{")]
        assert said.startswith(f"mirror: {reason}")
    assert journal.read_bytes()  # the holder's: they left it alone as they went
    assert (await holder.get("/v2/"))[0] == 200


# In one process


def threads() -> list[str]:
    """Those of a mirror that still run."""
    names = ("disk-", "hash", "records-", "send", "home")
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(names)]


def descriptors(top: Path) -> list[str]:
    """What is open of the data directory."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(str(entry.readlink()))
    return [target for target in found if target.startswith(str(top))]


async def check_nothing_left(top: Path) -> None:
    """No thread, no descriptor, no lock, no task."""
    await until(lambda: not threads() and not descriptors(top))
    assert {task for task in asyncio.all_tasks() if task is not asyncio.current_task()} == set()
    DataLock.take(top).release()


def settings(top: Path, **options: Any) -> Settings:
    """For a mirror that is started and stopped without a request."""
    anywhere = Address("127.0.0.1", 0)
    return Settings(**{"listen": anywhere, "admin_listen": anywhere, "storage": Storage(path=top), **options})


@pytest.fixture
def alone() -> None:
    """Other mirrors of this process would have threads too."""
    assert threads() == []


@pytest.mark.usefixtures("alone")
async def test_stopping_is_safe_at_any_time(tmp_path: Path) -> None:
    """Before the start, twice, and twice at once; afterwards nothing of it is left."""
    await Mirror(settings(tmp_path / "a")).stop()
    mirror = Mirror(settings(tmp_path / "b"))
    await mirror.start()
    await asyncio.gather(mirror.stop(), mirror.stop())
    await mirror.stop(drain=0.01, grace=0.01)

    await check_nothing_left(tmp_path)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("which", ["listen", "admin_listen"])
async def test_a_start_without_a_port_leaves_nothing(tmp_path: Path, which: str) -> None:
    """Lock, threads and the other port are free again, without a stop."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        options = {which: Address("127.0.0.1", taken.getsockname()[1])}
        with pytest.raises(OSError, match="cannot listen on"):
            await Mirror(settings(tmp_path / "data", **options)).start()

    await check_nothing_left(tmp_path / "data")


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("method", ["mkdir", "open", "read", "scan", "fsync_directory"])
async def test_a_start_on_a_broken_disk_leaves_nothing(tmp_path: Path, method: str) -> None:
    """It says so in one sentence."""
    disk = FaultyFiles()
    disk.fail(5, method)

    with pytest.raises(Exception, match=r"cannot use .*Input/output error"):
        await Mirror(settings(tmp_path / "data"), files=disk).start()

    await check_nothing_left(tmp_path / "data")


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("method", ["mkdir", "open", "size", "read", "scan", "fsync_directory"])
async def test_a_start_that_is_cancelled_in_the_disk_leaves_nothing(tmp_path: Path, method: str) -> None:
    """What the disk gives afterwards is let go."""
    disk = FaultyFiles()
    trap = disk.hold(method, times=1)
    starting = asyncio.create_task(Mirror(settings(tmp_path / "data"), files=disk).start())
    await trap.met()

    starting.cancel()
    await asyncio.sleep(0.01)
    trap.release()

    await asyncio.wait([starting])
    assert starting.cancelled()
    await check_nothing_left(tmp_path / "data")


@pytest.mark.usefixtures("alone")
async def test_a_start_that_is_cancelled_at_any_moment_leaves_nothing(tmp_path: Path) -> None:
    """Wherever it has got to: lock, records, upkeep, listeners."""
    ended = False
    turns = 1
    while not ended:
        mirror = Mirror(settings(tmp_path / "data"))
        starting = asyncio.create_task(mirror.start())
        for _ in range(turns):
            await asyncio.sleep(0)
        starting.cancel()
        await asyncio.wait([starting])
        ended = not starting.cancelled()
        await mirror.stop()
        await check_nothing_left(tmp_path / "data")
        turns = turns * 5 // 4 + 1


@pytest.mark.usefixtures("alone")
async def test_a_disk_that_hangs_does_not_keep_us(
    start_mirror: StartMirror, upstream: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop with fills in the middle of their writes ends in bounded time; the journal keeps what it says."""
    monkeypatch.setattr("mirror.server._HANGING_SECONDS", 0.2)
    monkeypatch.setattr("mirror.store.upkeep._FINISH_SECONDS", 0.2)
    disk = FaultyFiles()
    mirror = await start_mirror(files=disk, timeouts=PATIENT)
    monkeypatch.setattr(mirror.app.blobs, "close", lambda: type(mirror.app.blobs).close(mirror.app.blobs, limit=0.2))
    held, blob = upstream.put_blob("library/demo", 1000), upstream.put_blob("library/demo", 4 * MIB)
    for _ in range(2):
        await mirror.get(blob_path("demo", held))
        await mirror.quiet()
    trap = disk.hold(*METHODS)
    asking = asyncio.create_task(mirror.get(blob_path("demo", blob)))
    await trap.met()

    with nothing_unheard():
        async with asyncio.timeout(5):
            await mirror.app.stop(grace=0.05)

    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    disk.clear()

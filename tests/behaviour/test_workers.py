"""Two workers and their supervisor, as real processes: they serve as one, and survive each other."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.e2e.processes import is_there, state_of
from tests.reading import blob_path
from tests.samples import total
from tests.served import Served
from tests.storing import path_of, until
from tests.upstream import FakeRegistry, stall_at

MIB = 1 << 20
PATIENCE = 30.0
"""Seconds: processes begin slowly on a busy machine."""

Serve = Callable[..., Served]

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
async def served(tmp_path: Path, upstream: FakeRegistry) -> AsyncIterator[Serve]:
    """Makes mirrors with two workers."""
    made: list[Served] = []

    def make(**settings: Any) -> Served:
        made.append(Served(tmp_path, upstream, **{"workers": 2, **settings}))
        return made[-1]

    yield make
    for each in made:
        await each.stop()


@contextlib.asynccontextmanager
async def standing_still(*pids: int) -> AsyncIterator[None]:
    """Lets processes do nothing inside."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
        await until(lambda pid=pid: state_of(pid) == "T")  # type: ignore[misc]  # the loop's variable is kept
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def read(path: str) -> str:
    return Path(path).read_bytes().decode()


async def counted(mirror: Served, metric: str) -> float:
    """The sum of all samples of `metric`."""
    _, _, text = await mirror.get("/metrics", mirror.admin_port)
    return total(text.decode(), metric)


async def comes_to(mirror: Served, metric: str, expected: int) -> None:
    """Waits until all that was counted is heard: a worker that is slow to answer a scrape counts as it last said."""
    async with asyncio.timeout(PATIENCE):
        while (value := await counted(mirror, metric)) < expected:
            pass
    assert value == expected


async def readiness(mirror: Served) -> tuple[int, dict[str, Any]]:
    status, _, body = await mirror.get("/readyz", mirror.admin_port)
    return status, json.loads(body)


async def is_whole(mirror: Served) -> None:
    """Waits until both workers serve."""
    async with asyncio.timeout(PATIENCE):
        while (await readiness(mirror))[1]["workers"] != {"serving": 2, "of": 2}:
            pass


@contextlib.contextmanager
def waiting(port: int, count: int) -> Iterator[list[socket.socket]]:
    """Clients that have connected and asked, whoever is there to answer."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5)) for _ in range(count)]
        for client in clients:
            client.sendall(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            client.setblocking(False)
        yield clients


async def answer(client: socket.socket) -> bytes:
    return await asyncio.get_running_loop().sock_recv(client, 12)


def requests(mirror: Served) -> list[dict[str, Any]]:
    """The access lines that have come so far."""
    return [json.loads(line) for line in mirror.lines if '"event":"request"' in line]


async def test_each_of_them_serves(served: Serve, upstream: FakeRegistry) -> None:
    """What was fetched once any of them gives, also while the other stands still. No secret is where others can read:
    workers serve exactly what the supervisor has read, but have it neither as arguments nor in their environment.
    """
    docker = {"url": upstream.url, "username": "ci", "password": "planted-secret"}
    mirror = await served(upstreams={"docker.io": docker}).start()
    workers = mirror.workers()
    blob = upstream.put_blob("library/demo", 100_000)
    async with asyncio.timeout(PATIENCE):
        while not path_of(mirror.data, blob.digest).exists():
            assert (await mirror.get(blob_path("demo", blob)))[2] == blob.content
    for still in workers.values():
        async with standing_still(still), asyncio.timeout(PATIENCE):
            assert (await mirror.get(blob_path("demo", blob)))[2] == blob.content
    await until(lambda: {line["worker"] for line in requests(mirror)} == {0, 1}, PATIENCE)
    said = "\n".join(read(f"/proc/{pid}/{part}") for pid in workers.values() for part in ("cmdline", "environ"))
    assert "worker" in said
    assert "planted" not in said + "".join(mirror.lines)


async def test_a_worker_that_is_killed_is_begun_again_and_nobody_waits_for_nothing(served: Serve) -> None:
    """Those who had connected and were not accepted yet are served by the other one; then there are two again. What
    the dead one had counted stays counted, once.
    """
    mirror = await served().start()
    first, second = mirror.workers()[0], mirror.workers()[1]
    for still, times in ((first, 3), (second, 4)):
        async with standing_still(still):
            for _ in range(times):
                assert (await mirror.get("/v2/"))[0] == 200
    await comes_to(mirror, "mirror_requests_total", 7)
    async with standing_still(first, second):
        with waiting(mirror.port, 20) as clients:
            os.kill(first, signal.SIGKILL)
            os.kill(second, signal.SIGCONT)
            async with asyncio.timeout(PATIENCE):
                assert {await answer(client) for client in clients} == {b"HTTP/1.1 200"}
    await mirror.told("a worker died; another one takes its place")
    await comes_to(mirror, "mirror_requests_total", 27)
    await is_whole(mirror)
    assert mirror.workers()[0] not in (first, second)
    assert mirror.workers()[1] == second
    [death] = [json.loads(line) for line in mirror.lines if '"a worker died' in line]
    assert (death["slot"], death["pid"], death["end"]) == (0, first, "signal SIGKILL")
    async with standing_still(second):
        assert (await mirror.get("/v2/"))[0] == 200
    await comes_to(mirror, "mirror_requests_total", 28)
    await comes_to(mirror, "mirror_request_duration_seconds_count", 28)
    await comes_to(mirror, "mirror_worker_restarts_total", 1)
    await comes_to(mirror, "mirror_build_info", 1)


async def test_sigterm_lets_the_clients_of_all_workers_finish(served: Serve, upstream: FakeRegistry) -> None:
    """Sent to the whole group, as some do: not ready at once, deaf after drain_delay, gone after the last transfer."""
    mirror = await served(drain_delay="0.5s", shutdown_grace="30s").start()
    blob = upstream.put_blob("library/demo", 4 * MIB)
    rule = upstream.fault(blob, stall_at(2 * MIB))
    clients = [asyncio.create_task(mirror.get(blob_path("demo", blob))) for _ in range(6)]
    await asyncio.wait_for(rule.reached.wait(), PATIENCE)
    workers = mirror.workers().values()

    os.killpg(mirror.process.pid, signal.SIGTERM)

    await mirror.told("stopping")
    status, state = await readiness(mirror)
    assert (status, state["draining"]) == (503, True)
    await mirror.deaf()
    assert not any(client.done() for client in clients)
    os.killpg(mirror.process.pid, signal.SIGTERM)  # a second one changes nothing
    rule.release()
    assert [(await client)[2] for client in clients] == [blob.content] * len(clients)
    assert await mirror.ended(PATIENCE) == 0
    assert not any(map(is_there, workers))
    assert list((mirror.data / "spool").iterdir()) == []
    assert sorted(path.name for path in (mirror.data / "records").iterdir()) == ["cache.db"]


async def test_a_second_interrupt_hurries_all(served: Serve) -> None:
    """Who presses Ctrl-C twice, which the whole group hears, does not wait for the rest of drain_delay."""
    mirror = await served(drain_delay="80s").start()
    os.killpg(mirror.process.pid, signal.SIGINT)
    await mirror.told("stopping")
    os.killpg(mirror.process.pid, signal.SIGINT)
    assert await mirror.ended(PATIENCE) == 0


async def test_workers_do_not_outlive_their_supervisor(served: Serve) -> None:
    """When it is killed they end by themselves, in order, and the next one can begin."""
    mirror = await served().start()
    workers = mirror.workers().values()
    mirror.process.kill()
    await until(lambda: not any(map(is_there, workers)), PATIENCE)
    await mirror.ended()
    again = await mirror.start()
    assert (await again.get("/v2/"))[0] == 200


async def test_a_worker_that_cannot_serve_fails_the_start(served: Serve, tmp_path: Path) -> None:
    """One line with the reason, exit code 1, and nothing left running."""
    mirror = served()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", mirror.port))
        taken.listen()
        await mirror.begin()
        assert await mirror.ended(PATIENCE) == 1
    assert mirror.lines[-1] == f"mirror: cannot listen on 127.0.0.1:{mirror.port}: Address already in use"

    other = served(tls={"certificate": str(tmp_path / "none.pem")})
    await other.begin()
    assert await other.ended(PATIENCE) != 0
    assert [line for line in other.lines if "none.pem" in line and not line.startswith("{")]
    assert not any("Traceback" in line for line in other.lines)


async def test_clients_meet_no_refusal_while_workers_die(served: Serve) -> None:
    """Connections are accepted all the time, though one worker after the other is killed."""
    mirror = await served().start()
    done = asyncio.Event()
    answers = 0

    async def ask_all_the_time() -> None:
        nonlocal answers
        while not done.is_set():
            try:
                answers += (await mirror.get("/v2/"))[0] == 200
            except aiohttp.ClientConnectorError as error:
                raise AssertionError("refused") from error
            except aiohttp.ClientError:
                pass  # it was with the worker that died

    asking = asyncio.create_task(ask_all_the_time())
    for slot in (0, 1):
        os.kill(mirror.workers()[slot], signal.SIGKILL)
        before = mirror.workers()[slot]
        await until(lambda slot=slot, before=before: mirror.workers()[slot] != before, PATIENCE)  # type: ignore[misc]  # the loop's variables are kept
        await is_whole(mirror)
    done.set()
    await asking
    assert answers > 0

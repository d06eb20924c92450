"""What a crowd, or one client with much time, can make the mirror hold."""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from mirror.config import UpstreamSettings
from mirror.download import PACED
from mirror.oci.digest import Digest
from mirror.routing import Target, UpstreamName
from tests.conftest import StartMirror
from tests.faulty import FaultyFiles
from tests.harness import Reply, RunningMirror, short_timeouts
from tests.lines import Lines, lines
from tests.raw import RawClient
from tests.reading import nothing_unheard
from tests.served import Served
from tests.upstream import ANY, Bearer, FakeRegistry, ignore_range, stall, stall_at

__all__ = ["lines"]

MIB = 1 << 20
IDLE_CLIENTS = 40
"""Connections of the test's client, and of the mirror to the upstream, that wait for more requests: a task each."""
CONNECTS: dict[str, float] = {"connect_address": 5, "connect": 10}
"""A crowd on a busy machine takes longer than a twentieth of the defaults."""
PATIENT = short_timeouts(try_=20, first_byte=20, cold_head=20, stall=20, no_progress=40, **CONNECTS)
StartUpstream = Callable[..., Awaitable[FakeRegistry]]
Task = asyncio.Task[Reply]


@pytest.fixture(autouse=True)
async def heard() -> AsyncIterator[None]:
    """No test leaves an exception that nobody heard."""
    with nothing_unheard():
        yield


# Connections.


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"max_connections": 5}, "total"), ({"max_connections_per_client": 5}, "client")],
)
async def test_connections_are_counted_and_bounded(
    start_mirror: StartMirror, settings: dict[str, int], reason: str
) -> None:
    """The settings hold, loopback is no exception, and the admin port has places of its own."""
    mirror = await start_mirror(**settings)
    async with asyncio.timeout(10):
        clients = [await RawClient.connect(mirror.app.port) for _ in range(5)]
        for client in clients:
            await client.ask("/v2/")
            await client.answer()
        reply = await mirror.get("/v2/")
        assert (reply.status, reply.code, reply.headers["Retry-After"]) == (503, "UNAVAILABLE", "5")
        assert mirror.metric("mirror_connections") == 5
        assert mirror.metric("mirror_connections_refused_total", reason=reason) == 1
        async with mirror.session.get(f"{mirror.admin_url}/readyz") as answer:
            assert answer.status == 200
    for client in clients:
        client.close()


async def test_who_comes_by_a_trusted_proxy_shares_no_limit(start_mirror: StartMirror) -> None:
    """All of its clients have one address: the proxy's."""
    mirror = await start_mirror(max_connections_per_client=2, trusted_proxies=["127.0.0.0/8"])
    replies = await mirror.together(10, "/v2/")
    assert {reply.status for reply in replies} == {200}


@pytest.mark.parametrize("port", ["port", "admin_port"])
async def test_half_a_request_ends(lines: Lines, start_mirror: StartMirror, port: str) -> None:
    """On both ports: a 408 for who has begun, and nothing for who has not."""
    mirror = await start_mirror(timeouts=short_timeouts(request=0.2))
    async with asyncio.timeout(10):
        silent = await RawClient.connect(getattr(mirror.app, port))
        slow = await RawClient.connect(getattr(mirror.app, port))
        await slow.send(b"GET / HTTP/1.1\r\nX: ")
        await slow.send(b"a")
        assert (await slow.error())[0] == 408
        assert (await slow.rest(), await silent.rest()) == (b"", b"")
    assert lines.troubles() == []
    slow.close()
    silent.close()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer s3cret" + b"a" * 40_000 + b"\r\n\r\n", 431),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\ns3cret\r\n\r\n", 400),
        (b"CONNECT  HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 405),
        (b"GET /metric HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    ],
    ids=["a long header", "a broken header", "a tunnel to nowhere", "a write", "an unknown path"],
)
async def test_the_admin_port_is_as_strict(lines: Lines, mirror: RunningMirror, sent: bytes, status: int) -> None:
    """It answers what it cannot serve, and repeats nothing of it, neither there nor in the log."""
    async with asyncio.timeout(5), await RawClient.connect(mirror.app.admin_port) as client:
        await client.send(sent)
        head, body = await client.answer()
    assert head.status == status
    assert head.headers["Server"] == "mirror"
    assert b"s3cret" not in body
    assert "s3cret" not in lines.text
    assert lines.troubles() == []


LIMITED = """
import resource, runpy
resource.setrlimit(resource.RLIMIT_NOFILE, (256, {hard}))
runpy.run_module("mirror", run_name="__main__")
"""


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("hard", "clients"), [(4096, 500), (600, 130)])
async def test_as_many_as_there_are_descriptors_for(
    tmp_path: Path, upstream: FakeRegistry, hard: int, clients: int
) -> None:
    """The soft limit on open files is raised to the hard one; where that is too low, too, some hear that there are too
    many, and the log says how many may come. Everybody is answered.
    """
    served = Served(tmp_path, upstream, program=("-c", LIMITED.format(hard=hard)), max_connections=1000)
    try:
        await served.start()
        (warning,) = [line for line in served.lines if "allows fewer connections" in line]
        places = json.loads(warning)["connections"]
        assert places == (hard - hard // 2) // 3

        async with AsyncExitStack() as stack:
            came = [await stack.enter_async_context(await RawClient.connect(served.port)) for _ in range(clients)]
            for client in came:
                await client.ask("/v2/")
            async with asyncio.timeout(30):
                answers = [await client.head() for client in came]
        assert [answer.status for answer in answers].count(200) == min(places, clients)
        assert {answer.status for answer in answers} <= {200, 503}
    finally:
        await served.stop()
    assert not any("Traceback" in line or "out of system resource" in line for line in served.lines)


# Downloads.


async def hanging(mirror: RunningMirror, upstream: FakeRegistry, count: int, registry: str = "") -> list[Task]:
    """Clients of so many blobs that come half."""
    blobs = [upstream.put_blob("library/demo", 80_000 + number) for number in range(count)]
    rules = [upstream.fault(blob, stall_at(40_000)) for blob in blobs]
    paths = [f"{registry}/v2/library/demo/blobs/{blob.digest}" for blob in blobs]
    clients = [asyncio.create_task(mirror.get(path)) for path in paths]
    for rule in rules:
        await rule.reached.wait()
    return clients


async def queued(mirror: RunningMirror, count: int) -> None:
    """Waits until so many downloads wait."""
    for _ in range(500):
        if mirror.metric("mirror_downloads_queued") == count:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{mirror.metric('mirror_downloads_queued')} wait")


async def end(clients: list[Task]) -> None:
    """They leave."""
    for client in clients:
        client.cancel()
    await asyncio.gather(*clients, return_exceptions=True)


async def test_a_download_waits_for_its_turn(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """Past `max_downloads` it waits, whoever comes for it joins it there, and it is fetched once when it may."""
    mirror = await start_mirror(max_downloads=2, timeouts=PATIENT)
    first = await hanging(mirror, upstream, 2)
    blob = upstream.put_blob("library/demo", 100_000)
    together = asyncio.create_task(mirror.together(5, f"/v2/demo/blobs/{blob.digest}"))
    await queued(mirror, 1)
    assert mirror.metric("mirror_downloads_in_flight") == 2
    assert upstream.requests_for(blob) == 0

    await end(first[:1])
    replies = await together
    assert {reply.body for reply in replies} == {blob.content}
    assert upstream.requests_for(blob) == 1
    assert sorted(str(reply.cache) for reply in replies) == ["joined"] * 4 + ["miss"]
    await end(first[1:])
    await mirror.quiet()
    assert (mirror.metric("mirror_downloads_in_flight"), mirror.metric("mirror_downloads_queued")) == (0, 0)


@pytest.mark.parametrize("wanted", [{}, {"Range": "bytes=50000-50009"}], ids=["whole", "range"])
async def test_who_has_waited_long_enough_hears_why(
    start_mirror: StartMirror, upstream: FakeRegistry, wanted: dict[str, str]
) -> None:
    """503 with Retry-After, not 504: it was not the upstream that took so long."""
    mirror = await start_mirror(
        max_downloads=1, timeouts=short_timeouts(first_byte=0.5, cold_head=0.5, stall=20, no_progress=40)
    )
    first = await hanging(mirror, upstream, 1)
    blob = upstream.put_blob("library/demo", 100_000)
    reply = await mirror.blob("demo", blob.digest, **wanted)
    assert (reply.status, reply.code, reply.headers["Retry-After"]) == (503, "UNAVAILABLE", "5")
    assert upstream.requests_for(blob) == 0
    await end(first)


@pytest.mark.parametrize("wanted", [{}, {"Range": "bytes=50000-50009"}], ids=["whole", "range"])
async def test_what_nobody_waits_for_leaves_the_queue(
    start_mirror: StartMirror, upstream: FakeRegistry, wanted: dict[str, str]
) -> None:
    """Also where a range would have had the rest fetched behind it."""
    mirror = await start_mirror(max_downloads=1, timeouts=PATIENT)
    first = await hanging(mirror, upstream, 1)
    blob = upstream.put_blob("library/demo", 100_000)
    client = asyncio.create_task(mirror.blob("demo", blob.digest, **wanted))
    await queued(mirror, 1)

    await end([client])
    await queued(mirror, 0)
    await end(first)
    await mirror.quiet()
    assert upstream.requests_for(blob) == 0


async def test_past_the_queue_the_answer_comes_at_once(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """One registry gets three of four waiting places; whoever comes after them need not wait to hear no."""
    mirror = await start_mirror(max_downloads=1, timeouts=PATIENT)
    clients = await hanging(mirror, upstream, 1)
    for number in range(3):
        blob = upstream.put_blob("library/demo", 100_000 + number)
        clients.append(asyncio.create_task(mirror.blob("demo", blob.digest)))
        await queued(mirror, number + 1)
    last = upstream.put_blob("library/demo", 200_000)
    async with asyncio.timeout(5):
        reply = await mirror.blob("demo", last.digest)
    assert (reply.status, reply.code, reply.headers["Retry-After"]) == (503, "UNAVAILABLE", "5")
    await end(clients)


async def test_a_registry_that_hangs_holds_up_no_other(
    start_mirror: StartMirror, start_upstream: StartUpstream, upstream: FakeRegistry
) -> None:
    """However many of its blobs are wanted, a blob from elsewhere finds a place."""
    slow = await start_upstream()
    mirror = await start_mirror(
        max_downloads=4, timeouts=PATIENT, upstreams={"docker.io": upstream, "slow.example:5000": slow}
    )
    clients = await hanging(mirror, slow, 3, "/slow.example:5000")
    for number in range(6):
        blob = slow.put_blob("library/demo", 100_000 + number)
        clients.append(asyncio.create_task(mirror.get(f"/slow.example:5000/v2/library/demo/blobs/{blob.digest}")))
    await queued(mirror, 6)
    blob = upstream.put_blob("library/demo", 100_000)
    async with asyncio.timeout(5):
        assert (await mirror.blob("demo", blob.digest)).body == blob.content
    await end(clients)


async def test_a_registry_may_have_its_own_limit(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """`max_downloads` of its entry, for those that dislike many at a time."""
    entry = UpstreamSettings(url=upstream.url, max_downloads=1)
    mirror = await start_mirror(timeouts=PATIENT, upstreams={"docker.io": entry})
    clients = await hanging(mirror, upstream, 1)
    blob = upstream.put_blob("library/demo", 100_000)
    clients.append(asyncio.create_task(mirror.blob("demo", blob.digest)))
    await queued(mirror, 1)
    await end(clients)


async def test_a_slow_client_keeps_nobody_waiting(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """A blob that is not kept comes at its client's pace: it has no place among those that are."""
    mirror = await start_mirror(max_downloads=1, storage={"max_size": 4 * MIB}, timeouts=PATIENT)
    large, small = upstream.put_blob("library/demo", 16 * MIB), upstream.put_blob("library/demo", 100_000)
    async with await RawClient.connect(mirror.app.port, 4096) as slow:
        await slow.ask(f"/v2/demo/blobs/{large.digest}")
        await slow.head()
        assert (await mirror.blob("demo", small.digest)).body == small.content
        assert mirror.metric("mirror_downloads_in_flight") >= 1


async def test_a_held_blob_that_cannot_be_read_waits_for_no_download(
    start_mirror: StartMirror, upstream: FakeRegistry
) -> None:
    """Its client has begun, and its rest passes the disk by: it has no place among blobs that are kept to wait for."""
    disk = FaultyFiles()
    mirror = await start_mirror(max_downloads=1, files=disk, timeouts=PATIENT)
    blob = upstream.put_blob("library/demo", 100_000)
    await mirror.blob("demo", blob.digest)
    await mirror.quiet()
    clients = await hanging(mirror, upstream, 1)
    disk.fail(errno.EIO, "sendfile", times=1)
    async with asyncio.timeout(5):
        assert (await mirror.blob("demo", blob.digest)).body == blob.content
    await end(clients)


async def test_who_has_begun_joins_nobody_in_the_queue(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """The same blob is wanted anew, to be kept, and waits for its turn; that is not for who has half of it."""
    mirror = await start_mirror(max_downloads=1, timeouts=PATIENT)
    blob = upstream.put_blob("library/demo", 100_000)
    clients = await hanging(mirror, upstream, 1)
    clients.append(asyncio.create_task(mirror.blob("demo", blob.digest)))
    await queued(mirror, 1)

    target = Target(UpstreamName("docker.io", "docker.io"), "library/demo")
    bodies = [mirror.app.downloads.anew(blob.digest, target) for _ in range(10)]
    async with asyncio.timeout(5):
        await asyncio.gather(*(body.at(0) for body in bodies))

    assert upstream.requests_for(blob) == 1
    await asyncio.gather(*(body.close() for body in bodies))
    await end(clients)


# Questions.


async def test_a_registry_that_answers_nothing_does_not_take_all_connections(
    start_mirror: StartMirror, start_upstream: StartUpstream, upstream: FakeRegistry
) -> None:
    """So many questions are with it, more wait, and those of another registry are answered meanwhile."""
    slow = await start_upstream()
    mirror = await start_mirror(timeouts=PATIENT, upstreams={"docker.io": upstream, "slow.example:5000": slow})
    slow.fault("/v2/library/*", stall())
    paths = [f"/slow.example:5000/v2/library/demo{number}/manifests/1" for number in range(400)]
    clients = [asyncio.create_task(mirror.get(path)) for path in paths]
    async with asyncio.timeout(15):
        await slow.until(lambda: slow.in_flight >= 144, limit=15)
        image = upstream.add_image("library/demo", "1")
        assert (await mirror.manifest("demo", "1")).body == image.manifest.content
    assert slow.in_flight == 144
    await end(clients)


async def test_a_token_endpoint_that_hangs_takes_no_place_of_the_registry(
    start_mirror: StartMirror, upstream: FakeRegistry
) -> None:
    """Who has a token pulls on while any number of others wait for one."""
    upstream.auth = Bearer(realm=f"{upstream.cdn_url}/token")
    image = upstream.add_image("library/demo", "1")
    mirror = await start_mirror(timeouts=PATIENT)
    await mirror.manifest("demo", "none")
    upstream.fault(ANY, stall(), kind="token", origin="cdn")
    clients = [asyncio.create_task(mirror.manifest(f"demo{number}", "1")) for number in range(200)]
    await upstream.until(lambda: upstream.in_flight >= 144, limit=15)
    async with asyncio.timeout(5):
        assert (await mirror.manifest("demo", "1")).body == image.manifest.content
    await end(clients)


async def test_a_registry_that_shows_nothing_of_what_it_claims_does_not_either(
    start_mirror: StartMirror, start_upstream: StartUpstream, upstream: FakeRegistry
) -> None:
    """What is held from another one it has to show a little of; a share of the places for that is all it takes."""
    rival = await start_upstream()
    mirror = await start_mirror(timeouts=PATIENT, upstreams={"docker.io": upstream, "rival.test": rival})
    blobs = [upstream.put_blob("library/demo", 10_000 + number) for number in range(70)]
    for blob in blobs:
        await mirror.blob("demo", blob.digest)
        rival.repository("copy/app").blobs[blob.digest] = blob
    await mirror.quiet()
    rival.fault(ANY, stall_at(0), kind="blob", method="GET")
    clients = [asyncio.create_task(mirror.blob("rival.test/copy/app", blob.digest)) for blob in blobs]
    await rival.until(lambda: rival.in_flight >= 48 and rival.count(method="HEAD") == len(blobs))
    assert (await mirror.blob("demo", blobs[0].digest)).cache == "hit"
    assert rival.in_flight == 48
    await end(clients)


async def test_a_question_without_a_turn_is_honest(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """503 with Retry-After for those who never got to ask, 504 for those who did and heard nothing."""
    mirror = await start_mirror(timeouts=short_timeouts(try_=10, first_byte=2.0, **CONNECTS))
    upstream.fault("/v2/library/*", stall())
    paths = [f"/v2/library/demo{number}/manifests/1" for number in range(200)]
    replies = await asyncio.gather(*map(mirror.get, paths))
    assert {reply.status for reply in replies} == {503, 504}
    assert all(reply.headers["Retry-After"] for reply in replies if reply.status == 503)


async def test_few_idle_connections_are_kept(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """After a crowd most of them wait for the next one, but not all: each could be to another host."""
    mirror = await start_mirror(timeouts=PATIENT)
    opened = []
    for round_ in range(2):
        rule = upstream.fault("/v2/library/*", stall())
        paths = [f"/v2/library/demo{round_}-{number}/manifests/1" for number in range(144)]
        clients = [asyncio.create_task(mirror.get(path)) for path in paths]
        await upstream.until(lambda: upstream.in_flight == 144, limit=15)
        opened.append(upstream.connections)
        rule.remove()
        rule.release()
        await asyncio.gather(*clients)
    assert 10 <= opened[1] - opened[0] <= 30


# At a client's pace.


async def test_parts_wait_for_their_turn_too(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """A part that is not held is asked for by a request of its own, and of those there are so many and no more."""
    mirror = await start_mirror(timeouts=short_timeouts(cold_head=2, first_byte=10, stall=20, no_progress=40))
    blob = upstream.put_blob("library/demo", 4 * MIB)
    upstream.fault(blob, stall_at(100_000), method="GET")  # the fill: no part far ahead comes from there
    part = {"Range": f"bytes={3 * MIB}-{3 * MIB + 9}"}
    lanes = mirror.app.downloads.tools.lanes
    name = UpstreamName("docker.io", "docker.io")
    turns = [await lanes.pace(name, 0) for _ in range(PACED * 3 // 4)]

    reply = await mirror.blob("demo", blob.digest, **part)
    assert (reply.status, reply.code, reply.headers["Retry-After"]) == (503, "UNAVAILABLE", "5")

    turns.pop().release()
    for _ in range(3):  # each gives its turn back
        reply = await mirror.blob("demo", blob.digest, **part)
        assert (reply.status, reply.body) == (206, blob.read(3 * MIB, 10))


async def test_who_waits_for_the_fill_has_no_turn(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """Its own request turned out to be of no use; others may have one in the meantime."""
    mirror = await start_mirror(timeouts=PATIENT)
    blob = upstream.put_blob("library/demo", 4 * MIB)
    fill = upstream.fault(blob, stall_at(100_000), times=1, method="GET")
    upstream.fault(blob, ignore_range(), method="GET")
    lanes = mirror.app.downloads.tools.lanes
    name = UpstreamName("docker.io", "docker.io")
    turns = [await lanes.pace(name, 0) for _ in range(PACED * 3 // 4 - 1)]
    client = asyncio.create_task(mirror.blob("demo", blob.digest, Range=f"bytes={3 * MIB}-{3 * MIB + 9}"))
    await upstream.until(lambda: upstream.requests_for(blob) == 2)

    turns.append(await lanes.pace(name, 5))

    fill.release()
    assert (await client).body == blob.read(3 * MIB, 10)


@pytest.mark.parametrize("wanted", ["blob without room", "part"])
async def test_a_trickle_of_bytes_keeps_no_connection_to_an_upstream(
    start_mirror: StartMirror, upstream: FakeRegistry, wanted: str
) -> None:
    """Who takes a little now and then is let, but not where others wait for the turn: it ends short of its length."""
    mirror = await start_mirror(
        storage={"max_size": 4 * MIB} if wanted != "part" else None,
        timeouts=short_timeouts(client=1.0, min_rate=2 * MIB, min_rate_window=20, stall=20, no_progress=40),
    )
    blob = upstream.put_blob("library/demo", 48 * MIB)
    headers = {"Range": f"bytes={16 * MIB}-{48 * MIB - 2}"} if wanted == "part" else {}
    if wanted == "part":
        upstream.fault(blob, stall_at(100_000), times=1, method="GET")  # the fill
    async with asyncio.timeout(15), await RawClient.connect(mirror.app.port, 256 << 10) as client:
        await client.ask(f"/v2/demo/blobs/{blob.digest}", **headers)
        head = await client.head()
        taken = 0
        for _ in range(40):
            taken += len(await client.read(64 << 10))
            await asyncio.sleep(0.1)
        taken += len(await client.rest())
    assert head.status == (206 if wanted == "part" else 200)
    assert taken < head.length


# All of it.


async def test_a_flood_of_names_leaves_nothing_running(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """Repositories, tags, digests, hosts and cursors that are not there: no task and no time series stays of them."""
    mirror = await start_mirror(timeouts=PATIENT)
    image = upstream.add_image("library/demo", "1", layers=[5000])
    before = len(asyncio.all_tasks())

    async def flood(round_: int) -> None:
        for number in range(15):
            name = f"r{round_}x{number}"
            digest = Digest.of(name.encode())
            paths = [
                f"/v2/{name}/manifests/1",
                f"/v2/demo/manifests/{name}",
                f"/v2/demo/manifests/{digest}",
                f"/v2/demo/blobs/{digest}",
                f"/v2/{name}/tags/list",
                f"/v2/demo/referrers/{digest}",
                f"/v2/demo/manifests/1?ns={name}.test",
                f"/v2/{name}.test/demo/manifests/1",
                f"/v2/demo/tags/list?last={name}",
                f"/v2/demo/manifests/1?{name}",
            ]
            await asyncio.gather(*map(mirror.get, paths))

    await flood(0)
    families = samples(mirror)
    for round_ in range(1, 4):
        await flood(round_)
    await mirror.quiet()

    assert samples(mirror) == families
    assert (await mirror.manifest("demo", "1")).body == image.manifest.content
    for _ in range(500):
        if len(asyncio.all_tasks()) <= before + IDLE_CLIENTS:
            break
        await asyncio.sleep(0.01)
    assert len(asyncio.all_tasks()) <= before + IDLE_CLIENTS


def samples(mirror: RunningMirror) -> int:
    """How many time series there are."""
    return sum(len(family.samples) for family in mirror.app.metrics.registry.collect())

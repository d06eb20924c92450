"""Several workers are one mirror: each upstream is asked by one of them, whichever of them a client has come to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pydantic import SecretStr

from mirror.config import UpstreamSettings
from mirror.peers.messages import Head, Spooling
from mirror.peers.wire import Kind, Wire
from mirror.sockets import meeting_point, new_crowd
from mirror.store.spools import spool_name
from tests.clock import Clock
from tests.conftest import StartMirror
from tests.crowd import PATIENT, Crowd
from tests.harness import short_timeouts
from tests.parts import parts_of
from tests.reading import Reading
from tests.storing import until
from tests.upstream import ANY, Bearer, FakeRegistry, Fault, flip, html, reset, stall, stall_at, status, trickle
from tests.upstream.fixtures import StartUpstream

StartCrowd = Callable[..., Awaitable[Crowd]]
REPOSITORY = "library/demo"


@pytest.fixture
async def start_crowd(upstream: FakeRegistry, tmp_path: Path) -> AsyncIterator[StartCrowd]:
    """Starts workers in front of `upstream` as docker.io; options as of Crowd."""
    async with AsyncExitStack() as stack:

        async def start(**options: Any) -> Crowd:
            upstreams = options.pop("upstreams", {"docker.io": upstream})
            return await stack.enter_async_context(Crowd(tmp_path / "data", upstreams, **options))

        yield start


@pytest.fixture
async def crowd(start_crowd: StartCrowd) -> Crowd:
    """Two workers."""
    return await start_crowd()


# One question, whoever is asked.


@pytest.mark.parametrize("size", [1000, 8 << 20], ids=["small", "large"])
async def test_a_herd_over_all_workers_costs_one_fetch(crowd: Crowd, upstream: FakeRegistry, size: int) -> None:
    """Every client gets the blob whole, and the upstream sends its bytes exactly once."""
    blob = upstream.put_blob(REPOSITORY, size)

    replies = await crowd.together(30, f"/v2/demo/blobs/{blob.digest}")

    assert {reply.status for reply in replies} == {200}
    assert all(reply.body == blob.content for reply in replies)
    assert upstream.bytes_for(blob) == blob.size
    assert upstream.requests_for(blob) == 1
    caches = [reply.cache for reply in replies]
    assert caches.count("miss") == 1
    assert set(caches) <= {"miss", "joined", "hit"}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("by", ["tag", "digest"])
async def test_a_herd_over_all_workers_asks_once_for_a_manifest(
    crowd: Crowd, upstream: FakeRegistry, by: str, method: str
) -> None:
    """Whoever waits at another worker has joined it just the same."""
    image = upstream.add_image(REPOSITORY, "1")
    reference = "1" if by == "tag" else str(image.digest)
    upstream.latency = 0.2

    replies = await crowd.together(20, f"/v2/demo/manifests/{reference}", method=method)

    assert {(reply.status, reply.headers["Docker-Content-Digest"]) for reply in replies} == {(200, str(image.digest))}
    assert method == "HEAD" or {reply.body for reply in replies} == {image.manifest.content}
    assert upstream.count(image, method=method) == 1
    caches = [reply.cache for reply in replies]
    assert caches.count("miss") == 1
    assert set(caches) <= {"miss", "joined", "hit"}


async def test_a_token_is_minted_once(start_crowd: StartCrowd, start_upstream: StartUpstream) -> None:
    """For whichever worker a client has come to, its owner shows it to the upstream."""
    auth = Bearer({"ci": "secret"})
    upstream = await start_upstream(auth=auth)
    image = upstream.add_image(REPOSITORY, "1")
    upstream.make_private(REPOSITORY)
    settings = UpstreamSettings(
        url=upstream.url, username="ci", password=SecretStr("secret"), token_hosts=("127.0.0.1",)
    )
    crowd = await start_crowd(upstreams={"docker.io": settings})

    for path in ("manifests/1", *(f"blobs/{blob.digest}" for blob in image.blobs)):
        replies = await crowd.together(4, f"/v2/demo/{path}")
        assert {reply.status for reply in replies} == {200}

    assert upstream.count(kind="token") == 1


async def test_lists_are_asked_for_once(crowd: Crowd, upstream: FakeRegistry) -> None:
    """Tags and referrers, page by page, and each worker has them from the records afterwards."""
    image = upstream.add_image(REPOSITORY, "1")
    upstream.referrers = True
    signature = upstream.add_image(REPOSITORY, subject=image.manifest)
    tags = [f"v{number:02}" for number in range(7)]
    for tag in tags:
        upstream.tag(REPOSITORY, tag, image)

    listed = await crowd.together(10, "/v2/demo/tags/list")
    attached = await crowd.together(10, f"/v2/demo/referrers/{image.digest}")

    assert all(json.loads(reply.body)["tags"] == ["1", *tags] for reply in listed)
    found = [[one["digest"] for one in json.loads(reply.body)["manifests"]] for reply in attached]
    assert found == [[str(signature.digest)]] * 10
    assert (upstream.count(kind="tags"), upstream.count(kind="referrers")) == (1, 1)
    again = await crowd.together(2, "/v2/demo/tags/list")
    assert [reply.cache for reply in again] == ["hit", "hit"]


async def test_an_old_tag_is_asked_for_once(start_crowd: StartCrowd, upstream: FakeRegistry) -> None:
    """A push is seen through every worker, for one HEAD and one GET."""
    clock = Clock()
    crowd = await start_crowd(clock=clock)
    upstream.add_image(REPOSITORY, "1")
    await crowd.together(2, "/v2/demo/manifests/1")
    moved = upstream.add_image(REPOSITORY, "2")
    upstream.move_tag(REPOSITORY, "1", moved)
    clock.forward(301)
    upstream.reset()
    upstream.latency = 0.1

    replies = await crowd.together(10, "/v2/demo/manifests/1")

    assert {reply.headers["Docker-Content-Digest"] for reply in replies} == {str(moved.digest)}
    assert (upstream.count(method="HEAD"), upstream.count(method="GET")) == (1, 1)


async def test_an_unmoved_tag_is_revalidated_for_all(start_crowd: StartCrowd, upstream: FakeRegistry) -> None:
    """By one HEAD; its age is in the record that all of them read."""
    clock = Clock()
    crowd = await start_crowd(clock=clock)
    upstream.add_image(REPOSITORY, "1")
    await crowd.together(2, "/v2/demo/manifests/1")
    clock.forward(301)
    upstream.reset()

    first = await crowd.other.manifest("demo", "1")
    then = await crowd.together(4, "/v2/demo/manifests/1")

    assert first.cache == "revalidated"
    assert {reply.cache for reply in then} == {"hit"}
    assert len(upstream.content_requests()) == 1


async def test_hits_ask_nobody(crowd: Crowd, upstream: FakeRegistry) -> None:
    """What one worker has brought is answered by all of them from the disk."""
    image = upstream.add_image(REPOSITORY, "1")
    paths = ["/v2/demo/manifests/1", *(f"/v2/demo/blobs/{blob.digest}" for blob in image.blobs)]
    for path in paths:
        await crowd.owner.get(path)
    await crowd.quiet()
    before = crowd.other.metric("mirror_peer_requests_total")

    assert [(await crowd.other.get(path)).cache for path in paths] == ["hit"] * len(paths)
    assert crowd.other.metric("mirror_peer_requests_total") == before == 0


# No, and no answer.


ABSENT = "sha256:" + "0" * 64
PATHS = ["manifests/none", f"manifests/{ABSENT}", f"blobs/{ABSENT}"]


@pytest.mark.parametrize("path", PATHS, ids=["tag", "digest", "blob"])
async def test_what_is_absent_for_one_is_absent_for_all(crowd: Crowd, upstream: FakeRegistry, path: str) -> None:
    """With the same status, headers and body, from the upstream's one word."""
    upstream.add_image(REPOSITORY, "1")

    first = await crowd.other.get(f"/v2/demo/{path}")
    asked = len(upstream.content_requests())
    others = await crowd.together(4, f"/v2/demo/{path}")

    assert first.status == 404
    assert {(reply.status, reply.body) for reply in others} == {(first.status, first.body)}
    assert len(upstream.content_requests()) == asked


async def test_a_refusal_ends_everybodys_links(crowd: Crowd, upstream: FakeRegistry) -> None:
    """What one worker hears of a repository counts in all of them: their hits have to be asked for again."""
    image = upstream.add_image(REPOSITORY, "1")
    path = f"/v2/demo/blobs/{image.layers[0].digest}"
    for worker in crowd.workers:
        assert (await worker.get(path)).status == 200
    await crowd.quiet()
    upstream.fault(ANY, status(403))

    assert (await crowd.other.manifest("demo", "unheard")).status == 403
    assert [(await worker.get(path)).status for worker in crowd.workers] == [403, 403]


FAULTS = {
    "429": (status(429, retry_after=40), 429),
    "500": (status(500), 503),
    "silence": (stall(), 504),
    "reset": (reset(), 503),
    "page": (html(200), 503),
}


@pytest.mark.parametrize(
    ("name", "path"),
    [*((name, "manifests/1") for name in FAULTS), ("silence", f"blobs/{ABSENT}"), ("429", "tags/list")],
)
async def test_errors_are_those_of_one_worker(
    start_crowd: StartCrowd, start_mirror: StartMirror, upstream: FakeRegistry, name: str, path: str
) -> None:
    """Status and headers, whoever of the workers is asked, and as without any; the words, too, but for who had to wait:
    one of several time limits has passed first.
    """
    fault, code = FAULTS[name]
    crowd, alone = await start_crowd(), await start_mirror()
    upstream.add_image(REPOSITORY, "1")
    upstream.fault(ANY, fault)

    replies = [await one.get(f"/v2/demo/{path}") for one in (alone, crowd.other)]

    assert [reply.status for reply in replies] == [code, code]
    assert name == "silence" or replies[0].body == replies[1].body
    kept = [{name: text for name, text in reply.headers.items() if name not in _OWN} for reply in replies]
    assert kept[0] == kept[1]


_OWN = ("Content-Length", "Date", "X-Request-ID", "Retry-After")


async def test_one_pause_stops_all(crowd: Crowd, upstream: FakeRegistry) -> None:
    """Who is told to wait is told for everybody: nobody else asks meanwhile."""
    upstream.add_image(REPOSITORY, "1")
    upstream.fault(ANY, status(429, retry_after=40))
    assert (await crowd.other.manifest("demo", "1")).status == 429
    asked = len(upstream.content_requests())

    replies = await crowd.together(6, "/v2/demo/manifests/2")

    assert {reply.status for reply in replies} == {429}
    assert all(30 <= int(reply.headers["Retry-After"]) <= 40 for reply in replies)
    assert len(upstream.content_requests()) == asked


@pytest.mark.parametrize("fault", [status(500), stall()], ids=["error", "silence"])
async def test_stale_is_served_through_every_worker(
    start_crowd: StartCrowd, upstream: FakeRegistry, fault: Fault
) -> None:
    """Where the upstream gives no answer, tags and lists are given as they were."""
    clock = Clock()
    crowd = await start_crowd(clock=clock)
    image = upstream.add_image(REPOSITORY, "1")
    for path in ("manifests/1", "tags/list"):
        await crowd.other.get(f"/v2/demo/{path}")
    clock.forward(301)
    upstream.fault(ANY, fault)

    for worker in crowd.workers:
        manifest, tags = await worker.manifest("demo", "1"), await worker.get("/v2/demo/tags/list")
        assert (manifest.status, manifest.cache, manifest.body) == (200, "stale", image.manifest.content)
        assert (tags.status, tags.cache) == (200, "stale")
        assert worker.metric("mirror_stale_served_total") == 2


# Bytes.


@pytest.mark.parametrize(
    "wanted", ["bytes=0-99", "bytes=-100", "bytes=1000000-", "bytes=5-9,2000000-2000009", "bytes=0-4194303"]
)
async def test_parts_come_through_every_worker(crowd: Crowd, upstream: FakeRegistry, wanted: str) -> None:
    """While the blob is on its way, and when it is here; no worker asks an upstream that is not its own."""
    blob = upstream.put_blob(REPOSITORY, 4 << 20)
    upstream.fault(blob, trickle(8 << 20), method="GET")
    path = f"/v2/demo/blobs/{blob.digest}"

    async with await Reading.ask(crowd.other, path) as whole:
        await whole.take(1000)
        early = await crowd.other.get(path, Range=wanted)
        assert len(await whole.rest()) == blob.size - 1000
    await crowd.quiet()
    late = [await worker.get(path, Range=wanted) for worker in crowd.workers]

    bodies = [parts_of(reply) if "," in wanted else reply.body for reply in (early, *late)]
    assert {reply.status for reply in (early, *late)} == {206}
    assert bodies[0] == bodies[1] == bodies[2]
    assert "hit" in {reply.cache for reply in late}


async def test_a_part_of_a_cold_blob_is_not_waited_for(crowd: Crowd, upstream: FakeRegistry) -> None:
    """What is far ahead of the fill is asked for by itself, at the owner's."""
    blob = upstream.put_blob(REPOSITORY, 32 << 20)
    upstream.fault(blob, stall_at(1 << 20), times=1)

    reply = await crowd.other.blob("demo", blob.digest, Range=f"bytes={30 << 20}-{(30 << 20) + 999}")

    assert (reply.status, reply.cache, reply.body) == (206, "bypass", blob.read(30 << 20, 1000))
    assert crowd.owner.metric("mirror_upstream_bytes_total") >= 1000
    assert crowd.other.metric("mirror_upstream_bytes_total") == 0


async def test_without_room_the_blob_passes_through_once(start_crowd: StartCrowd, upstream: FakeRegistry) -> None:
    """Nobody keeps it, and whoever comes in time shares it, at whichever worker."""
    crowd = await start_crowd(storage={"max_size": 1 << 20})
    blob = upstream.put_blob(REPOSITORY, 3 << 20)
    rule = upstream.fault(blob, stall_at(100), method="GET")
    path = f"/v2/demo/blobs/{blob.digest}"

    async with AsyncExitStack() as stack:
        asking = [Reading.ask(worker, path) for worker in crowd.workers * 3]
        readings = [await stack.enter_async_context(each) for each in await asyncio.gather(*asking)]
        rule.release()
        bodies = await asyncio.gather(*(reading.rest() for reading in readings))

    assert {(reading.status, reading.ending) for reading in readings} == {(200, "complete")}
    assert all(body == blob.content for body in bodies)
    assert upstream.requests_for(blob) == 1
    assert crowd.metric("mirror_bypass_bytes_total") == blob.size


async def test_wrong_bytes_look_whole_to_nobody(crowd: Crowd, upstream: FakeRegistry) -> None:
    """Whoever has begun to read ends short, at every worker; who comes then gets the right ones."""
    blob = upstream.put_blob(REPOSITORY, 1 << 20)
    rule = upstream.fault(blob, stall_at(500_000), times=1)
    upstream.fault(blob, flip(at=100_000), times=1)
    path = f"/v2/demo/blobs/{blob.digest}"

    async with AsyncExitStack() as stack:
        readings = [await stack.enter_async_context(await Reading.ask(worker, path)) for worker in crowd.workers]
        for reading in readings:
            await reading.take(1000)
        rule.release()
        for reading in readings:
            await reading.rest()
            assert reading.ending == "short"
    replies = await crowd.together(4, path)

    assert all(reply.body == blob.content for reply in replies)
    assert upstream.bytes_for(blob) == 2 * blob.size


async def test_a_drop_is_mended_for_all(crowd: Crowd, upstream: FakeRegistry) -> None:
    """The owner resumes; nobody else notices."""
    blob = upstream.put_blob(REPOSITORY, 1 << 20)
    upstream.fault(blob, reset(at=300_000), times=1)

    replies = await crowd.together(6, f"/v2/demo/blobs/{blob.digest}")

    assert all(reply.body == blob.content for reply in replies)
    assert upstream.requests_for(blob) == 2


async def test_who_may_not_have_it_gets_nothing_from_another_worker(crowd: Crowd, upstream: FakeRegistry) -> None:
    """A blob that another repository has shown is asked for, by the owner, before it is given through this one."""
    blob = upstream.put_blob("library/theirs", 100_000)
    upstream.put_blob("library/ours", 10)
    assert (await crowd.owner.blob("theirs", blob.digest)).status == 200
    await crowd.quiet()

    reply = await crowd.other.blob("ours", blob.digest)

    assert (reply.status, reply.code) == (404, "BLOB_UNKNOWN")
    upstream.put_blob("library/more", blob.content)
    granted = await crowd.other.blob("more", blob.digest)
    assert (granted.status, granted.cache, granted.body) == (200, "revalidated", blob.content)


async def test_who_leaves_stops_what_has_only_begun(crowd: Crowd, upstream: FakeRegistry) -> None:
    """At another worker as at the owner: nobody is left who wants the blob."""
    blob = upstream.put_blob(REPOSITORY, 8 << 20)
    rule = upstream.fault(blob, stall_at(100_000), method="GET")

    async with await Reading.ask(crowd.other, f"/v2/demo/blobs/{blob.digest}") as reading:
        await reading.take(1000)
        assert len(crowd.owner.app.downloads.all) == 1
    await until(lambda: not crowd.owner.app.downloads.all)

    assert rule.hits == 1
    assert crowd.other.app.downloads.all == ()


async def test_one_connection_serves_one_question_after_the_other(crowd: Crowd, upstream: FakeRegistry) -> None:
    """Whatever was asked: a blob fetched, one that is held, a manifest, a list."""
    image = upstream.add_image(REPOSITORY, "1", layers=[3 << 20, 1000, 0])
    true_name, calls = crowd.names[crowd.owner.slot], set[asyncio.Task[None] | None]()
    listening, crowd.names[crowd.owner.slot] = meeting_point(crowd.owner.slot, new_crowd())

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        calls.add(asyncio.current_task())
        there_reader, there_writer = await asyncio.open_unix_connection(true_name)
        await asyncio.gather(copy(reader, there_writer), copy(there_reader, writer))

    relay = await asyncio.start_unix_server(connected, sock=listening)
    await crowd.other.restart()
    held = upstream.put_blob(REPOSITORY, 100_000)
    assert (await crowd.owner.blob("demo", held.digest)).status == 200
    await crowd.quiet()

    for path in ("manifests/1", "tags/list", *(f"blobs/{blob.digest}" for blob in (*image.layers, held))):
        assert (await crowd.other.get(f"/v2/demo/{path}")).status == 200
        await crowd.quiet()

    assert len(calls) == 1
    await crowd.other.stop()
    relay.close()
    await asyncio.gather(*filter(None, calls))
    await crowd.other.start()


# The owner's troubles.


async def test_an_owner_that_comes_back_goes_on(crowd: Crowd, upstream: FakeRegistry) -> None:
    """Started again in the middle of a blob it resumes what it had; clients of the others have every byte."""
    blob = upstream.put_blob(REPOSITORY, 8 << 20)
    rule = upstream.fault(blob, stall_at(3 << 20), times=1)
    path = f"/v2/demo/blobs/{blob.digest}"
    async with AsyncExitStack() as stack:
        readings = [await stack.enter_async_context(await Reading.ask(crowd.other, path)) for _ in range(3)]
        parts = [await reading.take(2 << 20) for reading in readings]

        await crowd.owner.restart()
        rule.release()

        for part, reading in zip(parts, readings, strict=True):
            whole = part + await reading.rest()
            assert (len(whole), whole == blob.content) == (blob.size, True)
    assert upstream.bytes_for(blob) < 1.5 * blob.size


@pytest.mark.parametrize("shown", ["wrong", "right"])
async def test_what_a_dead_owner_has_shown_is_part_of_what_is_verified(
    crowd: Crowd, upstream: FakeRegistry, shown: str
) -> None:
    """Of an owner that dies before the disk has its first bytes, and that fetches others when it is back: nobody who
    has begun with those gets the rest of the others, and nobody loses a byte who has begun with the right ones.
    """
    blob = upstream.put_blob(REPOSITORY, 1 << 20)
    head = blob.content[: 64 << 10] if shown == "right" else bytes(64 << 10)
    await crowd.owner.stop()
    spool = crowd.path / "spool" / spool_name(blob.digest, "docker.io")
    spool.touch()
    died = asyncio.Event()

    async def show_and_die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = Wire(reader, writer)
        assert await wire.read() is not None
        where = Spooling(spool.name, spool.stat().st_ino, blob.size, 0, REPOSITORY, joined=False)
        for news in (where, Head(head)):
            wire.write(Kind.NEWS, msgspec.msgpack.encode(news))
        await died.wait()
        wire.close()

    owner = await Wire.listen(show_and_die, crowd.listening[crowd.owner.slot].dup())
    async with await Reading.ask(crowd.other, f"/v2/demo/blobs/{blob.digest}") as reading:
        begun = await reading.take(len(head))
        spool.write_bytes(blob.content)
        owner.close()
        await crowd.owner.start()
        died.set()
        rest = await reading.rest()

    assert begun == head
    assert reading.ending == "short" if shown == "wrong" else rest == blob.content[len(head) :]


async def test_an_owner_that_stays_away_is_done_without(start_crowd: StartCrowd, upstream: FakeRegistry) -> None:
    """Clients in the middle of a blob go on from the upstream; new ones pass through; nothing is kept."""
    crowd = await start_crowd(timeouts=short_timeouts(peer=0.3))
    image = upstream.add_image(REPOSITORY, "1", layers=[8 << 20, 100_000])
    blob, small = image.layers
    rule = upstream.fault(blob, stall_at(3 << 20), times=1)
    async with await Reading.ask(crowd.other, f"/v2/demo/blobs/{blob.digest}") as reading:
        part = await reading.take(2 << 20)
        await crowd.owner.stop()
        rule.release()

        whole = part + await reading.rest()
        assert (len(whole), whole == blob.content) == (blob.size, True)
    for path, content in (
        ("manifests/1", image.manifest.content),
        (f"manifests/{image.digest}", image.manifest.content),
        (f"blobs/{small.digest}", small.content),
    ):
        for _ in range(2):
            reply = await crowd.other.get(f"/v2/demo/{path}")
            assert (reply.status, reply.body) == (200, content)
            assert reply.cache == "bypass"
    assert (await crowd.other.get("/v2/demo/tags/list")).status == 200
    assert [path for path in (crowd.path / "blobs").rglob("*") if path.is_file()] == []
    assert crowd.other.metric("mirror_peer_requests_total", result="silent") >= 1
    await crowd.owner.start()
    assert (await crowd.owner.blob("demo", small.digest)).cache == "miss"


async def test_a_silent_owner_is_bypassed(start_crowd: StartCrowd, upstream: FakeRegistry) -> None:
    """One that takes connections and says nothing, as a stopped process does."""
    crowd = await start_crowd(timeouts=short_timeouts(peer=0.3))
    image = upstream.add_image(REPOSITORY, "1")
    await crowd.owner.stop()
    callers: list[asyncio.StreamWriter] = []

    async def say_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        callers.append(writer)

    silent = await asyncio.start_unix_server(say_nothing, sock=crowd.listening[crowd.owner.slot].dup())

    replies = [await crowd.other.manifest("demo", "1"), await crowd.other.blob("demo", image.layers[0].digest)]

    assert [reply.status for reply in replies] == [200, 200]
    assert replies[1].body == image.layers[0].content
    assert crowd.other.metric("mirror_peer_requests_total", result="silent") >= 1
    silent.close()
    for caller in callers:
        caller.close()
    await crowd.owner.start()


async def test_nobody_asks_in_circles(start_crowd: StartCrowd, upstream: FakeRegistry) -> None:
    """Workers that do not agree who owns an upstream ask it all the same, and once in a while more than once."""
    crowd = await start_crowd()
    image = upstream.add_image(REPOSITORY, "1")
    crowd.names.reverse()  # what the owner believes from now on: it calls itself by the other's name
    await crowd.owner.restart()
    for path in ("manifests/1", f"blobs/{image.layers[0].digest}", "tags/list", f"referrers/{image.digest}"):
        for worker in crowd.workers:
            assert (await worker.get(f"/v2/demo/{path}")).status == 200


async def test_a_drain_waits_for_the_clients_of_others(crowd: Crowd, upstream: FakeRegistry) -> None:
    """Told to stop at the same time, nobody takes the owner's bytes from another worker's client."""
    blob = upstream.put_blob(REPOSITORY, 4 << 20)
    rule = upstream.fault(blob, stall_at(1 << 20), times=1)
    async with await Reading.ask(crowd.other, f"/v2/demo/blobs/{blob.digest}") as reading:
        part = await reading.take(1000)
        stopping = [asyncio.create_task(worker.app.stop(grace=10)) for worker in crowd.workers]
        await asyncio.sleep(0.1)
        rule.release()
        assert part + await reading.rest() == blob.content
    await asyncio.gather(*stopping)
    assert crowd.other.metric("mirror_upstream_requests_total") == 0


async def test_a_refusal_is_heard_before_anything_was_noted(start_crowd: StartCrowd, upstream: FakeRegistry) -> None:
    """Of a repository of which nobody has noted anything yet: who comes then, to any worker, is asked for again."""
    crowd = await start_crowd(timeouts=short_timeouts(peer=PATIENT, try_=PATIENT))  # `/v2/` has to answer before
    blob = upstream.put_blob(REPOSITORY, 1 << 20)
    rule = upstream.fault(blob, stall_at(500_000), times=1)
    path = f"/v2/demo/blobs/{blob.digest}"
    async with await Reading.ask(crowd.other, path) as reading:
        await reading.take(1000)
        upstream.fault(ANY, status(403))
        assert (await crowd.owner.manifest("demo", "unheard")).status == 403

        assert [(await worker.get(path)).status for worker in crowd.workers] == [403, 403]
        rule.release()


async def test_another_silence_counts_at_both_ends(start_crowd: StartCrowd, upstream: FakeRegistry) -> None:
    """Who is asked says as often as it must now that it is there."""
    crowd = await start_crowd(timeouts=short_timeouts(peer=20.0, first_byte=10.0, try_=10.0))
    upstream.add_image(REPOSITORY, "1")
    upstream.latency = 2.0
    for worker in crowd.workers:
        await worker.reload(timeouts=worker.settings.timeouts.model_copy(update={"peer": 1.0}))

    reply = await crowd.other.manifest("demo", "1")

    assert (reply.status, reply.cache) == (200, "miss")
    assert crowd.other.metric("mirror_peer_requests_total", result="silent") == 0

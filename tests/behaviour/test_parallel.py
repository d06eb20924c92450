"""Clients that ask for much at once, and for the same again at once."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import aiohttp
import pytest

from mirror.oci.digest import Digest
from tests.conftest import StartMirror
from tests.harness import Reply, RunningMirror, short_timeouts
from tests.upstream import FakeRegistry, stall, stall_at, status

REPOSITORY = "library/demo"


class Counting:
    """A client with at most `most` connections, which it keeps; `connections` is how many it has opened."""

    def __init__(self, mirror: RunningMirror, most: int) -> None:
        self.connections = 0
        tracing = aiohttp.TraceConfig()
        tracing.on_connection_create_end.append(self._opened)
        connector = aiohttp.TCPConnector(limit=most)
        self.session = aiohttp.ClientSession(mirror.url, connector=connector, trace_configs=[tracing])

    async def get(self, path: str) -> Reply:
        """A GET."""
        async with self.session.get(path) as response:
            assert response.version == aiohttp.HttpVersion11
            return Reply(response.status, response.headers, await response.read())

    async def _opened(
        self, *_: SimpleNamespace | aiohttp.ClientSession | aiohttp.TraceConnectionCreateEndParams
    ) -> None:
        self.connections += 1


async def test_one_client_pulls_six_things_at_once(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """None waits for another: containers/image asks for six layers, all of them begin before one of them ends."""
    image = upstream.add_image(REPOSITORY, "1", layers=[100_000] * 6)
    held = [upstream.fault(layer, stall_at(50_000)) for layer in image.layers]
    client = Counting(mirror, 6)
    async with client.session:
        pulls = [asyncio.create_task(client.get(f"/v2/demo/blobs/{layer.digest}")) for layer in image.layers]
        async with asyncio.timeout(5):
            for rule in held:
                await rule.reached.wait()
        assert not any(pull.done() for pull in pulls)
        for rule in held:
            rule.release()

        assert [(await pull).body for pull in pulls] == [layer.content for layer in image.layers]
        for path in (f"/v2/demo/manifests/{image.digest}", "/v2/", f"/v2/demo/blobs/{image.config.digest}") * 5:
            assert (await client.get(path)).status == 200
    assert client.connections == 6


@pytest.mark.parametrize("kind", ["manifest", "blob", "absent", "tags", "referrers"])
async def test_the_same_thing_many_times_is_one_question(
    mirror: RunningMirror, upstream: FakeRegistry, kind: str
) -> None:
    """By one client over six connections, with a hundred requests: the upstream hears one, the answers are alike."""
    image = upstream.add_image(REPOSITORY, "1", layers=[100_000])
    upstream.referrers = True
    upstream.latency = 0.1
    path = {
        "manifest": "/v2/demo/manifests/1",
        "blob": f"/v2/demo/blobs/{image.layers[0].digest}",
        "absent": f"/v2/demo/blobs/{Digest.of(b'absent')}",
        "tags": "/v2/demo/tags/list",
        "referrers": f"/v2/demo/referrers/{image.digest}",
    }[kind]
    client = Counting(mirror, 6)
    async with client.session:
        replies = await asyncio.gather(*(client.get(path) for _ in range(100)))

    assert len({(reply.status, reply.body) for reply in replies}) == 1
    assert client.connections == 6
    assert sum(seen.kind != "ping" for seen in upstream.select()) == 1


# Throttled.

IMPATIENT = short_timeouts(first_byte=0.5, cold_head=0.4)


@pytest.mark.parametrize("wanted", ["manifest", "blob"])
async def test_six_repeats_at_once_change_nothing(
    start_mirror: StartMirror, upstream: FakeRegistry, wanted: str
) -> None:
    """containerd repeats a 429 at once, five times: each time it is told for how long, and nobody else is asked; when
    the pause is over it is served.
    """
    mirror = await start_mirror(timeouts=IMPATIENT)
    image = upstream.add_image(REPOSITORY, "1")
    thing = image.manifest if wanted == "manifest" else image.layers[0]
    path = f"/v2/demo/manifests/{thing.digest}" if wanted == "manifest" else f"/v2/demo/blobs/{thing.digest}"
    upstream.fault(thing, status(429, retry_after="1500ms"), times=1)

    replies = [await mirror.get(path) for _ in range(6)]

    assert {(reply.status, reply.code) for reply in replies} == {(429, "TOOMANYREQUESTS")}
    assert all(1 <= int(reply.headers["Retry-After"]) <= 2 for reply in replies)
    assert upstream.requests_for(thing) == 1
    for _ in range(100):
        reply = await mirror.get(path)
        if reply.status == 200:
            break
        await asyncio.sleep(0.1)
    assert reply.body == thing.content


async def test_what_is_held_is_never_throttled(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """A 429 is the last resort: with a copy, however old, there is an answer; HEAD, GET and all that it names."""
    mirror = await start_mirror(timeouts=IMPATIENT, tag_ttl=0)
    image = upstream.add_image(REPOSITORY, "1")
    await mirror.manifest("demo", "1")
    for blob in image.blobs:
        await mirror.blob("demo", blob.digest)
    await mirror.quiet()
    upstream.fault(REPOSITORY, status(429, retry_after=60))

    for method in ("HEAD", "GET"):
        assert (await mirror.manifest("demo", "1", method=method)).cache == "stale"
        for blob in image.blobs:
            assert (await mirror.blob("demo", blob.digest, method=method)).status == 200


async def test_clients_that_wait_do_not_keep_others_waiting(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """Fifty clients wait for what the upstream does not send; another one is served from the cache meanwhile."""
    image, slow = upstream.add_image(REPOSITORY, "1"), upstream.put_blob(REPOSITORY, 100_000)
    await mirror.manifest("demo", "1")
    held = upstream.fault(slow, stall())
    waiting = [asyncio.create_task(mirror.blob("demo", slow.digest)) for _ in range(50)]
    await held.reached.wait()

    assert (await mirror.manifest("demo", "1")).body == image.manifest.content

    held.release()
    assert {(await one).status for one in waiting} <= {200, 504}

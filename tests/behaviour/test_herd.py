"""One upstream fetch per digest, however many ask."""

from __future__ import annotations

import asyncio

import pytest

from tests.conftest import StartMirror
from tests.harness import RunningMirror
from tests.upstream import FakeRegistry


async def test_fifty_cold_clients_cost_the_upstream_one_fetch(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """50 clients that want one blob at once get it whole, and the upstream sends its bytes exactly once."""
    blob = upstream.put_blob("library/demo", 8 << 20)

    replies = await mirror.together(50, f"/v2/demo/blobs/{blob.digest}")

    assert {reply.status for reply in replies} == {200}
    assert all(reply.body == blob.content for reply in replies)
    assert upstream.bytes_for(blob) == blob.size
    assert upstream.requests_for(blob) == 1
    assert sorted(reply.cache or "" for reply in replies) == ["joined"] * 49 + ["miss"]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("by", ["tag", "digest"])
async def test_who_waits_for_anothers_manifest_has_joined_it(
    mirror: RunningMirror, upstream: FakeRegistry, by: str, method: str
) -> None:
    """One of twenty cold clients was a miss; the others say, and are counted, as those do who join a blob."""
    image = upstream.add_image("library/demo", "1")
    reference = image.tag if by == "tag" else image.digest
    upstream.latency = 0.2

    replies = await asyncio.gather(*(mirror.manifest("demo", str(reference), method=method) for _ in range(20)))

    sources = sorted(reply.cache or "" for reply in replies)
    assert upstream.count(image, method=method) == 1
    assert (sources.count("miss"), set(sources) - {"miss", "hit"}) == (1, {"joined"})
    assert mirror.metric("mirror_requests_total", kind="manifest", result="joined") == sources.count("joined")


async def test_who_waits_for_a_revalidation_is_revalidated(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """What was not fetched, was not fetched for somebody else either."""
    mirror = await start_mirror(tag_ttl=0)
    upstream.add_image("library/demo", "1")
    await mirror.manifest("demo", "1")
    upstream.latency = 0.2

    replies = await mirror.together(10, "/v2/demo/manifests/1")

    assert {reply.cache for reply in replies} == {"revalidated"}


async def test_the_second_pull_asks_the_upstream_nothing(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """A warm image costs the upstream no request for content or a tag, not even after a restart."""
    image = upstream.add_image("library/demo", "1", layers=[1 << 20, 1000])
    paths = ["/v2/demo/manifests/1", *(f"/v2/demo/blobs/{blob.digest}" for blob in image.blobs)]
    for path in paths:
        assert (await mirror.get(path)).cache == "miss"
    await mirror.quiet()
    upstream.reset()

    await mirror.restart()

    for path in paths:
        assert (await mirror.get(path)).cache == "hit"
    assert upstream.content_requests() == []

"""One upstream fetch per digest, however many ask."""

from __future__ import annotations

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

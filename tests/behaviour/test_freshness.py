"""A tag is what its upstream says within its time to live, and every question about it is asked once."""

from __future__ import annotations

import asyncio

import pytest

from mirror.config import UpstreamSettings
from tests.clock import Clock
from tests.conftest import StartMirror
from tests.harness import RunningMirror, short_timeouts
from tests.upstream import (
    ANY,
    FakeRegistry,
    Image,
    header,
    no_digest,
    no_length,
    redirect,
    status,
    then,
    wrong_length,
)
from tests.upstream.fixtures import StartUpstream

REPOSITORY = "library/demo"
TTL = 300.0
PATIENT = short_timeouts(first_byte=5, stale_after=5, cold_head=5)
"""For tests in which nobody is late."""


USELESS = (status(405), status(501), no_length(), no_digest(), redirect())
"""What makes a HEAD of a manifest tell nothing."""


@pytest.fixture
def clock() -> Clock:
    """The mirror's wall clock."""
    return Clock()


@pytest.fixture
async def mirror(start_mirror: StartMirror, clock: Clock) -> RunningMirror:
    """A mirror in front of `upstream` as docker.io."""
    return await start_mirror(clock=clock, timeouts=PATIENT, tag_ttl=TTL)


@pytest.fixture
async def other(start_upstream: StartUpstream) -> FakeRegistry:
    """A registry that is not Docker Hub: a GET costs no quota there."""
    return await start_upstream()


@pytest.fixture
async def elsewhere(start_mirror: StartMirror, other: FakeRegistry, clock: Clock) -> RunningMirror:
    """A mirror in front of `other`, as other.test."""
    return await start_mirror(upstreams={"other.test": other}, clock=clock, timeouts=PATIENT, tag_ttl=TTL)


def move(upstream: FakeRegistry, repository: str = REPOSITORY, tag: str = "1") -> Image:
    """Pushes another image under the tag."""
    image = upstream.add_image(repository, labels={"pushed": "later"})
    upstream.move_tag(repository, tag, image)
    return image


def methods(upstream: FakeRegistry) -> list[str]:
    """What the registry was asked about manifests, in order."""
    return [seen.method for seen in upstream.select(kind="manifest", origin="registry")]


class TestTimeToLive:
    async def test_a_tag_is_not_asked_for_within_its_ttl(
        self, mirror: RunningMirror, upstream: FakeRegistry, clock: Clock
    ) -> None:
        """A moved tag is what it was until its time is over, and the upstream hears nothing."""
        image = upstream.add_image(REPOSITORY, "1")
        assert (await mirror.manifest("demo", "1")).cache == "miss"
        move(upstream)
        clock.forward(TTL - 1)

        for method in ("GET", "HEAD"):
            reply = await mirror.manifest("demo", "1", method=method)
            assert (reply.cache, reply.headers["Docker-Content-Digest"]) == ("hit", str(image.digest))
        assert methods(upstream) == ["GET"]

    async def test_a_moved_tag_is_new_after_its_ttl(
        self, mirror: RunningMirror, upstream: FakeRegistry, clock: Clock
    ) -> None:
        """Then a HEAD finds out, and a GET brings what it means now."""
        upstream.add_image(REPOSITORY, "1")
        await mirror.manifest("demo", "1")
        new = move(upstream)
        clock.forward(TTL + 1)

        reply = await mirror.manifest("demo", "1")

        assert (reply.cache, reply.body) == ("miss", new.manifest.content)
        assert methods(upstream) == ["GET", "HEAD", "GET"]
        assert (await mirror.manifest("demo", "1")).cache == "hit"

    async def test_an_unmoved_tag_costs_a_head(
        self, mirror: RunningMirror, upstream: FakeRegistry, clock: Clock
    ) -> None:
        """Where nothing moved no manifest is sent, and the tag is fresh for another TTL."""
        image = upstream.add_image(REPOSITORY, "1")
        await mirror.manifest("demo", "1")
        clock.forward(TTL + 1)

        replies = [await mirror.manifest("demo", "1") for _ in range(3)]

        assert [reply.cache for reply in replies] == ["revalidated", "hit", "hit"]
        assert all(reply.body == image.manifest.content for reply in replies)
        assert methods(upstream) == ["GET", "HEAD"]

    async def test_a_tag_unused_for_weeks_costs_a_head(
        self, mirror: RunningMirror, upstream: FakeRegistry, clock: Clock
    ) -> None:
        """Past everything that may be served stale, what we hold still saves the GET."""
        upstream.add_image(REPOSITORY, "1")
        await mirror.manifest("demo", "1")
        clock.forward(20 * 86400)

        assert (await mirror.manifest("demo", "1")).cache == "revalidated"
        assert methods(upstream) == ["GET", "HEAD"]

    async def test_moving_back_and_forth_costs_no_manifest(
        self, mirror: RunningMirror, upstream: FakeRegistry, clock: Clock
    ) -> None:
        """A tag that moves to a manifest which this repository has shown before is answered from the cache."""
        image = upstream.add_image(REPOSITORY, "1")
        await mirror.manifest("demo", "1")
        new = move(upstream)
        clock.forward(TTL + 1)
        await mirror.manifest("demo", "1")
        upstream.reset()

        for target in (image, new, image):
            upstream.move_tag(REPOSITORY, "1", target)
            clock.forward(TTL + 1)
            reply = await mirror.manifest("demo", "1")
            assert (reply.cache, reply.body) == ("revalidated", target.manifest.content)
        assert methods(upstream) == ["HEAD"] * 3

    async def test_digests_never_expire(self, mirror: RunningMirror, upstream: FakeRegistry, clock: Clock) -> None:
        """What is asked for by digest is not asked for again, whatever its tag does."""
        image = upstream.add_image(REPOSITORY, "1")
        await mirror.manifest("demo", image.digest)
        clock.forward(TTL * 10)

        assert (await mirror.manifest("demo", image.digest)).cache == "hit"
        assert methods(upstream) == ["GET"]

    async def test_the_first_pattern_that_fits_decides(
        self, start_mirror: StartMirror, upstream: FakeRegistry, clock: Clock
    ) -> None:
        """TTLs per pattern of tag, then the upstream's own, for each tag of its own."""
        settings = UpstreamSettings(url=upstream.url, tag_ttl=100, tag_ttls={"v*": 10_000, "*-rc": 0, "nightly": 10})
        mirror = await start_mirror(upstreams={"docker.io": settings}, clock=clock, timeouts=PATIENT)
        tags = ("v1", "v1-rc", "2-rc", "nightly", "latest")
        for tag in tags:
            upstream.add_image(REPOSITORY, tag)
            await mirror.manifest("demo", tag)

        async def hits() -> set[str]:
            return {tag for tag in tags if (await mirror.manifest("demo", tag)).cache == "hit"}

        assert await hits() == {"v1", "v1-rc", "nightly", "latest"}
        clock.forward(11)
        assert await hits() == {"v1", "v1-rc", "latest"}
        clock.forward(101)
        assert await hits() == {"v1", "v1-rc"}

    async def test_a_clock_that_was_set_back_asks_again(
        self, mirror: RunningMirror, upstream: FakeRegistry, clock: Clock
    ) -> None:
        """A record from the future is of unknown age: the tag is asked again, once."""
        clock.forward(30 * 86400)
        upstream.add_image(REPOSITORY, "1")
        await mirror.manifest("demo", "1")
        clock.forward(-30 * 86400)
        new = move(upstream)

        assert (await mirror.manifest("demo", "1")).body == new.manifest.content
        assert (await mirror.manifest("demo", "1")).cache == "hit"

    async def test_a_restart_asks_nothing_again(
        self, mirror: RunningMirror, upstream: FakeRegistry, clock: Clock
    ) -> None:
        """Tags keep their age, also those that only a HEAD was asked about."""
        upstream.add_image(REPOSITORY, "1")
        upstream.add_image(REPOSITORY, "2")
        await mirror.manifest("demo", "1")
        await mirror.manifest("demo", "2", method="HEAD")
        clock.forward(TTL - 1)
        upstream.reset()

        await mirror.restart()

        assert (await mirror.manifest("demo", "1")).cache == "hit"
        assert (await mirror.manifest("demo", "2", method="HEAD")).cache == "hit"
        assert upstream.content_requests() == []


class TestOneQuestion:
    async def test_fifty_clients_of_an_expired_tag_cost_one_head(
        self, mirror: RunningMirror, upstream: FakeRegistry, clock: Clock
    ) -> None:
        """All of them wait for the one answer."""
        image = upstream.add_image(REPOSITORY, "1")
        await mirror.manifest("demo", "1")
        clock.forward(TTL + 1)

        replies = await mirror.together(50, "/v2/demo/manifests/1")

        assert {reply.cache for reply in replies} <= {"revalidated", "hit"}
        assert all(reply.body == image.manifest.content for reply in replies)
        assert methods(upstream) == ["GET", "HEAD"]

    async def test_fifty_clients_of_a_new_tag_cost_one_get(self, mirror: RunningMirror, upstream: FakeRegistry) -> None:
        """Never seen before, it is fetched at once, and once."""
        image = upstream.add_image(REPOSITORY, "1")

        replies = await mirror.together(50, "/v2/demo/manifests/1")

        assert all(reply.body == image.manifest.content for reply in replies)
        assert methods(upstream) == ["GET"]

    async def test_a_herd_for_a_new_digest_costs_one_get(self, mirror: RunningMirror, upstream: FakeRegistry) -> None:
        """The same by digest."""
        image = upstream.add_image(REPOSITORY, "1")

        replies = await mirror.together(20, f"/v2/demo/manifests/{image.digest}")

        assert all(reply.body == image.manifest.content for reply in replies)
        assert methods(upstream) == ["GET"]

    async def test_heads_and_gets_of_a_new_tag_wait_for_each_other(
        self, mirror: RunningMirror, upstream: FakeRegistry
    ) -> None:
        """A GET that joins a HEAD is satisfied by one GET afterwards; each of them gets what it asked for."""
        image = upstream.add_image(REPOSITORY, "1")

        replies = await asyncio.gather(
            *(mirror.manifest("demo", "1", method=method) for method in ("HEAD", "GET") for _ in range(10))
        )

        assert {reply.status for reply in replies} == {200}
        assert {reply.body for reply in replies[10:]} == {image.manifest.content}
        assert methods(upstream) in (["HEAD", "GET"], ["GET"])

    async def test_a_client_that_leaves_stops_nobodys_question(
        self, mirror: RunningMirror, upstream: FakeRegistry
    ) -> None:
        """The one who asked first may go; the others get the answer to his question."""
        image = upstream.add_image(REPOSITORY, "1")
        held = upstream.fault(image, then(lambda: None))
        upstream.latency = 0.1
        first = asyncio.create_task(mirror.manifest("demo", "1"))
        await upstream.until(lambda: upstream.in_flight > 0)
        others = [asyncio.create_task(mirror.manifest("demo", "1")) for _ in range(3)]

        first.cancel()

        assert {(await other).body for other in others} == {image.manifest.content}
        assert held.hits == 1


class TestHeads:
    async def test_a_head_of_a_new_tag_costs_one_head(self, mirror: RunningMirror, upstream: FakeRegistry) -> None:
        """At Docker Hub, where manifests cost quota, it is answered by a HEAD, and so is the next one from memory."""
        image = upstream.add_image(REPOSITORY, "1")

        for source in ("miss", "hit"):
            reply = await mirror.manifest("demo", "1", method="HEAD")
            assert (reply.status, reply.cache) == (200, source)
            assert reply.headers["Docker-Content-Digest"] == str(image.digest)
            assert reply.headers["Content-Length"] == str(image.manifest.size)
        assert methods(upstream) == ["HEAD"]

    async def test_docker_hub_is_never_sent_a_get_for_a_head(
        self, mirror: RunningMirror, upstream: FakeRegistry
    ) -> None:
        """A HEAD that tells nothing is no answer there; a client's GET may still be one."""
        for tag, fault in enumerate(USELESS):
            image = upstream.add_image(REPOSITORY, str(tag))
            upstream.reset()
            rule = upstream.fault(ANY, fault, method="HEAD", kind="manifest")
            assert (await mirror.manifest("demo", str(tag), method="HEAD")).status == 503
            assert (await mirror.manifest("demo", image.digest, method="HEAD")).status == 503
            assert set(methods(upstream)) == {"HEAD"}
            assert (await mirror.manifest("demo", str(tag))).body == image.manifest.content
            rule.remove()

    async def test_a_hub_that_answers_no_head_is_still_revalidated(
        self, mirror: RunningMirror, upstream: FakeRegistry, clock: Clock
    ) -> None:
        """Behind a proxy without HEAD, a client's GET of an expired tag finds out that it moved."""
        upstream.add_image(REPOSITORY, "1")
        upstream.fault(ANY, status(405), method="HEAD")
        await mirror.manifest("demo", "1")
        new = move(upstream)
        clock.forward(TTL + 1)

        assert (await mirror.manifest("demo", "1")).body == new.manifest.content

    async def test_elsewhere_a_get_replaces_a_useless_head_and_that_is_remembered(
        self, start_mirror: StartMirror, other: FakeRegistry, clock: Clock
    ) -> None:
        """One HEAD tells that HEAD tells nothing; for an hour GETs ask, and what they bring is kept."""
        names = [f"host{number}.test" for number, _ in enumerate(USELESS)]
        mirror = await start_mirror(upstreams=dict.fromkeys(names, other), clock=clock, timeouts=PATIENT, tag_ttl=TTL)
        for name, fault in zip(names, USELESS, strict=True):
            image = other.add_image("app", "1")
            other.reset()
            rule = other.fault(ANY, fault, method="HEAD", kind="manifest")
            head = await mirror.manifest(f"{name}/app", "1", method="HEAD")
            get = await mirror.manifest(f"{name}/app", "1")
            clock.forward(TTL + 1)
            new = move(other, "app")
            later = await mirror.manifest(f"{name}/app", "1")
            rule.remove()

            assert (head.status, head.headers["Docker-Content-Digest"]) == (200, str(image.digest))
            assert (get.cache, get.body) == ("hit", image.manifest.content)
            assert later.body == new.manifest.content
            assert methods(other) == ["HEAD", "GET", "GET"]

    async def test_a_useless_head_of_one_upstream_is_not_held_against_another(
        self, start_mirror: StartMirror, upstream: FakeRegistry, other: FakeRegistry
    ) -> None:
        """It is remembered per host."""
        for registry in (upstream, other):
            for tag in ("1", "2"):
                registry.add_image("app", tag)
        mirror = await start_mirror(upstreams={"a.test": upstream, "b.test": other}, timeouts=PATIENT)
        upstream.fault(ANY, status(405), method="HEAD")

        for tag in ("1", "2"):
            for name in ("a.test/app", "b.test/app"):
                assert (await mirror.manifest(name, tag, method="HEAD")).status == 200

        assert methods(upstream) == ["HEAD", "GET", "GET"]
        assert methods(other) == ["HEAD", "HEAD"]

    async def test_a_doubled_length_in_a_head_harms_nobody(
        self, elsewhere: RunningMirror, other: FakeRegistry, clock: Clock
    ) -> None:
        """Once the manifest has been here, HEAD tells its true length, whatever the upstream's HEAD says."""
        image = other.add_image("app", "1")
        other.fault(image, wrong_length())
        await elsewhere.manifest("other.test/app", "1")
        clock.forward(TTL + 1)

        for _ in range(2):
            head = await elsewhere.manifest("other.test/app", "1", method="HEAD")
            assert head.headers["Content-Length"] == str(image.manifest.size)

    async def test_a_head_tells_the_type_without_its_parameters(
        self, mirror: RunningMirror, upstream: FakeRegistry
    ) -> None:
        """Clients compare media types as text."""
        image = upstream.add_image(REPOSITORY, "1")
        upstream.fault(image, header("Content-Type", f"{image.manifest.media_type}; charset=utf-8"))

        head = await mirror.manifest("demo", "1", method="HEAD")

        assert head.headers["Content-Type"] == image.manifest.media_type


class TestStaleWhileRevalidate:
    @pytest.fixture
    async def lazy(self, start_mirror: StartMirror, upstream: FakeRegistry, clock: Clock) -> RunningMirror:
        """A mirror that serves an expired tag for a minute and refreshes it behind."""
        settings = UpstreamSettings(url=upstream.url, stale_while_revalidate=60)
        return await start_mirror(upstreams={"docker.io": settings}, clock=clock, timeouts=PATIENT, tag_ttl=TTL)

    async def test_an_expired_tag_is_served_and_refreshed_behind(
        self, lazy: RunningMirror, upstream: FakeRegistry, clock: Clock
    ) -> None:
        """Within that minute nobody waits for the upstream; the next one has what the refresh brought."""
        old = upstream.add_image(REPOSITORY, "1")
        await lazy.manifest("demo", "1")
        new = move(upstream)
        clock.forward(TTL + 1)

        reply = await lazy.manifest("demo", "1")
        assert (reply.cache, reply.body) == ("stale", old.manifest.content)

        await upstream.until(lambda: methods(upstream) == ["GET", "HEAD", "GET"] and upstream.in_flight == 0)
        async with asyncio.timeout(5):
            while (reply := await lazy.manifest("demo", "1")).cache == "stale":
                pass
        assert (reply.cache, reply.body) == ("hit", new.manifest.content)
        assert lazy.metric("mirror_stale_served_total", upstream="docker.io", reason="revalidating") >= 1

    async def test_after_that_minute_it_is_asked_first(
        self, lazy: RunningMirror, upstream: FakeRegistry, clock: Clock
    ) -> None:
        """What is older is not served without a question."""
        upstream.add_image(REPOSITORY, "1")
        await lazy.manifest("demo", "1")
        new = move(upstream)
        clock.forward(TTL + 61)

        assert (await lazy.manifest("demo", "1")).body == new.manifest.content

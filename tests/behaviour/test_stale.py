"""Where the upstream gives no answer its tags are served as they were; where it says no they are not."""

from __future__ import annotations

import asyncio

import pytest
from pydantic import SecretStr

from mirror.config import UpstreamSettings
from tests.clock import Clock
from tests.conftest import StartMirror
from tests.harness import RunningMirror, short_timeouts
from tests.upstream import (
    ANY,
    Basic,
    Bearer,
    FakeRegistry,
    Fault,
    Image,
    garbage,
    html,
    instead,
    redirect,
    refuse,
    reset,
    stall,
    status,
)

REPOSITORY = "library/demo"
TTL = 300.0


@pytest.fixture
def clock() -> Clock:
    """The mirror's wall clock."""
    return Clock()


@pytest.fixture
async def mirror(start_mirror: StartMirror, clock: Clock) -> RunningMirror:
    """A mirror in front of `upstream` as docker.io."""
    return await start_mirror(clock=clock, tag_ttl=TTL)


@pytest.fixture
async def image(upstream: FakeRegistry) -> Image:
    """The image that the tag means."""
    return upstream.add_image(REPOSITORY, "1")


async def expire(mirror: RunningMirror, clock: Clock) -> None:
    """Pulls the tag's manifest and lets its TTL pass."""
    assert (await mirror.manifest("demo", "1")).status == 200
    clock.forward(TTL + 1)


class TestNoAnswer:
    @pytest.mark.parametrize(
        "fault",
        [
            stall(),
            reset(),
            refuse(),
            garbage(),
            status(500),
            status(502),
            html(503),
            status(429),
            status(400),
            redirect(lifetime=-1),
        ],
        ids=lambda fault: fault.name,
    )
    async def test_an_expired_tag_is_served_stale(
        self, mirror: RunningMirror, upstream: FakeRegistry, image: Image, clock: Clock, fault: Fault
    ) -> None:
        """Timeouts, resets, 5xx, 429 and nonsense are no answer: the copy in hand is served, marked and counted."""
        await expire(mirror, clock)
        upstream.fault(ANY, fault)

        for method in ("GET", "HEAD"):
            reply = await mirror.manifest("demo", "1", method=method)
            assert (reply.status, reply.cache) == (200, "stale")
            assert reply.headers["Docker-Content-Digest"] == str(image.digest)
            assert reply.body == (image.manifest.content if method == "GET" else b"")
        assert mirror.metric("mirror_stale_served_total", upstream="docker.io") == 2

    @pytest.mark.parametrize("code", [429, 503])
    async def test_a_pause_that_was_asked_for_is_no_answer(
        self, mirror: RunningMirror, upstream: FakeRegistry, image: Image, clock: Clock, code: int
    ) -> None:
        """Retry-After beyond our patience: stale at once, and the upstream is left alone meanwhile."""
        await expire(mirror, clock)
        upstream.fault(ANY, status(code, retry_after=60))

        for _ in range(3):
            assert (await mirror.manifest("demo", "1")).cache == "stale"
        assert upstream.count(kind="manifest", method="HEAD") == 1

    async def test_the_metric_says_why(
        self, mirror: RunningMirror, upstream: FakeRegistry, image: Image, clock: Clock
    ) -> None:
        """A pause that an upstream asked for is known at once, and counted as such."""
        await expire(mirror, clock)
        upstream.fault(ANY, status(429, retry_after=60))

        await mirror.manifest("demo", "1")

        assert mirror.metric("mirror_stale_served_total", upstream="docker.io", reason="throttled") == 1

    async def test_nobody_listening_is_no_answer(
        self, mirror: RunningMirror, upstream: FakeRegistry, image: Image, clock: Clock
    ) -> None:
        """An upstream that is down for days: tags stale, digests and blobs as ever."""
        for path in ("1", image.digest):
            await mirror.manifest("demo", path)
        for blob in image.blobs:
            await mirror.blob("demo", blob.digest)
        await mirror.quiet()
        await upstream.stop()
        clock.forward(5 * 86400)

        assert (await mirror.manifest("demo", "1")).cache == "stale"
        assert (await mirror.manifest("demo", image.digest)).cache == "hit"
        for blob in image.blobs:
            assert (await mirror.blob("demo", blob.digest)).body == blob.content

    async def test_it_starts_and_serves_without_its_upstream(
        self, mirror: RunningMirror, upstream: FakeRegistry, image: Image, clock: Clock
    ) -> None:
        """A restart while the upstream is down changes nothing of that."""
        await expire(mirror, clock)
        await upstream.stop()

        await mirror.restart()

        assert (await mirror.manifest("demo", "1")).cache == "stale"
        assert (await mirror.manifest("demo", image.digest)).cache == "hit"

    async def test_our_own_credential_refused_is_no_answer(
        self, start_mirror: StartMirror, upstream: FakeRegistry, clock: Clock
    ) -> None:
        """A password that the token endpoint does not take any more is the operator's trouble, not the client's."""
        upstream.auth = Bearer({"ci": "old"}, anonymous=False)
        image = upstream.add_image(REPOSITORY, "1")
        settings = UpstreamSettings(url=upstream.url, username="ci", password=SecretStr("old"))
        mirror = await start_mirror(upstreams={"docker.io": settings}, clock=clock, tag_ttl=TTL)
        await expire(mirror, clock)
        upstream.auth = Bearer({"ci": "new"}, anonymous=False)

        reply = await mirror.manifest("demo", "1")

        assert (reply.cache, reply.body) == ("stale", image.manifest.content)
        assert mirror.metric("mirror_credentials_rejected", upstream="docker.io") == 1
        assert mirror.metric("mirror_stale_served_total", reason="credential") == 1
        assert (await mirror.manifest("demo", image.digest)).cache == "hit"

    async def test_a_refused_basic_credential_is_no_answer(
        self, start_mirror: StartMirror, upstream: FakeRegistry, clock: Clock
    ) -> None:
        """The same where the registry itself asks for the password."""
        upstream.auth = Basic({"ci": "old"})
        upstream.add_image(REPOSITORY, "1")
        settings = UpstreamSettings(url=upstream.url, username="ci", password=SecretStr("old"))
        mirror = await start_mirror(upstreams={"docker.io": settings}, clock=clock, tag_ttl=TTL)
        await expire(mirror, clock)
        upstream.auth = Basic({"ci": "new"})

        assert (await mirror.manifest("demo", "1")).cache == "stale"

    async def test_wrong_bytes_are_no_answer(
        self, mirror: RunningMirror, upstream: FakeRegistry, image: Image, clock: Clock
    ) -> None:
        """A tag that moved to something whose bytes are wrong is served as it was."""
        await expire(mirror, clock)
        new, wrong = (upstream.add_image(REPOSITORY, labels={"n": name}) for name in "ab")
        upstream.move_tag(REPOSITORY, "1", new)
        upstream.fault("library/demo:1", instead(wrong.manifest), method="GET", times=1)
        upstream.fault("library/demo:1", instead(image.manifest), method="GET", skip=1)

        reply = await mirror.manifest("demo", "1")

        assert (reply.cache, reply.body) == ("stale", image.manifest.content)

    async def test_a_moved_tag_that_cannot_be_fetched_is_served_as_it_was(
        self, mirror: RunningMirror, upstream: FakeRegistry, image: Image, clock: Clock
    ) -> None:
        """HEAD is free where GET is out of quota: the copy is not given up because a HEAD told of a newer one."""
        await expire(mirror, clock)
        new = upstream.add_image(REPOSITORY, labels={"pushed": "later"})
        upstream.move_tag(REPOSITORY, "1", new)
        out_of_quota = upstream.fault(ANY, status(429), method="GET", kind="manifest")

        head = await mirror.manifest("demo", "1", method="HEAD")
        get = await mirror.manifest("demo", "1")
        out_of_quota.remove()

        assert head.headers["Docker-Content-Digest"] == str(new.digest)
        assert (get.cache, get.body) == ("stale", image.manifest.content)
        async with asyncio.timeout(5):
            while (get := await mirror.manifest("demo", "1")).body != new.manifest.content:
                pass  # the pause that the 429 asked for

    @pytest.mark.parametrize(
        ("fault", "code"),
        [(status(429, retry_after=7), 429), (status(503), 503), (stall(), 504)],
        ids=["429", "503", "silence"],
    )
    async def test_without_a_copy_there_is_an_error(
        self, mirror: RunningMirror, upstream: FakeRegistry, image: Image, fault: Fault, code: int
    ) -> None:
        """For a tag never seen, and a digest never seen, the answer says what kept us from it."""
        upstream.fault(ANY, fault)

        for reference in ("1", image.digest):
            reply = await mirror.manifest("demo", reference)
            assert reply.status == code
            assert reply.code == ("TOOMANYREQUESTS" if code == 429 else "UNAVAILABLE")
            assert ("Retry-After" in reply.headers) == (code != 504)


class TestTime:
    async def test_the_copy_is_served_after_stale_after(
        self, start_mirror: StartMirror, upstream: FakeRegistry, image: Image, clock: Clock
    ) -> None:
        """With a copy in hand nobody waits for `first_byte`, and the refresh that goes on is used afterwards."""
        mirror = await start_mirror(
            clock=clock, tag_ttl=TTL, timeouts=short_timeouts(stale_after=0.05, first_byte=15, try_=15)
        )
        await expire(mirror, clock)
        new = upstream.add_image(REPOSITORY, labels={"pushed": "later"})
        upstream.move_tag(REPOSITORY, "1", new)
        held = upstream.fault("library/demo:1", stall(), method="HEAD")

        first, second = [await mirror.manifest("demo", "1") for _ in range(2)]
        assert (first.cache, second.cache) == ("stale", "stale")
        assert upstream.count("library/demo:1", method="HEAD") == 1
        held.release()

        await upstream.until(lambda: upstream.count("library/demo:1", method="GET") == 2 and upstream.in_flight == 0)
        async with asyncio.timeout(5):
            while (reply := await mirror.manifest("demo", "1")).cache == "stale":
                pass
        assert reply.body == new.manifest.content
        assert upstream.count("library/demo:1", method="HEAD") == 1
        assert image.manifest.content == first.body == second.body

    async def test_a_copy_is_served_only_so_long(
        self, start_mirror: StartMirror, upstream: FakeRegistry, image: Image, clock: Clock
    ) -> None:
        """`stale_if_error` after the TTL it is over: then there is an error, as if nothing were held."""
        settings = UpstreamSettings(url=upstream.url, stale_if_error=1000)
        mirror = await start_mirror(upstreams={"docker.io": settings}, clock=clock, tag_ttl=TTL)
        await mirror.manifest("demo", "1")
        await upstream.stop()

        clock.forward(TTL + 999)
        assert (await mirror.manifest("demo", "1")).cache == "stale"
        clock.forward(2)
        assert (await mirror.manifest("demo", "1")).status == 503
        assert (await mirror.manifest("demo", image.digest)).cache == "hit"

    async def test_a_clock_that_was_set_back_serves_on(
        self, mirror: RunningMirror, upstream: FakeRegistry, image: Image, clock: Clock
    ) -> None:
        """Without an answer a record from the future is a copy like any other."""
        clock.forward(30 * 86400)
        await mirror.manifest("demo", "1")
        clock.forward(-30 * 86400)
        await upstream.stop()

        assert (await mirror.manifest("demo", "1")).cache == "stale"

    async def test_the_answer_is_used_as_soon_as_there_is_one(
        self, start_mirror: StartMirror, upstream: FakeRegistry, image: Image, clock: Clock
    ) -> None:
        """Stale is no state: who asks after the upstream is back finds out, soon where it is asked once a second."""
        mirror = await start_mirror(clock=clock, tag_ttl=TTL, timeouts=short_timeouts(stale_after=1))
        await expire(mirror, clock)
        await upstream.stop()
        assert (await mirror.manifest("demo", "1")).cache == "stale"
        await upstream.start()

        async with asyncio.timeout(5):
            while (reply := await mirror.manifest("demo", "1")).cache == "stale":
                pass
        assert reply.cache in ("revalidated", "hit")  # a hit, where somebody's question in the background found out


class TestNo:
    @pytest.mark.parametrize(
        ("fault", "code"),
        [(status(404), 404), (status(404, error="NAME_UNKNOWN"), 404), (status(401), 403), (status(403), 403)],
        ids=["unknown", "no-repository", "401", "403"],
    )
    async def test_a_no_is_never_covered_up(
        self, mirror: RunningMirror, upstream: FakeRegistry, image: Image, clock: Clock, fault: Fault, code: int
    ) -> None:
        """A tag that is gone, or not for us any more, is not served stale: not then, and not when silence follows."""
        await expire(mirror, clock)
        rule = upstream.fault(ANY, fault, kind="manifest")

        for method in ("GET", "HEAD"):
            assert (await mirror.manifest("demo", "1", method=method)).status == code
        rule.remove()
        upstream.fault(ANY, status(503))
        clock.forward(31)
        assert (await mirror.manifest("demo", "1")).status == 503

    async def test_a_no_in_the_background_counts(
        self, start_mirror: StartMirror, upstream: FakeRegistry, image: Image, clock: Clock
    ) -> None:
        """A refresh that nobody waited for and that brought a 404 ends the tag."""
        mirror = await start_mirror(
            clock=clock, tag_ttl=TTL, timeouts=short_timeouts(stale_after=0.05, first_byte=15, try_=15)
        )
        await expire(mirror, clock)
        upstream.fault("library/demo:1", status(404), method="HEAD", times=1)
        held = upstream.fault("library/demo:1", stall(), method="HEAD", times=1)
        assert (await mirror.manifest("demo", "1")).cache == "stale"

        held.release()

        async with asyncio.timeout(5):
            while (reply := await mirror.manifest("demo", "1")).cache == "stale":
                pass
        assert reply.status == 404
        assert upstream.count("library/demo:1", method="HEAD") == 1

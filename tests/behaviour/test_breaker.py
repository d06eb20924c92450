"""An upstream that does not answer is left in peace: asked once a second, by whoever comes; noticed when it is back."""

from __future__ import annotations

import asyncio
import errno
import time
from collections import Counter
from contextlib import suppress

import pytest
from aiohttp.abc import ResolveResult

from mirror.config import Timeouts, UpstreamSettings
from mirror.transport.breakers import THRESHOLD
from tests.asking import Names
from tests.clock import Clock
from tests.conftest import StartMirror
from tests.harness import Reply, RunningMirror, short_timeouts
from tests.lines import Lines, lines
from tests.reading import Reading, blob_path
from tests.upstream import ANY, Bearer, FakeRegistry, Fault, redirect, refuse, reset, stall, stall_at, status

__all__ = ["lines"]

CLIENTS = 200
TRY = 0.5
QUICK = short_timeouts(try_=TRY, first_byte=3, connect=3, connect_address=3, no_progress=20)
INTERVAL = TRY * 0.2
"""A second, at a `try` of five."""
DEAD = [refuse(), reset(), status(503), status(500), stall()]
HOW = pytest.mark.parametrize("fault", DEAD, ids=["refuses", "resets", "503", "500", "hangs"])


def paths(clients: int = CLIENTS) -> list[str]:
    """Something else for each client: tags, blobs and lists that nobody has asked for before."""
    kinds = (
        "/v2/app{0}/manifests/1",
        "/v2/demo/blobs/sha256:{0:064x}",
        "/v2/demo/manifests/{0}",
        "/v2/app{0}/tags/list",
    )
    return [kinds[number % len(kinds)].format(number) for number in range(clients)]


def asked(mirror: RunningMirror) -> float:
    """How many requests have gone out, with whatever outcome."""
    return mirror.metric("mirror_upstream_requests_total")


def is_open(mirror: RunningMirror) -> bool:
    """Whether the mirror says that its upstream does not answer."""
    return mirror.metric("mirror_upstream_breaker_open", upstream="docker.io") == 1


async def burst(mirror: RunningMirror) -> list[Reply]:
    """What all clients hear that ask at the same time, each for something else."""
    return await asyncio.gather(*(mirror.get(path) for path in paths()))


class Crowd:
    """Clients that each ask for something else, one after the other and again, until they are told to stop."""

    def __init__(self, mirror: RunningMirror) -> None:
        self._mirror = mirror
        self._stopped = asyncio.Event()
        self.answered = asyncio.Event()
        """The upstream's own word has reached one of them."""
        self.heard: Counter[int] = Counter()
        self.without_retry_after = 0

    async def __aenter__(self) -> Crowd:
        self._clients = [asyncio.create_task(self._ask(path, 0.5 * n / CLIENTS)) for n, path in enumerate(paths())]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopped.set()
        await asyncio.gather(*self._clients)

    async def _ask(self, path: str, rest: float) -> None:
        while not self._stopped.is_set():
            await self._pause(rest)
            rest = 0.5
            reply = await self._mirror.get(path)
            self.heard[reply.status] += 1
            if reply.status == 404:
                self.answered.set()
            self.without_retry_after += reply.status == 503 and int(reply.headers.get("Retry-After", 0)) < 1

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopped.wait()


@pytest.fixture
async def mirror(start_mirror: StartMirror) -> RunningMirror:
    """A mirror in front of `upstream` as docker.io, a second being 0.1 s."""
    return await start_mirror(timeouts=QUICK)


class TestDead:
    @HOW
    async def test_a_burst_is_not_repeated(self, mirror: RunningMirror, upstream: FakeRegistry, fault: Fault) -> None:
        """Who asks at the same moment cannot know yet. But nobody of them asks again, beyond one request a second."""
        upstream.fault(ANY, fault)
        began = time.monotonic()

        replies = await burst(mirror)

        seconds = (time.monotonic() - began) / INTERVAL
        assert {reply.status for reply in replies} <= {503, 504}
        # One ping is ours. Whoever asked again before THRESHOLD failures were known did so rightly.
        assert asked(mirror) <= CLIENTS + 1 + THRESHOLD + seconds + 1
        assert is_open(mirror)

    @HOW
    async def test_it_is_asked_once_a_second_until_it_is_back(
        self, mirror: RunningMirror, upstream: FakeRegistry, fault: Fault
    ) -> None:
        """200 clients hear 503 with Retry-After at once, and 404 within five seconds of its being back."""
        upstream.fault(ANY, fault)
        await burst(mirror)
        before, began = asked(mirror), time.monotonic()

        async with Crowd(mirror) as crowd:
            await asyncio.sleep(8 * INTERVAL)
            sent, seconds = asked(mirror) - before, (time.monotonic() - began) / INTERVAL
            upstream.clear_faults()
            async with asyncio.timeout(15):
                await crowd.answered.wait()

        assert sent <= seconds + 1
        assert crowd.heard[503]
        assert set(crowd.heard) <= {503, 504, 404}  # 504 where even our own answer comes late, on a busy machine
        assert not crowd.without_retry_after
        assert not is_open(mirror)

    async def test_who_was_being_served_survives_a_blip(self, mirror: RunningMirror, upstream: FakeRegistry) -> None:
        """Those whose requests were on their way when it began wait for the answer to one of them."""
        images = [upstream.add_image("library/demo", str(number)) for number in range(20)]
        upstream.fault(ANY, status(502), times=len(images) + 3)

        replies = await asyncio.gather(*(mirror.manifest("demo", image.tag or "") for image in images))

        assert [reply.body for reply in replies] == [image.manifest.content for image in images]
        assert mirror.metric("mirror_upstream_breaker_open") == 0
        assert upstream.count(status=502) == len(images) + 3

    async def test_a_fill_outlasts_an_outage(self, mirror: RunningMirror, upstream: FakeRegistry) -> None:
        """In the middle of a body it asks on, in its turn with 200 others, until `no_progress`."""
        blob = upstream.put_blob("library/demo", 2 << 20)
        cut = upstream.fault(blob, stall_at(1 << 20), times=1)

        async with await Reading.ask(mirror, blob_path("demo", blob), limit=20) as reading:
            await cut.reached.wait()
            upstream.fault(ANY, refuse())
            upstream.drop_connections()
            await burst(mirror)
            async with Crowd(mirror):
                assert is_open(mirror)
                before, began = asked(mirror), time.monotonic()
                await asyncio.sleep(6 * INTERVAL)
                assert asked(mirror) - before <= (time.monotonic() - began) / INTERVAL + 1
                upstream.clear_faults()
                assert await reading.rest(limit=15) == blob.content

    async def test_a_copy_is_served_at_once(self, start_mirror: StartMirror, upstream: FakeRegistry) -> None:
        """Of an upstream that is known to hang nobody awaits `stale_after`: tags, lists of tags, and referrers."""
        clock = Clock()
        mirror = await start_mirror(
            timeouts=short_timeouts(try_=0.2, first_byte=0.5, stale_after=30), clock=clock, tag_ttl=60
        )
        image = upstream.add_image("library/demo", "1")
        upstream.add_image("library/demo", "signature", subject=image.manifest)
        held = ["/v2/demo/manifests/1", "/v2/demo/tags/list", f"/v2/demo/referrers/{image.digest}"]
        first = [(await mirror.get(path)).body for path in held]
        clock.forward(61)
        hanging = upstream.fault(ANY, stall())
        await burst(mirror)
        assert is_open(mirror)

        async with asyncio.timeout(15):
            replies = [await mirror.get(path) for _ in range(20) for path in held]
        assert {reply.cache for reply in replies} == {"stale"}
        assert [reply.body for reply in replies] == first * 20
        assert mirror.metric("mirror_stale_served_total", reason="breaker") == len(replies)

        hanging.remove()
        async with asyncio.timeout(15):
            for path in held:
                while (await mirror.get(path)).cache == "stale":
                    pass

    async def test_a_probe_that_hangs_keeps_nobody(self, start_mirror: StartMirror, upstream: FakeRegistry) -> None:
        """A lone client is every probe itself: it hears 503 after a second of each, not after the whole `try`."""
        mirror = await start_mirror(timeouts=short_timeouts(try_=4, first_byte=5, connect=4, connect_address=4))
        await mirror.manifest("demo", "before")
        upstream.fault(ANY, stall())
        await asyncio.gather(*(mirror.get(path) for path in paths(THRESHOLD)))
        assert is_open(mirror)

        before = upstream.count()
        async with asyncio.timeout(8):
            while upstream.count() < before + 3:
                assert (await mirror.manifest("demo", "after")).status == 503


class TestHealthy:
    async def test_one_bad_thing_is_no_outage(self, mirror: RunningMirror, upstream: FakeRegistry) -> None:
        """However many want the manifest that the upstream cannot give: that alone is asked for once a second."""
        image = upstream.add_image("library/demo", "good")
        upstream.fault("library/demo:bad", status(500))
        good = 0
        began = time.monotonic()

        for _ in range(30):
            replies = await asyncio.gather(*(mirror.manifest("demo", "bad") for _ in range(10)))
            assert {reply.status for reply in replies} == {503}
            good += (await mirror.manifest("demo", image.digest)).status == 200
        seconds = (time.monotonic() - began) / INTERVAL

        assert good == 30
        assert upstream.count("library/demo:bad") <= THRESHOLD + seconds + 1
        assert mirror.metric("mirror_upstream_breaker_open") == 0
        for number in range(5):
            upstream.tag("library/demo", f"t{number}", image.manifest)
            assert (await mirror.manifest("demo", f"t{number}")).status == 200

    @pytest.mark.parametrize("fault", [stall(), status(500)], ids=["hangs", "500"])
    async def test_lists_that_are_not_answered_stop_no_content(
        self, mirror: RunningMirror, upstream: FakeRegistry, fault: Fault
    ) -> None:
        """Whoever looks for signatures in vain, of one image after the other, takes nobody's turn to pull."""
        upstream.add_image("library/demo", "1", layers=[1000])
        upstream.fault("/v2/*/referrers/*", fault)
        began = time.monotonic()

        lists = await asyncio.gather(
            *(mirror.get(f"/v2/library/demo/referrers/sha256:{number:064x}") for number in range(20))
        )
        opened = is_open(mirror)
        pulled = await mirror.manifest("library/demo", "1")
        again = await mirror.get(f"/v2/library/demo/referrers/sha256:{99:064x}")

        assert {reply.status for reply in [*lists, again]} <= {503, 504}
        assert not opened
        assert pulled.status == 200
        seconds = (time.monotonic() - began) / INTERVAL
        assert upstream.count(kind="referrers") <= 20 + THRESHOLD + seconds + 1

    async def test_storage_that_is_down_stops_no_manifests(self, mirror: RunningMirror, upstream: FakeRegistry) -> None:
        """Where the registry redirects blobs to another host, that one has a breaker of its own."""
        upstream.add_image("library/demo", "1")
        blobs = [upstream.put_blob("library/demo", 1000 + number) for number in range(20)]
        for blob in blobs:
            upstream.fault(blob, redirect())
        down = upstream.fault(ANY, refuse(), origin="cdn")

        replies = await asyncio.gather(*(mirror.blob("demo", blob.digest) for blob in blobs))

        assert {reply.status for reply in replies} == {503}
        assert is_open(mirror)
        assert (await mirror.manifest("demo", "1")).status == 200
        assert is_open(mirror)
        down.remove()
        async with asyncio.timeout(10):
            while (await mirror.blob("demo", blobs[0].digest)).status != 200:
                pass
        assert not is_open(mirror)

    async def test_a_token_endpoint_is_a_host_too(self, start_mirror: StartMirror, upstream: FakeRegistry) -> None:
        """One that hangs is not asked for the token of each repository."""
        upstream.auth = Bearer(realm=f"{upstream.cdn_url}/token")
        upstream.fault(ANY, status(503), kind="token", origin="cdn")
        mirror = await start_mirror(timeouts=QUICK)
        began = time.monotonic()
        for number in range(40):
            assert (await mirror.manifest(f"app{number}", "1")).status == 503
        seconds = (time.monotonic() - began) / INTERVAL

        assert upstream.count(kind="token") <= 4 * THRESHOLD + seconds + 1
        assert upstream.count(kind="manifest") == 0

    async def test_answers_that_are_no_content_keep_it_closed(
        self, mirror: RunningMirror, upstream: FakeRegistry
    ) -> None:
        """404, 401, 403 and 429 come from a host that is there."""
        for code in (404, 401, 403, 429):
            rule = upstream.fault(ANY, status(code, retry_after=0))
            await asyncio.gather(*(mirror.get(path) for path in paths(20)))
            rule.remove()

        assert mirror.metric("mirror_upstream_breaker_open") == 0


class TestPauses:
    """Retry-After is for all who ask that host, whatever they want of it."""

    @pytest.mark.parametrize("code", [429, 503])
    async def test_nobody_asks_while_the_host_wants_to_be_left_alone(
        self, mirror: RunningMirror, upstream: FakeRegistry, code: int
    ) -> None:
        """200 clients hear at once how long it takes."""
        upstream.fault(ANY, status(code, retry_after=60), times=1, kind="manifest")
        await mirror.manifest("demo", "first")
        before = asked(mirror)

        async with asyncio.timeout(15):
            replies = await burst(mirror)

        assert asked(mirror) == before
        assert {reply.status for reply in replies} == {code}
        assert all(50 < int(reply.headers["Retry-After"]) <= 60 for reply in replies)

    @pytest.mark.parametrize("code", [429, 503])
    async def test_who_waited_for_its_end_asks_after_one_was_answered(
        self, start_mirror: StartMirror, upstream: FakeRegistry, code: int
    ) -> None:
        """A host that goes on refusing is asked once after each pause, not by all 200; then all have their answers."""
        mirror = await start_mirror(timeouts=short_timeouts(first_byte=15, connect=5, connect_address=5, try_=2))
        upstream.fault(ANY, status(code, retry_after=1), times=1, kind="manifest")
        upstream.fault(ANY, status(code, retry_after="300ms"), times=3, kind="manifest", skip=1)
        first = asyncio.create_task(mirror.manifest("demo", "first"))
        await upstream.until(lambda: upstream.count(status=code) == 1)

        replies = await burst(mirror)
        await first

        assert {reply.status for reply in replies} == {404}
        assert upstream.count(status=code) == 4


async def test_it_is_told_once(lines: Lines, mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """One warning when it is found not to answer, one line when it is back, whatever 200 clients do in between."""
    rule = upstream.fault(ANY, refuse())
    await burst(mirror)
    await burst(mirror)
    rule.remove()
    async with asyncio.timeout(10):
        while (await mirror.get("/v2/demo/manifests/1")).status != 404:
            pass

    told = [line for line in lines.all() if line["event"] in ("a host does not answer", "a host answers again")]
    host = upstream.url.removeprefix("http://")
    assert [(line["level"], line["host"], line["entry"]) for line in told] == [
        ("warning", host, "docker.io"),
        ("info", host, "docker.io"),
    ]


def test_a_second_is_a_second_by_default() -> None:
    """The interval follows `try`, so that tests can shrink it."""
    assert Timeouts().try_ * 0.2 == 1


class Exhausted(Names):
    """A resolver in a process without file descriptors."""

    async def resolve(self, *_: object, **__: object) -> list[ResolveResult]:
        """As AbstractResolver."""
        raise OSError(errno.EMFILE, "Too many open files")


async def test_our_own_trouble_is_not_the_hosts(start_mirror: StartMirror) -> None:
    """Without a file descriptor nobody is asked, and nothing is learnt of whom we would have asked."""
    mirror = await start_mirror(
        upstreams={"docker.io": UpstreamSettings(url="http://registry.test")},
        timeouts=QUICK,
        wiring={"resolver": Exhausted({})},
    )
    for path in paths(2 * THRESHOLD):
        reply = await mirror.get(path)
        assert (reply.status, "Retry-After" in reply.headers) == (503, True)
    assert asked(mirror) > THRESHOLD
    assert mirror.metric("mirror_upstream_breaker_open") == 0

"""A warm manifest is answered at once, as it would be the ordinary way, and never for longer than that."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Callable

import pytest

from mirror.config import UpstreamSettings
from tests.certificates import SERVER
from tests.clock import Clock, StoppedClock
from tests.conftest import StartMirror
from tests.harness import RunningMirror, short_timeouts
from tests.lines import Lines, lines
from tests.raw import RawClient
from tests.storing import path_of
from tests.upstream import ANY, FakeRegistry, Fault, Image, stall, status
from tests.upstream.fixtures import StartUpstream

__all__ = ["lines"]

REPOSITORY = "team/app"
TTL = 300.0
DAY = 86400.0
MIB = 1 << 20
PATIENT = short_timeouts(first_byte=5, stale_after=2)


@pytest.fixture
def clock() -> Clock:
    """The mirror's wall clock."""
    return StoppedClock()


@pytest.fixture
async def mirror(start_mirror: StartMirror, clock: Clock) -> RunningMirror:
    """A mirror in front of `upstream` as docker.io."""
    return await start_mirror(clock=clock, timeouts=PATIENT, tag_ttl=TTL)


@pytest.fixture
async def image(mirror: RunningMirror, upstream: FakeRegistry) -> Image:
    """An image whose manifest is ready by its tag and by its digest."""
    image = upstream.add_image(REPOSITORY, "1")
    for reference in ("1", image.digest):
        await make_ready(mirror, f"/v2/{REPOSITORY}/manifests/{reference}")
    upstream.reset()
    return image


async def make_ready(mirror: RunningMirror, path: str, **options: str) -> None:
    """Asks until it is answered at once."""
    for _ in range(3):
        before = given(mirror)
        await mirror.get(path, **options)
        if given(mirror) > before:
            return
    raise AssertionError(f"{path} is not ready")


def given(mirror: RunningMirror) -> int:
    """How many answers were ready so far."""
    assert mirror.app.traffic.ready is not None
    return mirror.app.traffic.ready.given


def has_given(mirror: RunningMirror, count: int) -> bool:
    """Whether so many answers were ready."""
    return given(mirror) >= count


async def exchanged(client: RawClient, method: str, path: str, **headers: str) -> tuple[list[bytes], bytes]:
    """The lines of the answer's head as they came, and its body."""
    await client.ask(path, method, **headers)
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += await client.read(1)
    length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:"))
    return head.split(b"\r\n"), b"" if method == "HEAD" else await client.read(length)


class TestLikeness:
    @pytest.mark.parametrize("query", ["", "?ns=docker.io", "?x=1"])
    @pytest.mark.parametrize("named", [False, True], ids=["tag", "digest"])
    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    async def test_it_is_the_ordinary_answer(
        self,
        lines: Lines,
        mirror: RunningMirror,
        upstream: FakeRegistry,
        method: str,
        named: bool,
        query: str,
    ) -> None:
        """To the byte, but for the id and the date; and so is its line, and what is counted."""
        image = upstream.add_image(REPOSITORY, "1")
        await mirror.manifest(REPOSITORY, image.digest)
        await mirror.manifest(REPOSITORY, "1")
        path = f"/v2/{REPOSITORY}/manifests/{image.digest if named else '1'}{query}"
        counted = []
        async with await RawClient.connect(mirror.app.port) as client:
            answers = []
            for number in range(3):
                answers.append(await exchanged(client, method, path, X_Request_Id=f"id-{number}"))
                counted.append(counts(mirror))
        # The first may still be the one that the upstream was asked for; the last is ready.
        (ordinary, body), (ready, same) = answers[1:]
        assert given(mirror) >= 1
        assert body == same == (b"" if method == "HEAD" else image.manifest.content)
        for number, head in ((1, ordinary), (2, ready)):
            assert head.pop(next(at for at, line in enumerate(head) if line.startswith(b"Date:")))
            head.remove(b"X-Request-Id: id-%d" % number)
        assert ordinary == ready
        assert ready[0] == b"HTTP/1.1 200 OK"
        before, then, at_last = counted
        assert {name: at_last[name] - then[name] for name in at_last} == {
            name: then[name] - before[name] for name in then
        }
        said = [line for line in lines.access() if line["request_id"] in ("id-1", "id-2")]
        assert [list(line) for line in said] == [list(said[0])] * 2
        for line in said:
            assert 0 <= line.pop("duration") < 5
            assert line.pop("timestamp").endswith("Z")
            line.pop("request_id")
        assert said[0] == said[1]
        assert said[0]["path"] == path.partition("?")[0]

    async def test_it_has_an_id_of_its_own(self, mirror: RunningMirror, image: Image) -> None:
        """As long as the client gives none that is one."""
        ids = {
            (await mirror.manifest(REPOSITORY, "1", **headers)).headers["X-Request-Id"]
            for headers in ({}, {}, {"X_Request_Id": "a b"}, {"X_Request_Id": ""})
        }
        assert len(ids) == 4
        assert given(mirror) >= 6

    async def test_what_a_key_cannot_hold_is_answered_the_ordinary_way(
        self, mirror: RunningMirror, upstream: FakeRegistry, image: Image
    ) -> None:
        """Conditions, parts, other methods, and clients who want the connection to end."""
        before, path = given(mirror), f"/v2/{REPOSITORY}/manifests/1"
        etag = f'"{image.digest}"'
        for method, headers, code, length in (
            ("GET", {"If_None_Match": etag}, 304, 0),
            ("HEAD", {"If_None_Match": etag}, 304, 0),
            ("GET", {"Range": "bytes=0-9"}, 206, 10),
            ("GET", {"Range": "bytes=0-9", "If_Range": etag}, 206, 10),
            ("GET", {"If_Range": '"other"'}, 200, len(image.manifest.content)),
            ("PUT", {}, 405, None),
            ("DELETE", {}, 405, None),
            ("GET", {"Connection": "close"}, 200, len(image.manifest.content)),
        ):
            reply = await mirror.get(path, method=method, **headers)
            assert reply.status == code
            assert length is None or len(reply.body) == length
        for version, connection in (("1.0", "close"), ("1.0", "keep-alive"), ("1.1", "close")):
            async with await RawClient.connect(mirror.app.port) as client:
                await client.ask(path, version=version, Connection=connection)
                head, body = await client.answer()
                assert (head.version, head.status, body) == (f"HTTP/{version}", 200, image.manifest.content)
                assert connection == "close" or head.headers["Connection"] == connection
                assert connection != "close" or await client.rest() == b""
        assert given(mirror) == before
        assert upstream.select() == []

    async def test_a_body_that_nobody_wants_is_no_request(self, mirror: RunningMirror, image: Image) -> None:
        """It is read and dropped; what follows it is answered."""
        before, path = given(mirror), f"/v2/{REPOSITORY}/manifests/1"
        async with await RawClient.connect(mirror.app.port) as client:
            await client.send(f"GET {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 300\r\n\r\n".encode())
            await client.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode().ljust(300))
            assert (await client.answer())[1] == image.manifest.content
            assert given(mirror) == before
            await client.ask(path)
            assert (await client.answer())[1] == image.manifest.content
            assert given(mirror) == before + 1

    async def test_who_is_called_by_several_names_has_an_answer_for_each(
        self, start_mirror: StartMirror, start_upstream: StartUpstream, upstream: FakeRegistry, clock: Clock
    ) -> None:
        """What a client calls us, or what a proxy says that it does, can choose the upstream."""
        quay = await start_upstream()
        ours, theirs = upstream.add_image(REPOSITORY, "1"), quay.add_image(REPOSITORY, "1", seed="other")
        named = UpstreamSettings(url=quay.url, hosts=("quay.mirror.test",))
        mirror = await start_mirror(
            upstreams={"docker.io": upstream, "quay.io": named}, trusted_proxies=["127.0.0.0/8"], clock=clock
        )
        path = f"/v2/{REPOSITORY}/manifests/1"
        for _ in range(2):
            await make_ready(mirror, path)
            await make_ready(mirror, path, Host="quay.mirror.test")
            await make_ready(mirror, path, X_Forwarded_Host="quay.mirror.test")
        before = given(mirror)

        assert (await mirror.get(path)).body == ours.manifest.content
        assert (await mirror.get(path, Host="quay.mirror.test")).body == theirs.manifest.content
        assert (await mirror.get(path, X_Forwarded_Host="quay.mirror.test")).body == theirs.manifest.content
        assert (await mirror.get(path, Host="mirror.test")).body == ours.manifest.content
        assert given(mirror) == before + 3

    async def test_a_trusted_proxys_client_is_in_the_line(
        self, lines: Lines, start_mirror: StartMirror, upstream: FakeRegistry, clock: Clock
    ) -> None:
        """Each request has the address of its own client, whoever asked before."""
        upstream.add_image(REPOSITORY, "1")
        mirror = await start_mirror(trusted_proxies=["127.0.0.0/8"], clock=clock)
        path = f"/v2/{REPOSITORY}/manifests/1"
        await make_ready(mirror, path, X_Forwarded_For="192.0.2.1")

        await mirror.get(path, X_Forwarded_For="192.0.2.2")

        assert [line["client"] for line in lines.access()][-2:] == ["192.0.2.1", "192.0.2.2"]


class TestConnections:
    async def test_requests_in_one_piece_are_answered_in_order(
        self, lines: Lines, mirror: RunningMirror, image: Image, upstream: FakeRegistry
    ) -> None:
        """Those that are ready, those that are not, and those for which the upstream is asked."""
        names = ["1", str(image.digest), "1", "later", "1", "absent", str(image.digest), "1"] * 10
        later = upstream.add_image(REPOSITORY, "later")
        bodies = {
            "1": image.manifest.content,
            str(image.digest): image.manifest.content,
            "later": later.manifest.content,
        }
        async with await RawClient.connect(mirror.app.port) as client:
            asked = [
                f"GET /v2/{REPOSITORY}/manifests/{name} HTTP/1.1\r\nHost: x\r\nX-Request-Id: n{number}\r\n\r\n"
                for number, name in enumerate(names)
            ]
            await client.send("".join(asked).encode())
            for number, name in enumerate(names):
                head, body = await client.answer()
                assert head.headers["X-Request-Id"] == f"n{number}"
                assert body == bodies.get(name, body)
                assert head.status == (200 if name in bodies else 404)
        await mirror.app.traffic.recorded()
        told = [line["request_id"] for line in lines.access() if line["request_id"].startswith("n")]
        assert told == [f"n{number}" for number in range(len(names))]

    async def test_many_in_one_piece_are_all_answered(self, mirror: RunningMirror, image: Image) -> None:
        """More than are read at once."""
        request = f"GET /v2/{REPOSITORY}/manifests/1 HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        async with await RawClient.connect(mirror.app.port) as client:
            await client.send(request * 200 + request[:-2])
            for _ in range(200):
                assert (await client.answer())[1] == image.manifest.content
            await client.send(request[-2:])
            assert (await client.answer())[1] == image.manifest.content

    async def test_over_tls_it_is_the_same(self, start_mirror: StartMirror, upstream: FakeRegistry) -> None:
        """Several on one connection, each whole."""
        mirror = await start_mirror(tls=SERVER, clock=StoppedClock())
        image = upstream.add_image(REPOSITORY, "1")
        path = f"/v2/{REPOSITORY}/manifests/1"
        await make_ready(mirror, path)
        before = given(mirror)
        for _ in range(5):
            reply = await mirror.get(path)
            assert (reply.status, reply.cache, reply.body) == (200, "hit", image.manifest.content)
        assert given(mirror) == before + 5

    async def test_who_is_leaving_says_so(self, mirror: RunningMirror, image: Image) -> None:
        """While we drain, every answer asks for the connection to end; and none like that is kept."""
        before = given(mirror)
        mirror.app.traffic.draining = True
        for _ in range(3):
            assert (await mirror.manifest(REPOSITORY, "1")).headers["Connection"] == "close"
        assert given(mirror) == before

    async def test_who_takes_it_slowly_is_being_served(
        self, lines: Lines, mirror: RunningMirror, upstream: FakeRegistry
    ) -> None:
        """Until the kernel has the last byte; whoever asks behind it on the same connection waits."""
        path, size = await large(mirror, upstream)
        async with await RawClient.connect(mirror.app.port, receive_buffer=4096) as client:
            count = await ask_until_it_waits(mirror, client, path)
            await client.ask(path, X_Request_Id=f"n{count}")
            for number in range(count + 1):
                head, body = await client.answer()
                assert (head.headers["X-Request-Id"], len(body)) == (f"n{number}", size)
        await mirror.app.traffic.recorded()

        told = [line for line in lines.access() if line["request_id"].startswith("n")]
        assert [(line["request_id"], line["status"], line["bytes"]) for line in told] == [
            (f"n{number}", 200, size) for number in range(count + 1)
        ]
        assert not any("failure" in line for line in told)

    async def test_who_leaves_in_the_middle_is_recorded_like_that(
        self, lines: Lines, mirror: RunningMirror, upstream: FakeRegistry
    ) -> None:
        """As it is of an answer that was made for it alone."""
        path, _ = await large(mirror, upstream)
        async with await RawClient.connect(mirror.app.port, receive_buffer=4096) as client:
            count = await ask_until_it_waits(mirror, client, path)
            client.reset()
        await mirror.app.traffic.recorded()

        assert mirror.metric("mirror_requests_total", kind="manifest", result="hit", status="499") == 1
        [line] = [line for line in lines.access() if line["request_id"] == f"n{count - 1}"]
        assert (line["status"], line["failure"]) == (499, "the client left")

    async def test_a_stop_waits_for_who_is_still_taking_it(self, mirror: RunningMirror, upstream: FakeRegistry) -> None:
        """Within its grace."""
        path, size = await large(mirror, upstream)
        async with await RawClient.connect(mirror.app.port, receive_buffer=4096) as client:
            count = await ask_until_it_waits(mirror, client, path)
            stopping = asyncio.create_task(mirror.app.stop(grace=20))
            await until(lambda: mirror.app.traffic.draining)
            for _ in range(count):
                assert len((await client.answer())[1]) == size
            await stopping

    async def test_a_stop_waits_for_what_was_asked_behind_it(
        self, mirror: RunningMirror, upstream: FakeRegistry
    ) -> None:
        """Also where that has to be found out first, and is not by the time that the ready answers have gone out."""
        path, size = await large(mirror, upstream)
        image = upstream.add_image(REPOSITORY, "other")
        async with await RawClient.connect(mirror.app.port, receive_buffer=4096) as client:
            count = await ask_until_it_waits(mirror, client, path)
            held = upstream.fault(ANY, stall(), kind="manifest")
            await client.ask(f"/v2/{REPOSITORY}/manifests/other")
            async with asyncio.timeout(20):
                await held.reached.wait()
            async with await RawClient.connect(mirror.app.port) as bystander:
                stopping = asyncio.create_task(mirror.app.stop(grace=20))
                assert await bystander.rest() == b""  # from now on no request is taken
            for _ in range(count):
                assert len((await client.answer())[1]) == size
            await until(lambda: mirror.app.traffic.active < 2)
            held.release()
            assert (await client.answer())[1] == image.manifest.content
            await stopping


class TestTruth:
    async def test_a_fresh_tag_is_what_it_was_until_its_time_is_over(
        self, mirror: RunningMirror, upstream: FakeRegistry, image: Image, clock: Clock
    ) -> None:
        """And not a moment longer, however lately it was given."""
        moved = move(upstream)
        for seconds in (9, TTL - 20):
            clock.forward(seconds)
            assert (await mirror.manifest(REPOSITORY, "1")).body == image.manifest.content
        before = given(mirror)
        clock.forward(8)
        assert (await mirror.manifest(REPOSITORY, "1")).body == image.manifest.content
        assert given(mirror) == before + 1
        assert upstream.select() == []
        clock.forward(5)

        reply = await mirror.manifest(REPOSITORY, "1")

        assert (reply.body, reply.cache) == (moved.manifest.content, "miss")
        assert (await mirror.manifest(REPOSITORY, image.digest)).body == image.manifest.content

    @pytest.mark.parametrize("jump", [-1.0, -DAY, DAY], ids=["a-second-back", "back", "ahead"])
    async def test_a_jump_of_the_clock_ends_it(
        self, mirror: RunningMirror, upstream: FakeRegistry, image: Image, clock: Clock, jump: float
    ) -> None:
        """Nobody knows how old anything is, so the tag is asked again; also for another name of it, on the way back."""
        other = f"/v2/{REPOSITORY}/manifests/1?ns=docker.io"
        await make_ready(mirror, other)
        moved = move(upstream)
        clock.forward(jump)
        assert (await mirror.manifest(REPOSITORY, "1")).body == moved.manifest.content
        clock.forward(-jump)

        assert (await mirror.get(other)).body == moved.manifest.content

    @pytest.mark.parametrize("refusal", [status(401), status(403), status(404, error="NAME_UNKNOWN")])
    async def test_a_refusal_ends_it(
        self, mirror: RunningMirror, upstream: FakeRegistry, image: Image, refusal: Fault
    ) -> None:
        """Of whatever was asked of the repository; fresh as it is, it is asked again, GET and HEAD alike."""
        paths = [f"/v2/{REPOSITORY}/manifests/{reference}" for reference in ("1", image.digest)]
        for path in paths:
            await make_ready(mirror, path, method="HEAD")
        upstream.fault(REPOSITORY, refusal)
        assert (await mirror.manifest(REPOSITORY, "unheard-of")).status in (403, 404)

        before = given(mirror)
        for path in paths:
            for method in ("GET", "HEAD"):
                assert (await mirror.get(path, method=method)).status in (403, 404)
        assert given(mirror) == before

    async def test_a_404_ends_it(self, start_mirror: StartMirror, upstream: FakeRegistry, clock: Clock) -> None:
        """Also one that is heard behind the back of who asks, when an old link is asked for again."""
        settings = UpstreamSettings(url=upstream.url, link_ttl=DAY)
        mirror = await start_mirror(upstreams={"docker.io": settings}, clock=clock, timeouts=PATIENT)
        image = upstream.add_image(REPOSITORY, "1")
        path = f"/v2/{REPOSITORY}/manifests/{image.digest}"
        await make_ready(mirror, path)
        upstream.remove(REPOSITORY, image.manifest)
        clock.forward(DAY + 1)
        await mirror.get(path)
        await mirror.app.renewals.idle()

        assert (await mirror.get(path)).status == 404
        before = given(mirror)
        assert (await mirror.get(path)).status == 404
        assert given(mirror) == before

    async def test_a_tag_that_moved_under_another_name_has_moved_under_all(
        self, mirror: RunningMirror, upstream: FakeRegistry, image: Image, clock: Clock
    ) -> None:
        """Whoever hears of it first tells everybody."""
        clock.forward(TTL - 5)
        names = [f"/v2/{REPOSITORY}/manifests/1", f"/v2/docker.io/{REPOSITORY}/manifests/1"]
        for name in names:
            await make_ready(mirror, name)
        moved = move(upstream)
        clock.forward(6)
        for name in names:
            assert (await mirror.get(name)).body == moved.manifest.content
            await make_ready(mirror, name)
        assert (await mirror.get(names[0])).body == moved.manifest.content

    async def test_a_tag_without_a_time_to_live_is_never_ready(
        self, start_mirror: StartMirror, upstream: FakeRegistry
    ) -> None:
        """Each request asks."""
        mirror = await start_mirror(tag_ttl=0)
        upstream.add_image(REPOSITORY, "1")
        assert [(await mirror.manifest(REPOSITORY, "1")).cache for _ in range(3)] == ["miss", *["revalidated"] * 2]
        assert given(mirror) == 0

    async def test_a_stale_answer_is_never_ready(
        self, mirror: RunningMirror, upstream: FakeRegistry, image: Image, clock: Clock
    ) -> None:
        """The upstream may be back for the next one."""
        clock.forward(TTL + 1)
        rule = upstream.fault(ANY, status(503))
        assert (await mirror.manifest(REPOSITORY, "1")).cache == "stale"
        rule.remove()
        moved = move(upstream)
        clock.forward(60)

        assert (await mirror.manifest(REPOSITORY, "1")).body == moved.manifest.content

    async def test_giving_it_is_a_use_of_its_blobs(
        self, start_mirror: StartMirror, upstream: FakeRegistry, clock: Clock
    ) -> None:
        """An image whose manifest alone is asked for, often, keeps its layers; the other one goes."""
        storage = {"max_size": 10 * MIB + 512 * 1024, "low_watermark": 0.9}
        mirror = await start_mirror(clock=clock, storage=storage)
        images = [upstream.add_image(REPOSITORY, tag, layers=[MIB, MIB, MIB]) for tag in ("used", "other")]
        path = f"/v2/{REPOSITORY}/manifests/{images[0].digest}"
        for image in images:
            await mirror.manifest(REPOSITORY, image.digest)
            for blob in image.blobs:
                assert (await mirror.blob(REPOSITORY, blob.digest)).status == 200
            await mirror.quiet()
            clock.forward(60)
        for _ in range(10):
            await make_ready(mirror, path)
            clock.forward(6)

        for number in range(3):
            await mirror.blob(REPOSITORY, upstream.put_blob(REPOSITORY, 1700 * 1024 + number).digest)
        await mirror.quiet()
        await mirror.app.upkeep.round()

        held = [
            [path_of(mirror.settings.storage.path, blob.digest).exists() for blob in image.layers] for image in images
        ]
        assert held == [[True] * 3, [False] * 3]


async def large(mirror: RunningMirror, upstream: FakeRegistry) -> tuple[str, int]:
    """The path of a manifest that is ready, and larger than what a kernel keeps for a client that takes little."""
    content = json.dumps({"schemaVersion": 2, "annotations": {"padding": "x" * (4 * MIB - 1000)}}).encode()
    upstream.put_manifest(REPOSITORY, content, "large")
    path = f"/v2/{REPOSITORY}/manifests/large"
    await make_ready(mirror, path)
    return path, len(content)


async def ask_until_it_waits(mirror: RunningMirror, client: RawClient, path: str) -> int:
    """Asks until the kernel takes no more for a client that reads nothing; how often. The ids are n0, n1, …"""
    for number in range(20):
        answered = functools.partial(has_given, mirror, given(mirror) + 1)
        await client.ask(path, X_Request_Id=f"n{number}")
        await until(answered)
        if mirror.app.traffic.active:
            assert mirror.app.traffic.active == 1
            return number + 1
    raise AssertionError("the kernel takes whatever it gets")


async def until(true: Callable[[], bool]) -> None:
    """Lets the mirror work until it is."""
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110 - nothing tells when an answer has gone out
            await asyncio.sleep(0)


def move(upstream: FakeRegistry) -> Image:
    """Pushes another image under the tag."""
    image = upstream.add_image(REPOSITORY, labels={"pushed": "later"})
    upstream.move_tag(REPOSITORY, "1", image)
    return image


def counts(mirror: RunningMirror) -> dict[str, float]:
    """What is counted of manifests."""
    names = ("requests_total", "request_duration_seconds_count", "first_byte_seconds_count", "served_bytes_total")
    return {name: mirror.metric(f"mirror_{name}", kind="manifest", result="hit") for name in names} | {
        names[1]: mirror.metric(f"mirror_{names[1]}", kind="manifest")
    }

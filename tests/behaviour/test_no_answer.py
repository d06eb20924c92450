"""*No*, *no answer* and *our own credential refused*, for every kind of thing: what is held is given, or not given."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from mirror.config import UpstreamSettings
from tests.clock import Clock
from tests.conftest import StartMirror
from tests.harness import Reply, RunningMirror, short_timeouts
from tests.lines import Lines, lines
from tests.reading import Reading, blob_path
from tests.upstream import ANY, Basic, Bearer, FakeRegistry, Image, NoAuth, refuse, reset, stall, stall_at, status

__all__ = ["lines"]

REPOSITORY = "team/app"
DAY = 86400.0
RANGE = {"Range": "bytes=5-9"}


@dataclass
class World:
    """A mirror that logs in to its upstream, and an image of which it has pulled everything."""

    mirror: RunningMirror
    upstream: FakeRegistry
    clock: Clock
    image: Image
    password_file: Path
    held: dict[str, bytes]

    async def ask(self, path: str) -> list[Reply]:
        """The answers to GET, HEAD and a range; a list has no ranges that mean anything."""
        async with asyncio.timeout(15):
            replies = [await self.mirror.get(path, method=method) for method in ("GET", "HEAD")]
            if "/blobs/" in path:
                replies.append(await self.mirror.get(path, **RANGE))
        return replies

    def configure(self, **changes: object) -> None:
        """Changes the upstream's settings; a restart takes them up."""
        upstreams = self.mirror.settings.upstreams
        changed = {"docker.io": upstreams["docker.io"].model_copy(update=changes)}
        self.mirror.settings = self.mirror.settings.model_copy(update={"upstreams": changed})


def of_tags(image: Image) -> list[str]:
    """What an upstream may say differently tomorrow: it is asked again when its time is over."""
    ends = ("manifests/1", "tags/list", f"referrers/{image.digest}")
    return [f"/v2/{REPOSITORY}/{end}" for end in ends]


def of_digests(image: Image) -> list[str]:
    """What is the same for ever."""
    ends = (f"manifests/{image.digest}", *(f"blobs/{blob.digest}" for blob in image.blobs))
    return [f"/v2/{REPOSITORY}/{end}" for end in ends]


def cold(image: Image) -> list[str]:
    """The same of another repository, of which nothing is held."""
    return [path.replace(REPOSITORY, "team/cold") for path in (*of_tags(image), *of_digests(image))]


@pytest.fixture
async def world(start_mirror: StartMirror, upstream: FakeRegistry, tmp_path: Path, lines: Lines) -> World:
    """Everything pulled once, its tags and lists out of date."""
    return await warm(start_mirror, upstream, tmp_path, Bearer({"ci": "old"}, anonymous=False))


async def warm(start_mirror: StartMirror, upstream: FakeRegistry, tmp_path: Path, auth: Bearer | Basic) -> World:
    """A world whose upstream wants to see a password."""
    upstream.auth = auth
    (password_file := tmp_path / "password").write_text("old\n")
    image = upstream.add_image(REPOSITORY, "1", layers=[10_000, 20_000])
    upstream.add_image(REPOSITORY, "signature", subject=image.manifest)
    upstream.add_image("team/cold", "1", layers=[30_000], labels={"of": "another"})
    clock = Clock()
    settings = UpstreamSettings(url=upstream.url, username="ci", password_file=password_file)
    timeouts = short_timeouts(stale_after=0.1, first_byte=1.0, try_=0.4)
    mirror = await start_mirror(upstreams={"docker.io": settings}, clock=clock, timeouts=timeouts)
    held = {}
    for path in (*of_tags(image), *of_digests(image)):
        reply = await mirror.get(path)
        assert reply.status == 200, path
        held[path] = reply.body
    await mirror.quiet()
    clock.forward(301)
    upstream.reset()
    return World(mirror, upstream, clock, image, password_file, held)


# No answer, in all its forms.


@dataclass(frozen=True)
class Trouble:
    """A reason to get no answer: how it begins, and which statuses tell of it where nothing is held."""

    name: str
    begin: Callable[[World], None]
    statuses: frozenset[int] = frozenset({503})


def _every_request(name: str, fault: object, *statuses: int) -> Trouble:
    return Trouble(name, lambda world: world.upstream.fault(ANY, fault), frozenset(statuses or {503}))  # type: ignore[arg-type]  # any fault


def _hangs(world: World) -> None:
    world.upstream.auth = NoAuth()  # else it would answer 401 to what shows no token
    world.upstream.fault(ANY, stall())


def _no_tokens(world: World) -> None:
    assert isinstance(world.upstream.auth, Bearer)
    world.upstream.auth.expire_tokens()
    world.upstream.fault(ANY, status(503), kind="token")


def _another_password(world: World) -> None:
    world.upstream.auth = Bearer({"ci": "new"}, anonymous=False)


NO_ANSWER = pytest.mark.parametrize(
    "trouble",
    [
        Trouble("hangs", _hangs, frozenset({504, 503})),
        _every_request("resets", reset()),
        _every_request("refuses", refuse()),
        _every_request("500", status(500)),
        _every_request("503", status(503)),
        _every_request("429", status(429, retry_after=60), 429),
        _every_request("400", status(400)),
        Trouble("no-tokens", _no_tokens),
        Trouble("credential-refused", _another_password),
    ],
    ids=lambda trouble: trouble.name,
)


@NO_ANSWER
async def test_what_is_held_is_served_without_an_answer(world: World, trouble: Trouble) -> None:
    """Tags, their lists and referrers as they were, marked as stale; digests as ever; to GET, HEAD and ranges."""
    trouble.begin(world)

    for paths, source in ((of_tags(world.image), "stale"), (of_digests(world.image), "hit")):
        for path in paths:
            for reply, body in zip(
                await world.ask(path), (world.held[path], b"", world.held[path][5:10]), strict=False
            ):
                assert (reply.status // 100, reply.cache, reply.body) == (2, source, body), path


@NO_ANSWER
async def test_what_is_not_held_is_an_error_that_may_pass(world: World, trouble: Trouble) -> None:
    """Never 403 nor 404, which clients believe: the upstream has not said so."""
    trouble.begin(world)

    for path in cold(world.image):
        for reply in await world.ask(path):
            assert reply.status in trouble.statuses, path
            assert reply.status == 504 or int(reply.headers["Retry-After"]) >= 1


# No.


@pytest.mark.parametrize(
    "refusal",
    [status(401), status(403), status(404, error="NAME_UNKNOWN"), None],
    ids=["401", "403", "no-repository", "private"],
)
async def test_what_a_revoked_repository_showed_is_not_served(world: World, refusal: object) -> None:
    """From the first question that is refused on, whatever is asked for; nor when the upstream falls silent then."""
    if refusal is None:
        world.upstream.make_private(REPOSITORY, ["somebody"])
    else:
        world.upstream.fault(REPOSITORY, refusal)  # type: ignore[arg-type]  # parametrized
    # Not by a HEAD: it has no body to say in that it is the repository that is unknown.
    assert (await world.mirror.manifest(REPOSITORY, "unheard-of")).status in (403, 404)

    for path in (*of_digests(world.image), *of_tags(world.image)):
        for reply in await world.ask(path):
            assert reply.status in (403, 404), path
            assert reply.cache is None

    world.clock.forward(31)  # what was heard to be absent is absent so long
    world.upstream.fault(ANY, status(503))
    for path in (*of_digests(world.image), *of_tags(world.image)):
        assert {reply.status for reply in await world.ask(path)} == {503}, path


async def test_a_tag_that_is_gone_is_gone_alone(world: World) -> None:
    """404 for one name is a word about that name: digests are given on."""
    world.upstream.fault(f"{REPOSITORY}:1", status(404))

    assert {reply.status for reply in await world.ask(of_tags(world.image)[0])} == {404}
    for path in of_digests(world.image):
        assert {reply.cache for reply in await world.ask(path)} == {"hit"}


# Our own credential refused.


@pytest.mark.parametrize("kind", [Bearer, Basic], ids=["bearer", "basic"])
async def test_an_expired_password_stops_nothing_and_is_loud(
    start_mirror: StartMirror, upstream: FakeRegistry, tmp_path: Path, lines: Lines, kind: type[Bearer | Basic]
) -> None:
    """What is held is served, one error line and a metric say why the rest is not; a new password mends it."""
    world = await warm(
        start_mirror,
        upstream,
        tmp_path,
        Bearer({"ci": "old"}, anonymous=False) if kind is Bearer else Basic({"ci": "old"}),
    )
    mirror = world.mirror
    upstream.auth = Bearer({"ci": "new"}, anonymous=False) if kind is Bearer else Basic({"ci": "new"})
    for _ in range(3):
        for path, body in world.held.items():
            assert (await mirror.get(path)).body == body
        assert {(await mirror.get(path)).status for path in cold(world.image)} == {503}
    assert mirror.metric("mirror_credentials_rejected", upstream="docker.io") == 1
    assert mirror.metric("mirror_stale_served_total", upstream="docker.io", reason="credential") >= 9

    world.password_file.write_text("new\n")

    async with asyncio.timeout(10):
        while (await mirror.manifest(REPOSITORY, "1")).cache == "stale":
            pass
    assert (await mirror.manifest("team/cold", "1")).status == 200
    assert mirror.metric("mirror_credentials_rejected", upstream="docker.io") == 0
    assert len([line for line in lines.all() if line["level"] == "error"]) == 1


# Nobody is to be asked at all.


class TestOffline:
    @pytest.fixture
    async def offline(self, world: World) -> World:
        """The same after a restart with `offline: true`."""
        world.configure(offline=True)
        await world.mirror.restart()
        return world

    @pytest.mark.parametrize("days", [0, 6, 29])
    async def test_what_is_held_is_served_however_old(self, offline: World, days: int) -> None:
        """Past `stale_if_error` and `link_ttl`, too; and nobody is asked, not even behind the client's back."""
        offline.clock.forward(days * DAY)

        for path in of_digests(offline.image):
            assert {reply.cache for reply in await offline.ask(path)} == {"hit"}, path
        for path in of_tags(offline.image)[: 3 if days < 7 else 1]:
            for reply, body in zip(await offline.ask(path), (offline.held[path], b""), strict=True):
                assert (reply.status, reply.cache, reply.body) == (200, "stale", body), path
        await offline.mirror.app.renewals.idle()
        assert offline.upstream.connections == 0

    async def test_what_is_used_is_held_for_good(self, offline: World) -> None:
        """Names last thirty days after their last use: two months of it are no problem."""
        for _ in range(6):
            for path in (*of_digests(offline.image), *of_tags(offline.image)):
                assert (await offline.mirror.get(path)).body == offline.held[path], path
            offline.clock.forward(10 * DAY)
        await offline.mirror.restart()

        assert (await offline.mirror.manifest(REPOSITORY, "1")).cache == "stale"
        assert offline.upstream.connections == 0

    async def test_what_is_not_held_is_unavailable(self, offline: World) -> None:
        """503, whose message says that this is meant so; not 404, since nobody has said that it is not there."""
        for path in cold(offline.image):
            first, *others = await offline.ask(path)
            assert (first.status, first.code) == (503, "UNAVAILABLE"), path
            assert b"docker.io is configured to be offline" in first.body
            assert {reply.status for reply in others} == {503}
        assert offline.upstream.connections == 0

    async def test_a_spool_waits_until_it_may_be_finished(self, world: World) -> None:
        """What an earlier process left of a blob is neither resumed nor lost."""
        blob = world.upstream.put_blob(REPOSITORY, 4 << 20)
        world.upstream.fault(blob, stall_at(3 << 20), times=1)
        async with await Reading.ask(world.mirror, blob_path(REPOSITORY, blob)) as reading:
            await reading.take(2 << 20)
            world.configure(offline=True)
            await world.mirror.restart()
        world.upstream.reset()

        assert (await world.mirror.blob(REPOSITORY, blob.digest)).status == 503
        assert world.upstream.connections == 0
        world.configure(offline=False)
        await world.mirror.restart()
        assert (await world.mirror.blob(REPOSITORY, blob.digest)).body == blob.content
        assert world.upstream.bytes_for(blob) <= 2 << 20

    async def test_others_are_asked_as_ever(self, start_mirror: StartMirror, upstream: FakeRegistry) -> None:
        """It is said of one registry."""
        upstream.add_image("team/app", "1")
        mirror = await start_mirror(
            upstreams={
                "docker.io": UpstreamSettings(url=upstream.url, offline=True),
                "registry.test": UpstreamSettings(url=upstream.url),
            }
        )

        assert (await mirror.manifest("team/app", "1")).status == 503
        assert (await mirror.manifest("registry.test/team/app", "1")).status == 200

"""A mirror in front of a mirror: the last one gives what the first one would, and says what the upstream said."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest
from pydantic import SecretStr

from mirror.config import UpstreamSettings
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_INDEX
from tests.conftest import StartMirror
from tests.harness import Reply, RunningMirror
from tests.reading import Reading
from tests.upstream import (
    Basic,
    Bearer,
    FakeRegistry,
    Fault,
    Image,
    flip,
    no_length,
    redirect_to,
    reset,
    stall,
    status,
)
from tests.upstream.fixtures import StartUpstream

REPOSITORY = "library/demo"
ABSENT = Digest.of(b"nobody has this")
SIZE = 300_000

Chain = list[RunningMirror]
"""Mirrors from the one that clients ask to the one that asks the upstream."""
StartChain = Callable[..., Awaitable[Chain]]


@pytest.fixture
def start_chain(start_mirror: StartMirror, upstream: FakeRegistry) -> StartChain:
    """Starts so many mirrors in a row in front of `upstream`; options go to each of them."""

    async def start(length: int = 2, *, far: UpstreamSettings | None = None, **options: object) -> Chain:
        chain: Chain = []
        nearer: FakeRegistry | UpstreamSettings = far or upstream
        for _ in range(length):
            chain.insert(0, await start_mirror(upstreams={"docker.io": nearer}, **options))
            nearer = UpstreamSettings(url=chain[0].url)
        return chain

    return start


@pytest.fixture(params=[2, 3], ids=["two", "three"])
async def chain(start_chain: StartChain, request: pytest.FixtureRequest) -> Chain:
    """Two mirrors in a row, and three."""
    return await start_chain(request.param)


@pytest.fixture
def image(upstream: FakeRegistry) -> Image:
    """An image at the far end."""
    return upstream.add_image(REPOSITORY, "1", layers=[SIZE, 1000])


async def settle(chain: Chain) -> None:
    """Waits until nothing is on its way anywhere."""
    for mirror in chain:
        await mirror.quiet()


def paths(image: Image) -> dict[str, str]:
    """What a pull of it asks for, and the digest of each."""
    return {
        "/v2/demo/manifests/1": str(image.digest),
        f"/v2/demo/manifests/{image.digest}": str(image.digest),
        **{f"/v2/demo/blobs/{blob.digest}": str(blob.digest) for blob in image.blobs},
    }


# What is there.


@pytest.mark.parametrize("first", ["HEAD", "GET"])
async def test_every_answer_is_complete_when_cold(
    chain: Chain, upstream: FakeRegistry, image: Image, first: str
) -> None:
    """HEAD and GET of manifests and blobs, whichever comes first: with length, digest, type; and both alike."""
    contents = {str(thing.digest): thing.content for thing in (image.manifest, *image.blobs)}
    for path, digest in paths(image).items():
        replies = {method: await chain[0].get(path, method=method) for method in (first, "GET", "HEAD")}
        for method, reply in replies.items():
            assert reply.status == 200, path
            assert reply.headers["Docker-Content-Digest"] == digest
            assert reply.headers["Content-Length"] == str(len(contents[digest]))
            assert reply.body == (contents[digest] if method == "GET" else b"")
        assert replies["HEAD"].headers["Content-Type"] == replies["GET"].headers["Content-Type"]
        await settle(chain)
    for blob in image.blobs:
        assert upstream.bytes_for(blob) == blob.size


async def test_a_cold_head_fetches_nothing_anywhere(chain: Chain, upstream: FakeRegistry, image: Image) -> None:
    """It costs one HEAD at the far end, once, for any number of mirrors."""
    for _ in range(2):
        for path in paths(image):
            assert (await chain[0].get(path, method="HEAD")).status == 200

    assert {seen.method for seen in upstream.content_requests()} == {"HEAD"}
    assert all(upstream.count(blob) == 1 for blob in image.blobs)


async def test_a_length_that_the_upstream_does_not_tell_is_told(
    chain: Chain, upstream: FakeRegistry, image: Image
) -> None:
    """containerd, oras and Harbor need it: found out at the far end, whole where nobody has said it before."""
    upstream.fault(REPOSITORY, no_length())
    blob = image.layers[0]

    for method in ("HEAD", "GET"):
        reply = await chain[0].blob("demo", blob.digest, method=method)
        assert (reply.status, reply.headers["Content-Length"]) == (200, str(blob.size))


async def test_the_second_pull_goes_no_further_than_the_first_mirror(
    chain: Chain, upstream: FakeRegistry, image: Image
) -> None:
    """Each mirror keeps what it has passed on; one that lost everything costs its neighbour, not the upstream."""
    for path in paths(image):
        assert (await chain[0].get(path)).status == 200
    await settle(chain)
    upstream.reset()

    await chain[1].stop()
    for path in paths(image):
        assert (await chain[0].get(path)).cache == "hit"
    await chain[1].start()

    for path in paths(image):
        assert (await chain[1].get(path)).cache == "hit"
    assert upstream.content_requests() == []


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
async def test_ranges_are_exact(chain: Chain, upstream: FakeRegistry, image: Image, *, warm: bool) -> None:
    """Single ranges of every form, on blobs and manifests; cold ones cost the upstream little more than the blob."""
    blob = image.layers[0]
    if warm:
        await chain[0].blob("demo", blob.digest)
        await settle(chain)

    for header, start, end in (("bytes=1000-1999", 1000, 2000), ("bytes=-5", SIZE - 5, SIZE), ("bytes=0-", 0, SIZE)):
        part = await chain[0].blob("demo", blob.digest, Range=header)
        assert (part.status, part.body) == (206, blob.content[start:end])
        assert part.headers["Content-Range"] == f"bytes {start}-{end - 1}/{SIZE}"
        await settle(chain)
    past = await chain[0].blob("demo", blob.digest, Range=f"bytes={SIZE}-")
    manifest = await chain[0].manifest("demo", "1", Range="bytes=5-")

    assert (past.status, past.headers["Content-Range"]) == (416, f"bytes */{SIZE}")
    assert (manifest.status, manifest.body) == (206, image.manifest.content[5:])
    assert upstream.bytes_for(blob) <= SIZE + (0 if warm else 10_000)


@pytest.mark.parametrize("kind", ["manifest", "blob"])
async def test_a_herd_costs_one_fetch_at_the_far_end(
    chain: Chain, upstream: FakeRegistry, image: Image, kind: str
) -> None:
    """Twenty clients, half of them at another mirror of the chain: one request, each byte once."""
    blob = image.layers[0]
    upstream.latency = 0.1
    path = "/v2/demo/manifests/1" if kind == "manifest" else f"/v2/demo/blobs/{blob.digest}"

    near, far = await asyncio.gather(chain[0].together(10, path), chain[-1].together(10, path))

    wanted = image.manifest if kind == "manifest" else blob
    assert all((reply.status, reply.body) == (200, wanted.content) for reply in (*near, *far))
    assert upstream.requests_for(wanted) == 1
    assert upstream.bytes_for(wanted) == wanted.size


async def test_a_private_repository_is_the_far_mirrors_business(
    start_chain: StartChain, upstream: FakeRegistry
) -> None:
    """It has the credential; the others show none and are asked for none."""
    for auth in (Bearer({"ci": "secret"}), Basic({"ci": "secret"})):
        upstream.auth = auth
        tag = type(auth).__name__.lower()
        image = upstream.add_image("team/app", tag)
        upstream.make_private("team/app")
        far = UpstreamSettings(url=upstream.url, username="ci", password=SecretStr("secret"))
        chain = await start_chain(far=far)

        for path in (f"/v2/team/app/manifests/{tag}", f"/v2/team/app/blobs/{image.layers[0].digest}"):
            for method in ("HEAD", "GET"):
                assert (await chain[0].get(path, method=method)).status == 200
        upstream.auth = type(auth)({"ci": "changed"})
        other = upstream.add_image("team/app", "other")
        refused = await chain[0].manifest("team/app", other.digest)
        assert (refused.status, refused.code) == (503, "UNAVAILABLE")


# What is not.


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_no_stays_a_no(chain: Chain, upstream: FakeRegistry, image: Image, method: str) -> None:
    """404 with the upstream's code, 403 DENIED: asked for once at the far end, remembered by everyone."""
    upstream.fault("library/closed", status(403, "denied", content_type="text/plain"))
    upstream.add_image("library/closed", "1")
    for path, code, word in (
        ("/v2/demo/manifests/absent", 404, "MANIFEST_UNKNOWN"),
        (f"/v2/demo/manifests/{ABSENT}", 404, "MANIFEST_UNKNOWN"),
        (f"/v2/demo/blobs/{ABSENT}", 404, "BLOB_UNKNOWN"),
        ("/v2/absent/manifests/1", 404, "NAME_UNKNOWN"),
        (f"/v2/absent/blobs/{ABSENT}", 404, "NAME_UNKNOWN"),
        ("/v2/closed/manifests/1", 403, "DENIED"),
        (f"/v2/closed/blobs/{ABSENT}", 403, "DENIED"),
    ):
        upstream.reset()
        reply = await chain[0].get(path, method=method)
        again = await chain[0].get(path)
        assert (reply.status, again.status) == (code, code), path
        assert "WWW-Authenticate" not in again.headers
        if method == "GET":  # a HEAD has no body to say more
            assert (reply.code, again.code) == (word, word), path
        if code == 404:
            assert len(upstream.content_requests()) == 1, path
    assert (await chain[0].manifest("demo", "1")).body == image.manifest.content


TROUBLES: dict[str, tuple[Fault, int, str]] = {
    "429": (status(429, retry_after=40), 429, "TOOMANYREQUESTS"),
    "503": (status(503), 503, "UNAVAILABLE"),
    "503 with a time": (status(503, retry_after=40), 503, "UNAVAILABLE"),
    "reset": (reset(), 503, "UNAVAILABLE"),
    "silence": (stall(), 504, "UNAVAILABLE"),
}


@pytest.mark.parametrize("name", TROUBLES)
async def test_no_answer_stays_no_answer(
    start_chain: StartChain, upstream: FakeRegistry, image: Image, name: str
) -> None:
    """429 and 503 with the time to come back, 504; never a no, never remembered as one; then all is well again."""
    chain = await start_chain(2)
    fault, code, word = TROUBLES[name]
    rules = [upstream.fault(thing, fault) for thing in (image, image.layers[0])]
    waiting = (chain[0].manifest("demo", image.digest), chain[0].blob("demo", image.layers[0].digest))

    for reply in await asyncio.gather(*waiting):
        assert (reply.status, reply.code) == (code, word)
        if code != 504:
            assert 1 <= int(reply.headers["Retry-After"]) <= 40
    for rule in rules:
        rule.remove()
    if name == "silence":
        # What the first mirror asked last may still be under way at the second one; its end is not the newcomer's.
        assert (await chain[0].manifest("demo", image.digest)).body == image.manifest.content


@pytest.mark.parametrize("name", ["429", "503", "503 with a time"])
async def test_trouble_with_one_thing_silences_no_mirror(
    start_chain: StartChain, upstream: FakeRegistry, image: Image, name: str
) -> None:
    """A mirror that cannot get one thing says so, with a time to come back; what it holds it still gives."""
    chain = await start_chain(3)
    held, wanted = image, upstream.add_image(REPOSITORY, "2")
    for path in paths(held):
        assert (await chain[-1].get(path)).status == 200
    await settle(chain)
    upstream.fault(wanted, TROUBLES[name][0])

    assert (await chain[0].manifest("demo", wanted.digest)).status == TROUBLES[name][1]

    for path in paths(held):
        assert (await chain[0].get(path)).status == 200, path


async def test_a_throttled_herd_is_one_question(start_chain: StartChain, upstream: FakeRegistry, image: Image) -> None:
    """Clients that ask again at once, five times each, as containerd does: the upstream hears of none of it."""
    chain = await start_chain(3)
    upstream.fault(image, status(429, retry_after=60))

    async def insist() -> list[Reply]:
        return [await chain[0].manifest("demo", image.digest) for _ in range(6)]

    replies = [reply for client in await asyncio.gather(*(insist() for _ in range(10))) for reply in client]

    assert {reply.status for reply in replies} == {429}
    assert all(30 <= int(reply.headers["Retry-After"]) <= 60 for reply in replies)
    assert upstream.requests_for(image) == 1


async def test_a_short_throttle_is_waited_out(start_chain: StartChain, upstream: FakeRegistry, image: Image) -> None:
    """The far mirror waits for who has the time; the client never hears of it."""
    chain = await start_chain(2)
    upstream.fault(image, status(429, retry_after=1), times=1)

    assert (await chain[0].manifest("demo", image.digest)).body == image.manifest.content
    assert upstream.requests_for(image) == 2


# Outages.


async def test_stale_copies_come_through(start_chain: StartChain, upstream: FakeRegistry, image: Image) -> None:
    """The upstream is gone: whoever holds a copy serves it; and a mirror whose neighbour is gone does the same."""
    chain = await start_chain(2, tag_ttl=0)
    for path in paths(image):
        await chain[0].get(path)
    await settle(chain)
    await upstream.stop()

    through = await chain[0].manifest("demo", "1")
    await chain[1].stop()
    alone = await chain[0].manifest("demo", "1")
    held = [(await chain[0].get(path)).status for path in paths(image)]
    await chain[1].start()

    assert (through.status, through.body) == (200, image.manifest.content)
    assert (alone.status, alone.cache, alone.body) == (200, "stale", image.manifest.content)
    assert set(held) == {200}


async def test_a_moved_tag_comes_through(start_chain: StartChain, upstream: FakeRegistry, image: Image) -> None:
    """With tags that are always asked for, each mirror asks the next."""
    chain = await start_chain(3, tag_ttl=0)
    await chain[0].manifest("demo", "1")
    moved = upstream.add_image(REPOSITORY, labels={"v": "2"})
    upstream.move_tag(REPOSITORY, "1", moved)

    for method in ("HEAD", "GET"):
        reply = await chain[0].manifest("demo", "1", method=method)
        assert reply.headers["Docker-Content-Digest"] == str(moved.digest)


@pytest.mark.parametrize("fault", [reset(at=150_000), stall()], ids=["reset", "silence"])
async def test_a_fault_at_the_far_end_is_mended_there(
    start_chain: StartChain, upstream: FakeRegistry, image: Image, fault: Fault
) -> None:
    """What breaks or never begins is asked for again there; whoever is nearer hears of it late, if at all."""
    chain = await start_chain(2)
    blob = image.layers[0]
    upstream.fault(blob, fault, times=1)

    reply = await chain[0].blob("demo", blob.digest)

    assert (reply.status, reply.body) == (200, blob.content)
    assert upstream.count(blob) == 2
    assert upstream.bytes_for(blob) <= blob.size + (64 << 10)


async def test_a_wrong_byte_looks_whole_to_nobody(
    start_chain: StartChain, upstream: FakeRegistry, image: Image
) -> None:
    """It ends the client's answer short, through however many mirrors; the next one is right."""
    chain = await start_chain(3)
    blob = image.layers[0]
    upstream.fault(blob, flip(at=100_000), times=1)

    async with await Reading.ask(chain[0], f"/v2/demo/blobs/{blob.digest}") as reading:
        await reading.rest()

    assert reading.ending == "short"
    await settle(chain)
    assert (await chain[0].blob("demo", blob.digest)).body == blob.content
    assert upstream.bytes_for(blob) == 2 * blob.size


# Lists.


async def test_tags_come_through_whole_and_in_pages(chain: Chain, upstream: FakeRegistry, image: Image) -> None:
    """However the upstream cuts them; each page leads to the next, where its own mirror is."""
    tags = [f"v{number:02}" for number in range(11)]
    for tag in tags:
        upstream.tag(REPOSITORY, tag, image)
    upstream.page_size = 3
    wanted = ["1", *tags]

    whole = await chain[0].get("/v2/demo/tags/list")
    paged, path = [], "/v2/demo/tags/list?n=5"
    while path:
        page = await chain[0].get(path)
        paged.append(json.loads(page.body)["tags"])
        path = page.headers.get("Link", "").partition(">")[0].removeprefix("<")

    assert json.loads(whole.body)["tags"] == wanted
    assert paged == [wanted[:5], wanted[5:10], wanted[10:]]


@pytest.mark.parametrize("api", [True, False], ids=["by the API", "by a tag"])
async def test_referrers_come_through(chain: Chain, upstream: FakeRegistry, image: Image, *, api: bool) -> None:
    """From an upstream that knows them, and from one where they stand under a tag; none is an empty index."""
    upstream.referrers = api
    signature = upstream.add_image(REPOSITORY, subject=image.manifest)
    if not api:
        body = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [signature.manifest.descriptor]}
        upstream.put_manifest(REPOSITORY, body, f"sha256-{image.digest.hex}", media_type=OCI_INDEX)

    found = await chain[0].get(f"/v2/demo/referrers/{image.digest}")
    none = await chain[0].get(f"/v2/demo/referrers/{ABSENT}")

    assert [one["digest"] for one in json.loads(found.body)["manifests"]] == [str(signature.digest)]
    assert (none.status, json.loads(none.body)["manifests"]) == (200, [])
    assert found.headers["Content-Type"] == none.headers["Content-Type"] == OCI_INDEX


# Several registries.


async def test_one_mirror_serves_several_registries_to_another(
    start_mirror: StartMirror, start_upstream: StartUpstream, upstream: FakeRegistry, image: Image
) -> None:
    """By its URL with the registry's name as a path; each is private, dead or throttled by itself."""
    private, dead = await start_upstream(auth=Basic({"ci": "secret"})), await start_upstream()
    theirs = private.add_image("team/app", "1")
    private.make_private("team/app")
    dead.add_image("team/app", "1")
    far = await start_mirror(
        upstreams={
            "docker.io": upstream,
            "private.test:5000": UpstreamSettings(url=private.url, username="ci", password=SecretStr("secret")),
            "dead.test": dead,
        }
    )
    names = ("docker.io", "private.test:5000", "dead.test")
    near = await start_mirror(upstreams={name: UpstreamSettings(url=f"{far.url}/{name}") for name in names})
    await dead.stop()

    assert (await near.manifest("dead.test/team/app", "1")).status == 503
    for name, wanted in (("demo", image), ("private.test:5000/team/app", theirs)):
        for method in ("HEAD", "GET"):
            tag = await near.manifest(name, "1", method=method)
            assert tag.headers["Docker-Content-Digest"] == str(wanted.digest)
            assert (await near.blob(name, wanted.layers[0].digest, method=method)).status == 200
    listed = await near.get("/v2/private.test:5000/team/app/tags/list")
    assert json.loads(listed.body) == {"name": "private.test:5000/team/app", "tags": ["1"]}
    assert (await near.manifest("dead.test/team/app", "1")).status == 503


@pytest.mark.parametrize("kind", ["manifest", "tag", "blob", "tags"])
async def test_a_chain_that_bites_its_tail_comes_to_an_end(
    mirror: RunningMirror, upstream: FakeRegistry, image: Image, kind: str
) -> None:
    """Led back to itself, a mirror waits for itself, and no longer than for anybody; others are served meanwhile."""
    other = upstream.add_image("library/other", "1")
    path = {
        "manifest": f"/v2/library/demo/manifests/{image.digest}",
        "tag": "/v2/library/demo/manifests/1",
        "blob": f"/v2/library/demo/blobs/{image.layers[0].digest}",
        "tags": "/v2/library/demo/tags/list",
    }[kind]
    upstream.fault("/v2/library/demo/*", redirect_to(mirror.url + path))

    turning = asyncio.create_task(mirror.get(path))
    assert (await mirror.manifest("other", "1")).body == other.manifest.content
    reply = await turning

    assert (reply.status, reply.code) in ((503, "UNAVAILABLE"), (504, "UNAVAILABLE"))
    assert upstream.count(repository=REPOSITORY) <= 30

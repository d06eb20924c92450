"""What came from one upstream is given through another only after that one has shown the bytes itself."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from tests.clock import Clock
from tests.conftest import StartMirror
from tests.harness import RunningMirror, short_timeouts
from tests.upstream import (
    ANY,
    Blob,
    FakeRegistry,
    Image,
    Manifest,
    Pattern,
    flip,
    instead,
    ranged,
    redirect,
    stall,
    stall_at,
    status,
)
from tests.upstream.fixtures import StartUpstream

SECRET = "secret/app"
COPY = "rival.test/copy/app"
"""The repository of the second upstream, by its prefix."""
PATIENT = short_timeouts(first_byte=2, cold_head=2, stale_after=1)


@pytest.fixture
async def rival(start_upstream: StartUpstream) -> FakeRegistry:
    """A second upstream, which says what its owner likes."""
    return await start_upstream()


@pytest.fixture
def clock() -> Clock:
    """The mirror's wall clock."""
    return Clock()


@pytest.fixture
async def mirror(start_mirror: StartMirror, upstream: FakeRegistry, rival: FakeRegistry, clock: Clock) -> RunningMirror:
    """A mirror in front of both."""
    return await start_mirror(
        upstreams={"docker.io": upstream, "rival.test": rival}, clock=clock, timeouts=PATIENT, tag_ttl=300
    )


def claim(rival: FakeRegistry, thing: Blob | Manifest) -> None:
    """Makes the rival say that it has `thing`: right length, right digest header, no byte of it."""
    home, noise = rival.repository("copy/app"), Pattern("not what you think", thing.size)
    if isinstance(thing, Blob):
        home.blobs[thing.digest] = Blob(thing.digest, thing.size, thing.media_type, noise)
    else:
        home.manifests[thing.digest] = home.tags["1"] = Manifest(thing.digest, thing.size, thing.media_type, noise)


async def hold(mirror: RunningMirror, image: Image) -> None:
    """Pulls an image whole through its own upstream."""
    for path in (f"manifests/{image.digest}", *(f"blobs/{blob.digest}" for blob in image.blobs)):
        assert (await mirror.get(f"/v2/{SECRET}/{path}")).status == 200
    await mirror.quiet()


class TestBlobs:
    async def test_a_claim_gives_nothing(
        self, mirror: RunningMirror, upstream: FakeRegistry, rival: FakeRegistry
    ) -> None:
        """A rival that answers HEAD with the right length and digest gets no byte served that it cannot show: what
        its clients get, cut short, is its own.
        """
        image = upstream.add_image(SECRET, "1", layers=[200_000])
        layer = image.layers[0]
        await hold(mirror, image)
        claim(rival, layer)

        for _ in range(2):
            taken = await _taken(mirror, layer)
            assert not _leaked(layer, taken)
            assert len(taken) < layer.size
        ranged = await mirror.blob(COPY, layer.digest, Range="bytes=0-9")
        assert not _leaked(layer, ranged.body)
        assert mirror.metric("mirror_digest_mismatches_total", upstream="rival.test") >= 2
        assert (await mirror.blob(SECRET, layer.digest)).cache == "hit"

    async def test_there_is_no_second_guess(
        self, mirror: RunningMirror, upstream: FakeRegistry, rival: FakeRegistry
    ) -> None:
        """Whoever knows some of a blob could ask until the random place is one that he knows: one failure, and only
        the whole blob will do.
        """
        image = upstream.add_image(SECRET, "1", layers=[200_000])
        layer = image.layers[0]
        await hold(mirror, image)
        rival.put_blob("copy/app", layer)
        wrong = [rival.fault(layer, flip(at), method="GET", when=ranged) for at in range(0, layer.size, 4000)]
        rival.fault(layer, stall(), method="GET", skip=1, times=1)
        failed = asyncio.create_task(mirror.blob(COPY, layer.digest))
        await rival.until(lambda: rival.count(layer, method="GET") == 2)
        for rule in wrong:
            rule.remove()
        failed.cancel()
        rival.clear_faults()
        rival.reset()

        reply = await mirror.blob(COPY, layer.digest)

        assert reply.body == layer.content
        assert [seen.headers.get("Range") for seen in rival.select(layer, method="GET")] == [None]

    async def test_bytes_of_ours_that_rotted_are_mended(
        self, mirror: RunningMirror, upstream: FakeRegistry, rival: FakeRegistry
    ) -> None:
        """The proof may fail because of our disk: then the rival's blob takes the place of the bad one."""
        image = upstream.add_image(SECRET, "1")
        await hold(mirror, image)
        config = image.config
        path = mirror.settings.storage.path / "blobs" / "sha256" / config.digest.hex[:2] / config.digest.hex
        path.write_bytes(bytes(config.size))
        rival.put_blob("copy/app", config)

        assert (await mirror.blob(COPY, config.digest)).body == config.content
        await mirror.quiet()
        assert (await mirror.blob(SECRET, config.digest)).body == config.content

    async def test_a_claim_from_before_gives_nothing(
        self, mirror: RunningMirror, upstream: FakeRegistry, rival: FakeRegistry
    ) -> None:
        """Neither does a claim that was made, and believed, before anybody held the blob."""
        image = upstream.add_image(SECRET, "1", layers=[200_000])
        layer = image.layers[0]
        claim(rival, layer)
        assert (await mirror.blob(COPY, layer.digest, method="HEAD")).status == 200
        await hold(mirror, image)

        assert not _leaked(layer, await _taken(mirror, layer))
        ranged = await mirror.blob(COPY, layer.digest, Range="bytes=0-9")
        assert not _leaked(layer, ranged.body)

    async def test_showing_the_bytes_is_enough(
        self, mirror: RunningMirror, upstream: FakeRegistry, rival: FakeRegistry
    ) -> None:
        """A rival that really has the blob shows 4 KiB of it, once; the blob is not fetched a second time."""
        image = upstream.add_image(SECRET, "1", layers=[200_000])
        layer = image.layers[0]
        await hold(mirror, image)
        rival.put_blob("copy/app", layer)

        first = await mirror.blob(COPY, layer.digest)
        second = await mirror.blob(COPY, layer.digest)

        assert (first.cache, second.cache) == ("revalidated", "hit")
        assert first.body == second.body == layer.content
        assert 0 < rival.bytes_for(layer) <= 4096
        assert len(rival.select(layer, method="GET")) == 1

    async def test_the_place_of_the_proof_is_not_known_beforehand(
        self, mirror: RunningMirror, upstream: FakeRegistry, rival: FakeRegistry
    ) -> None:
        """The bytes asked for are others each time, so that nobody gets through with a piece that leaked."""
        starts = set()
        for number in range(4):
            image = upstream.add_image(SECRET, f"{number}", layers=[1 << 20])
            await hold(mirror, image)
            rival.put_blob("copy/app", image.layers[0])
            assert (await mirror.blob(COPY, image.layers[0].digest)).cache == "revalidated"
            (proof,) = rival.select(image.layers[0], method="GET")
            starts.add(proof.headers["Range"])

        assert len(starts) > 1

    async def test_small_blobs_need_proof_too(
        self, mirror: RunningMirror, upstream: FakeRegistry, rival: FakeRegistry
    ) -> None:
        """A config of a few hundred bytes is compared whole."""
        image = upstream.add_image(SECRET, "1")
        await hold(mirror, image)
        rival.put_blob("copy/app2", image.config)
        reply = await mirror.blob("rival.test/copy/app2", image.config.digest)
        assert (reply.cache, reply.body) == ("revalidated", image.config.content)

        claim(rival, image.config)
        assert (await mirror.blob(COPY, image.config.digest)).status == 502

    async def test_a_proof_through_a_redirect_counts(
        self, mirror: RunningMirror, upstream: FakeRegistry, rival: FakeRegistry
    ) -> None:
        """A registry that keeps its blobs elsewhere shows them from there."""
        image = upstream.add_image(SECRET, "1", layers=[200_000])
        await hold(mirror, image)
        rival.put_blob("copy/app", image.layers[0])
        rival.fault(image.layers[0], redirect())

        assert (await mirror.blob(COPY, image.layers[0].digest)).cache == "revalidated"
        assert rival.bytes_for(image.layers[0]) <= 4096 + 1

    async def test_an_upstream_without_ranges_shows_the_whole_blob(
        self, mirror: RunningMirror, upstream: FakeRegistry, rival: FakeRegistry
    ) -> None:
        """Where no part can be had for proof, the blob is fetched from there once, and verified as ever."""
        image = upstream.add_image(SECRET, "1", layers=[4 << 20])
        layer = image.layers[0]
        await hold(mirror, image)
        rival.put_blob("copy/app", layer)
        rival.fault(layer, status(416), when=ranged)

        assert (await mirror.blob(COPY, layer.digest)).body == layer.content
        await mirror.quiet()
        assert (await mirror.blob(COPY, layer.digest)).cache == "hit"

    async def test_no_answer_to_the_proof_is_no_denial(
        self, mirror: RunningMirror, upstream: FakeRegistry, rival: FakeRegistry
    ) -> None:
        """If the rival's storage fails during the proof the answer is 503, and the next attempt may succeed."""
        image = upstream.add_image(SECRET, "1", layers=[200_000])
        layer = image.layers[0]
        await hold(mirror, image)
        rival.put_blob("copy/app", layer)
        rival.fault(layer, redirect(lifetime=-1), method="GET")

        assert (await mirror.blob(COPY, layer.digest)).status == 503
        rival.clear_faults()
        assert (await mirror.blob(COPY, layer.digest)).status == 200

    async def test_heads_of_a_rival_tell_what_the_rival_says(
        self, mirror: RunningMirror, upstream: FakeRegistry, rival: FakeRegistry
    ) -> None:
        """HEAD gives no byte away, so it needs no proof; it costs the rival one HEAD and no GET."""
        image = upstream.add_image(SECRET, "1", layers=[200_000])
        await hold(mirror, image)
        claim(rival, image.layers[0])
        claim(rival, image.manifest)

        assert (await mirror.blob(COPY, image.layers[0].digest, method="HEAD")).status == 200
        assert (await mirror.manifest(COPY, image.digest, method="HEAD")).status == 200
        assert [seen.method for seen in rival.content_requests()] == ["HEAD", "HEAD"]


class TestBlobsOnTheirWay:
    async def test_a_claim_gives_nothing_in_flight(
        self, mirror: RunningMirror, upstream: FakeRegistry, rival: FakeRegistry
    ) -> None:
        """A client of the rival gets none of the bytes that are arriving for a client of the upstream."""
        layer = upstream.add_image(SECRET, "1", layers=[4 << 20]).layers[0]
        held = upstream.fault(layer, stall_at(2 << 20))
        honest = asyncio.create_task(mirror.blob(SECRET, layer.digest))
        await held.reached.wait()
        claim(rival, layer)

        taken = await asyncio.wait_for(_taken(mirror, layer), 10)
        held.release()

        assert not _leaked(layer, taken)
        assert (await honest).body == layer.content

    @pytest.mark.parametrize("size", [1000, 4 << 20], ids=["small", "large"])
    async def test_garbage_first_gives_nothing(
        self, mirror: RunningMirror, upstream: FakeRegistry, rival: FakeRegistry, size: int
    ) -> None:
        """A rival that is asked first and sends garbage gains nothing when the upstream's client joins, and cannot
        spoil that client's pull either.
        """
        layer = upstream.add_image(SECRET, "1", layers=[size]).layers[0]
        claim(rival, layer)
        held = rival.fault(layer, stall_at(size // 2))
        hostile = asyncio.create_task(_taken(mirror, layer))
        await held.reached.wait()

        honest = await asyncio.wait_for(mirror.blob(SECRET, layer.digest), 10)
        held.release()

        assert (honest.status, honest.body) == (200, layer.content)
        taken = await asyncio.wait_for(hostile, 15)
        assert not _leaked(layer, taken)
        await mirror.quiet(15)
        assert not _leaked(layer, await _taken(mirror, layer))

    async def test_headers_and_silence_give_nothing(
        self, mirror: RunningMirror, upstream: FakeRegistry, rival: FakeRegistry
    ) -> None:
        """A rival that sends headers and then nothing is not helped out with the upstream's bytes."""
        layer = upstream.add_image(SECRET, "1", layers=[4 << 20]).layers[0]
        claim(rival, layer)
        held = rival.fault(layer, stall_at(0))
        hostile = asyncio.create_task(_taken(mirror, layer))
        await held.reached.wait()
        assert (await asyncio.wait_for(mirror.blob(SECRET, layer.digest), 10)).body == layer.content
        rival.fault(layer, status(503))
        held.release()
        rival.drop_connections()

        taken = await asyncio.wait_for(hostile, 15)

        assert not _leaked(layer, taken)

    async def test_both_upstreams_may_be_right(
        self, mirror: RunningMirror, upstream: FakeRegistry, rival: FakeRegistry
    ) -> None:
        """Clients of two upstreams that both have the blob all get it, and both upstreams have shown it then."""
        layer = upstream.add_image(SECRET, "1", layers=[1 << 20]).layers[0]
        rival.put_blob("copy/app", layer)

        replies = await asyncio.gather(*(mirror.blob(name, layer.digest) for name in (SECRET, COPY) for _ in range(5)))

        assert all(reply.body == layer.content for reply in replies)
        await mirror.quiet()
        assert [(await mirror.blob(name, layer.digest)).cache for name in (SECRET, COPY)] == ["hit", "hit"]


async def _taken(mirror: RunningMirror, layer: Blob) -> bytes:
    """What a client of the rival gets of a blob, cut short or not."""
    taken = b""
    async with mirror.session.get(f"{mirror.url}/v2/{COPY}/blobs/{layer.digest}") as response:
        if response.status != 200:
            return b""
        try:
            async for chunk in response.content.iter_any():
                taken += chunk
        except aiohttp.ClientPayloadError:
            pass  # a body that is cut short is one of the right outcomes
    return taken


def _leaked(layer: Blob, taken: bytes) -> bool:
    return taken != b"" and layer.content.startswith(taken)


class TestManifests:
    async def test_a_claim_gives_nothing(
        self, mirror: RunningMirror, upstream: FakeRegistry, rival: FakeRegistry
    ) -> None:
        """A manifest is given through the rival only if the rival sends it, whole."""
        image = upstream.add_image(SECRET, "1")
        await hold(mirror, image)
        claim(rival, image.manifest)

        reply = await mirror.manifest(COPY, image.digest)

        assert reply.status == 502
        assert image.manifest.content not in reply.body

    async def test_a_rival_that_has_it_shows_it(
        self, mirror: RunningMirror, upstream: FakeRegistry, rival: FakeRegistry
    ) -> None:
        """The same manifest in both upstreams is asked for once in each."""
        image = upstream.add_image(SECRET, "1")
        await hold(mirror, image)
        rival.put_manifest("copy/app", image.manifest)

        assert (await mirror.manifest(COPY, image.digest)).body == image.manifest.content
        assert (await mirror.manifest(COPY, image.digest)).cache == "hit"
        assert rival.requests_for(image.manifest) == 1

    async def test_a_tag_that_claims_a_foreign_digest_gives_nothing(
        self, mirror: RunningMirror, upstream: FakeRegistry, rival: FakeRegistry, clock: Clock
    ) -> None:
        """HEADs by tag and by digest before anybody held the manifest, then a revalidation: still nothing."""
        image = upstream.add_image(SECRET, "1")
        claim(rival, image.manifest)
        assert (await mirror.manifest(COPY, "1", method="HEAD")).status == 200
        assert (await mirror.manifest(COPY, image.digest, method="HEAD")).status == 200
        await hold(mirror, image)

        fresh = await mirror.manifest(COPY, "1")
        clock.forward(301)
        expired = await mirror.manifest(COPY, "1")

        for reply in (fresh, expired):
            assert reply.status != 200 or reply.body != image.manifest.content

    async def test_silence_after_a_claim_gives_nothing(
        self, mirror: RunningMirror, upstream: FakeRegistry, rival: FakeRegistry, clock: Clock
    ) -> None:
        """A claimed tag whose upstream then goes silent is not answered with the foreign manifest as stale."""
        image = upstream.add_image(SECRET, "1")
        claim(rival, image.manifest)
        assert (await mirror.manifest(COPY, "1", method="HEAD")).status == 200
        assert (await mirror.manifest(COPY, image.digest, method="HEAD")).status == 200
        await hold(mirror, image)
        clock.forward(301)
        rival.fault(ANY, status(503))

        assert (await mirror.manifest(COPY, "1")).status == 503

    async def test_a_foreign_digest_header_gives_nothing(
        self, mirror: RunningMirror, upstream: FakeRegistry, rival: FakeRegistry
    ) -> None:
        """What a tag means is told by the bytes that come with it, not by a header that names a foreign digest."""
        image = upstream.add_image(SECRET, "1")
        await hold(mirror, image)
        claim(rival, image.manifest)
        own = rival.add_image("copy/app", labels={"mine": "yes"})
        rival.fault("copy/app:1", instead(own.manifest))

        assert (await mirror.manifest(COPY, "1")).body == own.manifest.content

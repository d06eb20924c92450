"""Private stays private: a digest is given only through a repository in which its upstream itself has shown it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from pydantic import SecretStr

from mirror.config import UpstreamSettings
from mirror.oci.manifest import OCI_INDEX
from tests.clock import Clock
from tests.conftest import StartMirror
from tests.harness import RunningMirror, short_timeouts
from tests.upstream import (
    Bearer,
    FakeRegistry,
    Fault,
    Image,
    html,
    no_digest,
    no_length,
    redirect,
    reset,
    stall,
    stall_at,
    status,
    wrong_206,
    wrong_digest,
    wrong_length,
)
from tests.upstream.fixtures import StartUpstream

SECRET, FORGED = "secret/app", "open/forged"
REQUESTS: list[tuple[str, dict[str, str]]] = [
    ("GET", {}),
    ("HEAD", {}),
    ("GET", {"Range": "bytes=0-9"}),
    ("GET", {"If_None_Match": "*"}),
]
PATIENT = short_timeouts(first_byte=5, cold_head=5, stale_after=2)
QUICK = short_timeouts(first_byte=0.3, cold_head=0.3)


@pytest.fixture
def clock() -> Clock:
    """The mirror's wall clock."""
    return Clock()


@pytest.fixture
async def mirror(start_mirror: StartMirror, clock: Clock) -> RunningMirror:
    """A mirror in front of `upstream` as docker.io."""
    return await start_mirror(clock=clock, timeouts=PATIENT)


@pytest.fixture
def secret(upstream: FakeRegistry) -> Image:
    """An image in a repository that is not everybody's."""
    return upstream.add_image(SECRET, "1", layers=[100_000])


async def hold(mirror: RunningMirror, image: Image, name: str = SECRET) -> None:
    """Pulls an image whole, so that the mirror holds all of it."""
    for path in (f"manifests/{image.digest}", *(f"blobs/{blob.digest}" for blob in image.blobs)):
        assert (await mirror.get(f"/v2/{name}/{path}")).status == 200
    await mirror.quiet()


def everything(image: Image) -> list[str]:
    """The paths, below a repository, of all that an image is made of."""
    return [f"manifests/{image.digest}", *(f"blobs/{blob.digest}" for blob in image.blobs)]


def forgeries(image: Image) -> dict[str, dict[str, Any]]:
    """Manifests that name the image's parts in every way there is."""
    layer, config, manifest = image.layers[0].descriptor, image.config.descriptor, image.manifest.descriptor
    base: dict[str, Any] = {"schemaVersion": 2}
    return {
        "layer": {**base, "config": config, "layers": [layer, config]},
        "config": {**base, "config": layer, "layers": []},
        "blobs": {**base, "blobs": [layer, config]},
        "child": {**base, "mediaType": OCI_INDEX, "manifests": [manifest, layer, config]},
        "subject": {**base, "config": config, "layers": [], "subject": manifest},
        "layer-manifest": {**base, "config": config, "layers": [manifest]},
    }


class TestForgedManifests:
    @pytest.mark.parametrize("where", ["same upstream", "another upstream"])
    async def test_a_forged_manifest_opens_nothing(
        self,
        start_mirror: StartMirror,
        start_upstream: StartUpstream,
        upstream: FakeRegistry,
        secret: Image,
        where: str,
    ) -> None:
        """Whoever can push can name a private digest as layer, config, child or subject: the upstream is asked, and
        says no, by tag and by digest, to GET, HEAD and ranges.
        """
        rival = await start_upstream()
        mirror = await start_mirror(upstreams={"docker.io": upstream, "rival.test": rival}, timeouts=PATIENT)
        await hold(mirror, secret)
        registry, name = (upstream, FORGED) if where == "same upstream" else (rival, f"rival.test/{FORGED}")
        for tag, body in forgeries(secret).items():
            forged = registry.put_manifest(FORGED, body, tag)
            assert (await mirror.manifest(name, tag)).body == forged.content
            assert (await mirror.manifest(name, forged.digest)).status == 200

        for path in everything(secret):
            for method, headers in REQUESTS:
                reply = await mirror.get(f"/v2/{name}/{path}", method=method, **headers)
                assert reply.status == 404, (path, method, headers)

    async def test_a_forged_manifest_opens_nothing_in_flight(
        self, mirror: RunningMirror, upstream: FakeRegistry, secret: Image
    ) -> None:
        """Nor while the private blob is on its way to somebody who may have it."""
        upstream.put_manifest(FORGED, forgeries(secret)["layer"], "1")
        assert (await mirror.manifest(FORGED, "1")).status == 200
        held = upstream.fault(secret.layers[0], stall_at(50_000))
        owner = asyncio.create_task(mirror.blob(SECRET, secret.layers[0].digest))
        await held.reached.wait()

        for method, headers in REQUESTS:
            assert (await mirror.blob(FORGED, secret.layers[0].digest, method=method, **headers)).status == 404
        held.release()
        assert (await owner).body == secret.layers[0].content

    async def test_nobody_else_learns_a_length(
        self, mirror: RunningMirror, upstream: FakeRegistry, secret: Image
    ) -> None:
        """A range past the end tells nothing to whom the upstream would not have told it."""
        await hold(mirror, secret)
        upstream.repository(FORGED)

        reply = await mirror.blob(FORGED, secret.layers[0].digest, Range="bytes=999999999-")

        assert reply.status == 404
        assert "Content-Range" not in reply.headers

    async def test_a_private_repository_is_asked_for_with_its_own_token(
        self, start_mirror: StartMirror, upstream: FakeRegistry, secret: Image
    ) -> None:
        """Where the mirror's credential may read the one and not the other, so may its clients."""
        upstream.auth = Bearer({"ci": "pw"})
        upstream.make_private(SECRET, ["ci"])
        upstream.make_private("other/app", ["somebody"])
        upstream.put_blob("other/app", secret.layers[0])
        settings = UpstreamSettings(url=upstream.url, username="ci", password=SecretStr("pw"))
        mirror = await start_mirror(upstreams={"docker.io": settings}, timeouts=PATIENT)
        await hold(mirror, secret)

        assert (await mirror.blob("other/app", secret.layers[0].digest)).status == 403


class TestSecondRepository:
    async def test_it_costs_one_head_once(self, mirror: RunningMirror, upstream: FakeRegistry, secret: Image) -> None:
        """Another repository of the same upstream that has the blob, too: asked once, and not one byte is sent."""
        await hold(mirror, secret)
        layer = secret.layers[0]
        upstream.put_blob("team/copy", layer)
        upstream.reset()

        first, second = [await mirror.blob("team/copy", layer.digest) for _ in range(2)]

        assert (first.cache, second.cache) == ("revalidated", "hit")
        assert first.body == second.body == layer.content
        assert [seen.method for seen in upstream.content_requests()] == ["HEAD"]
        await mirror.restart()
        assert (await mirror.blob("team/copy", layer.digest)).cache == "hit"
        assert len(upstream.content_requests()) == 1

    async def test_manifests_cost_one_head_once(
        self, mirror: RunningMirror, upstream: FakeRegistry, secret: Image
    ) -> None:
        """By digest, and by a tag of that repository: a GET would cost quota."""
        await hold(mirror, secret)
        upstream.put_manifest("team/copy", secret.manifest)
        upstream.reset()

        first, second = [await mirror.manifest("team/copy", secret.digest) for _ in range(2)]

        assert (first.cache, second.cache) == ("revalidated", "hit")
        assert first.body == second.body == secret.manifest.content
        assert [seen.method for seen in upstream.content_requests()] == ["HEAD"]

    async def test_a_herd_costs_one_head(self, mirror: RunningMirror, upstream: FakeRegistry, secret: Image) -> None:
        """All of them wait for the one permission."""
        await hold(mirror, secret)
        layer = secret.layers[0]
        upstream.put_blob("team/copy", layer)
        upstream.reset()

        replies = await mirror.together(20, f"/v2/team/copy/blobs/{layer.digest}")

        assert all(reply.body == layer.content for reply in replies)
        assert [seen.method for seen in upstream.content_requests()] == ["HEAD"]

    async def test_it_is_asked_while_the_blob_is_in_flight(
        self, mirror: RunningMirror, upstream: FakeRegistry, secret: Image
    ) -> None:
        """Who joins through another repository needs its own permission, and then shares the bytes."""
        layer = secret.layers[0]
        upstream.put_blob("team/copy", layer)
        held = upstream.fault(layer, stall_at(50_000), times=1)
        owner = asyncio.create_task(mirror.blob(SECRET, layer.digest))
        await held.reached.wait()
        joiner = asyncio.create_task(mirror.blob("team/copy", layer.digest))
        await upstream.until(lambda: upstream.count(layer, method="HEAD") == 1)
        held.release()

        assert (await joiner).body == (await owner).body == layer.content
        assert (await joiner).cache == "joined"
        assert upstream.bytes_for(layer) == layer.size

    async def test_a_head_that_is_no_answer_is_followed_by_the_first_byte(
        self, mirror: RunningMirror, upstream: FakeRegistry, secret: Image
    ) -> None:
        """Redirected, refused as a method, without length or of another digest: GET of one byte, whose Content-Range
        names the length that we hold.
        """
        await hold(mirror, secret)
        layer = secret.layers[0]
        faults = (redirect(), status(405), status(501), no_length(), wrong_digest())
        for name, fault in ((f"team/copy{number}", fault) for number, fault in enumerate(faults)):
            upstream.put_blob(name, layer)
            upstream.fault(name, fault, method="HEAD")
            upstream.fault(name, redirect(), method="GET")
            upstream.reset()

            reply = await mirror.blob(name, layer.digest)

            assert (reply.cache, reply.body) == ("revalidated", layer.content)
            asked = [(seen.method, seen.headers.get("Range")) for seen in upstream.select(layer, origin="registry")]
            assert asked == [("HEAD", None), ("GET", "bytes=0-0")]
            assert upstream.bytes_for(layer) == 1

    async def test_a_missing_digest_header_is_no_objection(
        self, mirror: RunningMirror, upstream: FakeRegistry, secret: Image
    ) -> None:
        """Registries need not send it for blobs."""
        await hold(mirror, secret)
        upstream.put_blob("team/copy", secret.layers[0])
        upstream.fault("team/copy", no_digest())

        assert (await mirror.blob("team/copy", secret.layers[0].digest)).cache == "revalidated"

    @pytest.mark.parametrize(
        ("head", "get"),
        [
            (wrong_length(), None),
            (redirect(), wrong_206("total")),
            (redirect(), wrong_206("star")),
        ],
        ids=["head", "total", "star"],
    )
    async def test_another_length_is_no_permission(
        self, mirror: RunningMirror, upstream: FakeRegistry, secret: Image, head: Fault, get: Fault | None
    ) -> None:
        """A yes of another length, or of none, lets nobody have our bytes: the blob is fetched from there, which
        proves it; one that is not there is not given.
        """
        await hold(mirror, secret)
        layer = secret.layers[0]
        upstream.put_blob("team/copy", layer)
        upstream.fault("team/copy", head, method="HEAD")
        if get is not None:
            upstream.fault("team/copy", get)
        upstream.reset()

        reply = await mirror.blob("team/copy", layer.digest)

        assert (reply.status, reply.cache) == (200, "miss")
        assert upstream.bytes_for(layer) >= layer.size

    async def test_a_redirect_alone_is_no_permission(
        self, mirror: RunningMirror, upstream: FakeRegistry, secret: Image
    ) -> None:
        """A registry that redirects whatever it is asked for has not shown anything: the target must answer."""
        await hold(mirror, secret)
        layer = secret.layers[0]
        upstream.put_blob("team/copy", layer)
        upstream.fault("team/copy", redirect(lifetime=-1))

        reply = await mirror.blob("team/copy", layer.digest)

        assert (reply.status, reply.code) == (503, "UNAVAILABLE")

    @pytest.mark.parametrize(
        "fault", [reset(), stall(), status(500), status(429), status(418), html()], ids=lambda fault: fault.name
    )
    async def test_no_answer_is_neither_yes_nor_no(
        self, start_mirror: StartMirror, upstream: FakeRegistry, secret: Image, fault: Fault
    ) -> None:
        """Without an answer nothing is given and nothing is denied; the next answer counts."""
        mirror = await start_mirror(timeouts=QUICK)
        for path in everything(secret):
            async with asyncio.timeout(5):
                while (await mirror.get(f"/v2/{SECRET}/{path}")).status != 200:
                    pass
        await mirror.quiet()
        upstream.put_blob("team/copy", secret.layers[0])
        upstream.put_manifest("team/copy", secret.manifest)
        upstream.fault("team/copy", fault)

        for path in everything(secret)[::2]:
            assert (await mirror.get(f"/v2/team/copy/{path}")).status in (429, 502, 503, 504)
        upstream.clear_faults()
        await mirror.restart()
        for path in everything(secret)[::2]:
            async with asyncio.timeout(5):
                while (reply := await mirror.get(f"/v2/team/copy/{path}")).status != 200:
                    pass
            assert reply.cache in ("revalidated", "hit")

    async def test_a_blob_is_no_manifest_and_a_manifest_no_blob(
        self, mirror: RunningMirror, upstream: FakeRegistry, secret: Image
    ) -> None:
        """What the upstream shows under one kind of path is not thereby shown under the other."""
        await hold(mirror, secret)

        for method in ("GET", "HEAD"):
            assert (await mirror.blob(SECRET, secret.digest, method=method)).status == 404
            assert (await mirror.manifest(SECRET, secret.config.digest, method=method)).status == 404
        reply = await mirror.manifest(SECRET, secret.digest)
        assert (reply.status, reply.headers["Content-Type"]) == (200, secret.manifest.media_type)

    async def test_a_manifest_that_is_shown_as_a_blob_keeps_its_media_type(
        self, mirror: RunningMirror, upstream: FakeRegistry, secret: Image
    ) -> None:
        """Some registries give manifests as blobs, too."""
        upstream.put_blob(SECRET, secret.manifest.content)
        await hold(mirror, secret)

        as_blob = await mirror.blob(SECRET, secret.digest)
        as_manifest = await mirror.manifest(SECRET, secret.digest)

        assert as_blob.body == as_manifest.body == secret.manifest.content
        assert as_manifest.headers["Content-Type"] == secret.manifest.media_type


class TestPublic:
    async def test_there_is_no_exception_for_public_content(
        self, mirror: RunningMirror, upstream: FakeRegistry
    ) -> None:
        """What everybody can have from one repository is still asked for in another."""
        image = upstream.add_image("library/demo", "1")
        await hold(mirror, image, "demo")
        upstream.repository("library/other")
        upstream.reset()

        for path in everything(image):
            assert (await mirror.get(f"/v2/other/{path}")).status == 404
        assert len(upstream.content_requests()) == len(everything(image))

    async def test_errors_tell_nothing_of_what_we_hold(
        self, mirror: RunningMirror, upstream: FakeRegistry, secret: Image
    ) -> None:
        """The answer for a held digest is that for one that nobody has."""
        await hold(mirror, secret)
        upstream.repository(FORGED)
        layer = secret.layers[0].digest
        unheard = str(layer)[:-4] + ("0000" if not str(layer).endswith("0000") else "1111")

        held, absent = await mirror.blob(FORGED, layer), await mirror.blob(FORGED, unheard)

        assert held.status == absent.status == 404
        assert json.loads(held.body.replace(str(layer).encode(), b"-")) == json.loads(
            absent.body.replace(unheard.encode(), b"-")
        )

"""Referrers: by the upstream's API or by the tag that stands for it; never an empty index for want of an answer."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from pydantic import SecretStr

from mirror.config import UpstreamSettings
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_INDEX
from tests.clock import Clock
from tests.conftest import StartMirror
from tests.harness import Reply, RunningMirror, short_timeouts
from tests.upstream import (
    ANY,
    Basic,
    FakeRegistry,
    Fault,
    Image,
    Manifest,
    html,
    redirect_to,
    reset,
    stall,
    status,
)
from tests.upstream.fixtures import StartUpstream

REPOSITORY = "library/demo"
LIST_TTL = 30.0
EMPTY = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
SIGNATURE, SBOM = "application/vnd.test.signature", "application/vnd.test.sbom"


@pytest.fixture
def clock() -> Clock:
    """The mirror's wall clock."""
    return Clock()


@pytest.fixture
async def mirror(start_mirror: StartMirror, clock: Clock) -> RunningMirror:
    """A mirror in front of `upstream` as docker.io."""
    return await start_mirror(clock=clock)


@pytest.fixture
def image(upstream: FakeRegistry) -> Image:
    """What things are attached to."""
    return upstream.add_image(REPOSITORY, "1")


def path_of(subject: Image | Digest, query: str = "", name: str = "demo") -> str:
    """Where the referrers of an image are asked for."""
    return f"/v2/{name}/referrers/{subject.digest if isinstance(subject, Image) else subject}{query}"


def attach(upstream: FakeRegistry, image: Image, kind: str, repository: str = REPOSITORY, padding: int = 0) -> Manifest:
    """Pushes an artifact that is about the image."""
    return upstream.put_manifest(
        repository,
        {
            "schemaVersion": 2,
            "artifactType": kind,
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": str(Digest.of(b"{}")), "size": 2},
            "layers": [],
            "annotations": {
                "org.test.number": str(len(upstream.repository(repository).manifests)),
                "pad": "x" * padding,
            },
            "subject": image.manifest.descriptor,
        },
    )


def tag_index(upstream: FakeRegistry, image: Image, *referrers: Manifest, repository: str = REPOSITORY) -> None:
    """Points the fallback tag at an index of these, as clients do where there is no API."""
    tag = f"sha256-{image.digest.hex}"
    upstream.put_manifest(
        repository, {**EMPTY, "manifests": [described(one) for one in referrers]}, tag, media_type=OCI_INDEX
    )


def described(manifest: Manifest) -> dict[str, Any]:
    """The descriptor that a registry gives of an artifact."""
    stated = json.loads(manifest.content)
    return {**manifest.descriptor, "artifactType": stated["artifactType"], "annotations": stated["annotations"]}


def listed(reply: Reply) -> list[dict[str, Any]]:
    """The descriptors of an answer, which is an index in every respect."""
    assert (reply.status, reply.headers["Content-Type"]) == (200, OCI_INDEX), reply.body
    index = json.loads(reply.body)
    assert {**index, "manifests": []} == EMPTY
    descriptors: list[dict[str, Any]] = index["manifests"]
    return descriptors


@pytest.fixture(params=["api", "tag"])
def attached(request: pytest.FixtureRequest, upstream: FakeRegistry, image: Image) -> list[Manifest]:
    """What is attached to the image, at an upstream with the API and at one without."""
    upstream.referrers = request.param == "api"
    things = [attach(upstream, image, kind) for kind in (SIGNATURE, SBOM, SIGNATURE)]
    if not upstream.referrers:
        tag_index(upstream, image, *things)
    return things


class TestAnswers:
    async def test_what_is_attached_is_listed(
        self, mirror: RunningMirror, image: Image, attached: list[Manifest]
    ) -> None:
        """Descriptors as the upstream has them, annotations and artifactType included; none is said to be left out."""
        reply = await mirror.get(path_of(image))

        assert listed(reply) == [described(one) for one in attached]
        assert (reply.cache, reply.headers["Content-Length"]) == ("miss", str(len(reply.body)))
        assert "OCI-Filters-Applied" not in reply.headers
        assert (await mirror.get(path_of(image))).cache == "hit"

    async def test_a_filter_is_ours(self, mirror: RunningMirror, image: Image, attached: list[Manifest]) -> None:
        """One list serves every filter, and the answer says that it was filtered, also where nothing is left."""
        for kind, expected in ((SIGNATURE, [0, 2]), (SBOM, [1]), ("application/none", [])):
            reply = await mirror.get(path_of(image, f"?artifactType={kind.replace('+', '%2B')}"))
            assert listed(reply) == [described(attached[at]) for at in expected]
            assert reply.headers["OCI-Filters-Applied"] == "artifactType"

    async def test_no_upstream_is_asked_to_filter(
        self, mirror: RunningMirror, upstream: FakeRegistry, image: Image, attached: list[Manifest]
    ) -> None:
        """What it would leave out could not be given to the next client."""
        await mirror.get(path_of(image, f"?artifactType={SBOM}"))

        assert upstream.count() > 0
        assert not [seen for seen in upstream.requests if "artifactType" in seen.target]
        assert len(listed(await mirror.get(path_of(image)))) == len(attached)

    async def test_head_has_the_headers_of_get(
        self, mirror: RunningMirror, image: Image, attached: list[Manifest]
    ) -> None:
        """The same, without the body."""
        for query in ("", f"?artifactType={SBOM}"):
            await mirror.get(path_of(image))
            head, get = [await mirror.get(path_of(image, query), method=method) for method in ("HEAD", "GET")]
            for name in ("Content-Type", "Content-Length", "OCI-Filters-Applied", "X-Cache"):
                assert head.headers.get(name) == get.headers.get(name)
            assert (head.status, head.body) == (200, b"")

    @pytest.mark.parametrize("api", [True, False])
    async def test_nothing_attached_is_an_empty_index(
        self, mirror: RunningMirror, upstream: FakeRegistry, image: Image, api: bool
    ) -> None:
        """Whether the upstream knows the digest or not; it is asked once for as long as a 404 is remembered."""
        upstream.referrers = api
        for subject in (image, Digest.of(b"nobody has this"), Digest.of(b"nor this", "sha512")):
            for _ in range(3):
                assert listed(await mirror.get(path_of(subject))) == []
        # Without an API: once the API, then the tag for each.
        assert len(upstream.content_requests()) == (3 if api else 1 + 3)

    @pytest.mark.parametrize("digest", ["sha256:x", "sha256:" + "A" * 64, "md5:0123", "latest"])
    async def test_what_is_no_digest_is_a_400(self, mirror: RunningMirror, upstream: FakeRegistry, digest: str) -> None:
        """Without asking anybody."""
        reply = await mirror.get(f"/v2/demo/referrers/{digest}")
        assert (reply.status, reply.code) == (400, "DIGEST_INVALID")
        assert upstream.count() == 0

    @pytest.mark.parametrize("what", ["image", "docker-list"])
    async def test_a_fallback_that_is_no_index_is_nothing(
        self, mirror: RunningMirror, upstream: FakeRegistry, image: Image, what: str
    ) -> None:
        """Somebody may have tagged an image so, or what looks like an index and is Docker's."""
        other = upstream.add_image(REPOSITORY) if what == "image" else upstream.add_index(REPOSITORY, docker=True)
        upstream.tag(REPOSITORY, f"sha256-{image.digest.hex}", other)
        assert listed(await mirror.get(path_of(image))) == []


class TestPages:
    @pytest.fixture
    async def mirror(self, start_mirror: StartMirror) -> RunningMirror:
        """A mirror that gathers all it may, however busy the machine is."""
        return await start_mirror(timeouts=short_timeouts(first_byte=30, try_=15))

    @pytest.mark.parametrize("style", ["relative", "absolute", "elsewhere", "misplaced"])
    async def test_upstreams_pages_are_gathered(
        self, mirror: RunningMirror, upstream: FakeRegistry, image: Image, style: str
    ) -> None:
        """All of them, and from nowhere else."""
        upstream.referrers, upstream.page_size, upstream.link_style = True, 2, style
        things = [attach(upstream, image, SBOM) for _ in range(5)]

        reply = await mirror.get(path_of(image))

        assert listed(reply) == [described(one) for one in things]
        assert "Link" not in reply.headers
        assert upstream.count(kind="referrers") == 3
        assert upstream.count(origin="cdn") == upstream.count(kind="other") == 0

    async def test_what_no_client_could_read_comes_in_pages(
        self, mirror: RunningMirror, upstream: FakeRegistry, image: Image
    ) -> None:
        """An index has at most 4 MiB; its Link leads on, with the filter and the way by which the client came."""
        upstream.referrers, upstream.page_size = True, 3
        things = [attach(upstream, image, SBOM, padding=900_000) for _ in range(6)]
        attach(upstream, image, SIGNATURE)

        path, found = path_of(image, f"?artifactType={SBOM}&ns=docker.io", name=REPOSITORY), []
        for _ in range(2):
            reply = await mirror.get(path)
            assert len(reply.body) <= 4 << 20
            assert reply.headers["OCI-Filters-Applied"] == "artifactType"
            found += listed(reply)
            path = reply.headers.get("Link", "<>").partition(">")[0][1:]
            assert not path or path.startswith(path_of(image, "?artifactType=", name=REPOSITORY))
            assert not path or "ns=docker.io" in path
        assert (path, found) == ("", [described(one) for one in things])

    async def test_more_than_can_be_gathered_is_passed_on(
        self, mirror: RunningMirror, upstream: FakeRegistry, image: Image
    ) -> None:
        """Beyond a hundred pages the rest is given page by page; a filter looks through them for what it wants."""
        upstream.referrers, upstream.page_size = True, 1
        things = [attach(upstream, image, SIGNATURE) for _ in range(102)]
        sbom = attach(upstream, image, SBOM)

        found, path = [], path_of(image)
        while path:
            reply = await mirror.get(path)
            found += listed(reply)
            path = reply.headers.get("Link", "<>").partition(">")[0][1:]
        assert found == [described(one) for one in (*things, sbom)]
        assert listed(await mirror.get(path_of(image, f"?artifactType={SBOM}"))) == [described(sbom)]


class TestWithoutApi:
    @pytest.mark.parametrize(
        "no",
        [
            status(404, "404 page not found\n", content_type="text/plain"),
            status(400, error="UNSUPPORTED"),
            status(404, error="UNSUPPORTED"),
            status(404, error="MANIFEST_UNKNOWN"),
            status(405),
            status(406),
            status(501),
            html(),
            html(404),
            status(200, b'{"manifests":[]}'),
            redirect_to("https://registry.test/login?return_to=x", 303),
        ],
        ids=lambda fault: fault.name,
    )
    async def test_the_tag_stands_in(
        self, mirror: RunningMirror, upstream: FakeRegistry, image: Image, no: Fault
    ) -> None:
        """Every way in which registries say that they have no such API, pages for people included."""
        signature = attach(upstream, image, SIGNATURE)
        tag_index(upstream, image, signature)
        upstream.fault("/v2/*/referrers/*", no)

        assert listed(await mirror.get(path_of(image))) == [described(signature)]

    async def test_it_is_remembered_that_there_is_none(
        self, mirror: RunningMirror, upstream: FakeRegistry, image: Image
    ) -> None:
        """For other digests of the repository the tag is asked for at once."""
        await mirror.get(path_of(image))
        for number in range(3):
            await mirror.get(path_of(Digest.of(b"%d" % number)))
        assert upstream.count(kind="referrers") == 1

    async def test_what_is_said_of_one_repository_is_not_remembered_of_others(
        self, mirror: RunningMirror, upstream: FakeRegistry, image: Image
    ) -> None:
        """Nobody can hide signatures by asking for those of a repository that is not there, and gets a bare 404."""
        upstream.referrers = True
        signature = attach(upstream, image, SIGNATURE)
        upstream.fault("/v2/library/absent/*", status(404, "not found\n", content_type="text/plain"))

        assert listed(await mirror.get(path_of(image.digest, name="absent"))) == []
        assert listed(await mirror.get(path_of(image))) == [described(signature)]

    async def test_what_is_said_of_one_digest_is_not_remembered_of_the_upstream(
        self, mirror: RunningMirror, upstream: FakeRegistry, image: Image
    ) -> None:
        """Nobody can hide what is attached to one thing by asking for another one that the API does not like."""
        upstream.referrers = True
        signature = attach(upstream, image, SIGNATURE)
        for number, fault in enumerate([status(400, error="DIGEST_INVALID"), status(404, error="MANIFEST_UNKNOWN")]):
            other = Digest.of(b"%d" % number)
            upstream.fault(f"/v2/*/referrers/{other}", fault)
            assert listed(await mirror.get(path_of(other))) == []
        assert listed(await mirror.get(path_of(image))) == [described(signature)]

    async def test_a_new_signature_is_seen_soon(
        self, mirror: RunningMirror, upstream: FakeRegistry, image: Image, clock: Clock
    ) -> None:
        """After 30 s, however long other tags are good for; counted from when the upstream was asked."""
        first = attach(upstream, image, SIGNATURE)
        tag_index(upstream, image, first)
        assert (await mirror.manifest("demo", f"sha256-{image.digest.hex}")).cache == "miss"
        second = attach(upstream, image, SBOM)
        tag_index(upstream, image, first, second)
        clock.forward(LIST_TTL - 5)
        assert listed(await mirror.get(path_of(image))) == [described(first)]

        clock.forward(6)

        assert listed(await mirror.get(path_of(image))) == [described(first), described(second)]

    async def test_a_tag_that_is_good_for_longer_lets_nobody_ask_each_time(
        self, start_mirror: StartMirror, upstream: FakeRegistry, image: Image, clock: Clock
    ) -> None:
        """The API is asked once in 30 s as ever, however old what is known of the tag, or of its absence, may get."""
        configured = UpstreamSettings(url=upstream.url, tag_ttls={"sha256-*": 3600}, negative_ttl=3600)
        mirror = await start_mirror(upstreams={"docker.io": configured}, clock=clock)
        upstream.fault("/v2/*/referrers/*", status(404, error="MANIFEST_UNKNOWN"))
        signature = attach(upstream, image, SIGNATURE)
        tag_index(upstream, image, signature)
        for subject, expected in ((image, [described(signature)]), (Digest.of(b"absent"), [])):
            upstream.reset()
            for _ in range(3):
                for _ in range(3):
                    assert listed(await mirror.get(path_of(subject))) == expected
                clock.forward(LIST_TTL + 1)
            assert (upstream.count(kind="referrers"), upstream.count(kind="manifest")) == (3, 1)

    async def test_what_the_tag_meant_before_is_stale_from_the_start(
        self, mirror: RunningMirror, upstream: FakeRegistry, image: Image, clock: Clock
    ) -> None:
        """A HEAD has told that the tag moved, and the new index does not come: as soon as it does, it counts."""
        first = attach(upstream, image, SIGNATURE)
        tag_index(upstream, image, first)
        await mirror.get(path_of(image))
        clock.forward(LIST_TTL + 1)
        second = attach(upstream, image, SBOM)
        tag_index(upstream, image, first, second)
        rule = upstream.fault(REPOSITORY, status(503), method="GET", kind="manifest")
        assert (await mirror.manifest("demo", f"sha256-{image.digest.hex}", method="HEAD")).status == 200

        reply = await mirror.get(path_of(image))
        assert (reply.cache, listed(reply)) == ("stale", [described(first)])
        rule.remove()
        assert listed(await mirror.get(path_of(image))) == [described(first), described(second)]

    async def test_the_first_signature_is_seen_soon(
        self, mirror: RunningMirror, upstream: FakeRegistry, image: Image, clock: Clock
    ) -> None:
        """Where there was none before, likewise."""
        assert (await mirror.manifest("demo", f"sha256-{image.digest.hex}")).code == "MANIFEST_UNKNOWN"
        signature = attach(upstream, image, SIGNATURE)
        tag_index(upstream, image, signature)
        clock.forward(LIST_TTL - 5)
        assert listed(await mirror.get(path_of(image))) == []

        clock.forward(6)

        assert listed(await mirror.get(path_of(image))) == [described(signature)]


class TestFreshness:
    async def test_a_hundred_clients_ask_once(
        self, mirror: RunningMirror, upstream: FakeRegistry, image: Image, attached: list[Manifest]
    ) -> None:
        """One question for all, filters or not."""
        paths = [path_of(image), path_of(image, f"?artifactType={SBOM}")]

        replies = await asyncio.gather(*(mirror.get(paths[number % 2]) for number in range(100)))

        assert {len(listed(reply)) for reply in replies} == {1, len(attached)}
        assert upstream.count(kind="referrers") == 1
        assert upstream.count(kind="manifest") == (0 if upstream.referrers else 1)

    @pytest.mark.parametrize(
        "fault", [stall(), reset(), status(503), status(429, retry_after=60)], ids=lambda f: f.name
    )
    async def test_stale_where_the_upstream_gives_no_answer(
        self,
        mirror: RunningMirror,
        upstream: FakeRegistry,
        image: Image,
        attached: list[Manifest],
        clock: Clock,
        fault: Fault,
    ) -> None:
        """What was attached when it last answered, marked and counted."""
        await mirror.get(path_of(image))
        clock.forward(3 * 86400)
        upstream.fault(ANY, fault)

        reply = await mirror.get(path_of(image))

        assert (reply.cache, len(listed(reply))) == ("stale", len(attached))
        assert mirror.metric("mirror_stale_served_total", upstream="docker.io") >= 1

    @pytest.mark.parametrize(
        "unclear",
        [
            status(400, error="UNSUPPORTED"),
            status(406, error="DENIED"),
            html(),
            status(200, b'{"manifests":[]}'),
            redirect_to("https://registry.test/login?return_to=x", 303),
        ],
        ids=lambda fault: fault.name,
    )
    async def test_what_the_api_has_listed_is_not_hidden_by_something_unclear(
        self, mirror: RunningMirror, upstream: FakeRegistry, image: Image, clock: Clock, unclear: Fault
    ) -> None:
        """Elsewhere it may mean that there is no API; of who had one, and no tag in its place, it is no answer."""
        upstream.referrers = True
        things = [attach(upstream, image, kind) for kind in (SIGNATURE, SBOM)]
        await mirror.get(path_of(image))
        rule = upstream.fault("/v2/*/referrers/*", unclear)
        for _ in range(2):
            clock.forward(LIST_TTL + 1)
            reply = await mirror.get(path_of(image))
            assert (reply.cache, listed(reply)) == ("stale", [described(one) for one in things])

        rule.remove()
        assert (await mirror.get(path_of(image))).cache != "stale"

    @pytest.mark.parametrize(
        "no", [status(404, error="MANIFEST_UNKNOWN"), html(404), status(405)], ids=lambda fault: fault.name
    )
    async def test_what_the_api_has_listed_ends_with_a_no(
        self, mirror: RunningMirror, upstream: FakeRegistry, image: Image, clock: Clock, no: Fault
    ) -> None:
        """Whether it is said of the digest or of the path: no is an answer."""
        upstream.referrers = True
        attach(upstream, image, SIGNATURE)
        await mirror.get(path_of(image))
        upstream.fault("/v2/*/referrers/*", no)
        clock.forward(LIST_TTL + 1)
        assert listed(await mirror.get(path_of(image))) == []

    async def test_what_the_tag_has_listed_ends_with_the_tag(
        self, mirror: RunningMirror, upstream: FakeRegistry, image: Image, clock: Clock
    ) -> None:
        """Also where the API says something unclear, as it always did, and somebody else heard of the tag's end."""
        upstream.fault("/v2/*/referrers/*", html())
        tag_index(upstream, image, attach(upstream, image, SIGNATURE))
        assert len(listed(await mirror.get(path_of(image)))) == 1
        tag = f"sha256-{image.digest.hex}"
        del upstream.repository(REPOSITORY).tags[tag]
        clock.forward(301)
        assert (await mirror.manifest("demo", tag)).status == 404
        assert listed(await mirror.get(path_of(image))) == []

    async def test_an_empty_one_is_stale_like_any(
        self, mirror: RunningMirror, upstream: FakeRegistry, image: Image, clock: Clock
    ) -> None:
        """Nothing was attached when the upstream last answered: pulls that look for attestations go on."""
        await mirror.get(path_of(image))
        clock.forward(86400)
        await upstream.stop()
        await mirror.restart()

        reply = await mirror.get(path_of(image))

        assert (reply.cache, listed(reply)) == ("stale", [])

    @pytest.mark.parametrize("api", [True, False])
    async def test_no_answer_is_never_an_empty_index(
        self, mirror: RunningMirror, upstream: FakeRegistry, image: Image, api: bool
    ) -> None:
        """Not known is not none: whoever verifies signatures must be able to tell."""
        upstream.referrers = api
        await mirror.get(path_of(Digest.of(b"another one")))
        for fault in (status(503), reset(), html(503), status(429, retry_after=60)):
            rule = upstream.fault(REPOSITORY, fault)
            reply = await mirror.get(path_of(image))
            assert reply.status in (429, 503), fault.name
            rule.remove()

    async def test_an_index_that_is_none_is_no_answer(
        self, mirror: RunningMirror, upstream: FakeRegistry, image: Image
    ) -> None:
        """Cut or garbled, under the media type of an index."""
        for text in (b"", b'{"manifests":', b"[]", b'{"schemaVersion":2}'):
            rule = upstream.fault(REPOSITORY, status(200, text, content_type=OCI_INDEX))
            assert (await mirror.get(path_of(image))).status == 503, text
            rule.remove()


class TestNo:
    @pytest.mark.parametrize(
        ("refusal", "code"),
        [(status(401), "DENIED"), (status(403), "DENIED"), (status(404, error="NAME_UNKNOWN"), "NAME_UNKNOWN")],
        ids=["401", "403", "404"],
    )
    async def test_a_refusal_is_one(
        self,
        mirror: RunningMirror,
        upstream: FakeRegistry,
        image: Image,
        attached: list[Manifest],
        clock: Clock,
        refusal: Fault,
        code: str,
    ) -> None:
        """Neither stale nor empty. What the repository has shown stays unless the tag, which is content, is refused."""
        await mirror.manifest("demo", image.digest)
        await mirror.get(path_of(image))
        clock.forward(LIST_TTL + 1)
        rule = upstream.fault(REPOSITORY, refusal)

        assert (await mirror.get(path_of(image))).code == code
        rule.remove()
        upstream.fault(ANY, status(503))
        assert (await mirror.get(path_of(image))).status in (404, 503)
        if upstream.referrers:
            assert (await mirror.manifest("demo", image.digest)).cache == "hit"

    @pytest.mark.parametrize("api", [True, False])
    async def test_a_repository_that_does_not_exist_is_a_404(
        self, mirror: RunningMirror, upstream: FakeRegistry, image: Image, api: bool
    ) -> None:
        """It is not one to which nothing is attached; asked about once for as long as a 404 is remembered."""
        if not api:
            upstream.fault("/v2/*/referrers/*", status(404, "404 page not found\n", content_type="text/plain"))
        for _ in range(3):
            reply = await mirror.get(path_of(image, name="nowhere"))
            assert (reply.status, reply.code) == (404, "NAME_UNKNOWN")
        assert len(upstream.content_requests()) == (1 if api else 2)

    async def test_an_index_stays_with_its_repository(
        self, start_upstream: StartUpstream, start_mirror: StartMirror
    ) -> None:
        """What is attached to an image in a private repository is not known in another that has the image, too."""
        private = await start_upstream(auth=Basic({"u": "p"}), referrers=True)
        image = private.add_image(REPOSITORY, "1")
        private.make_private(REPOSITORY)
        signature = attach(private, image, SIGNATURE)
        public = await start_upstream(referrers=True)
        public.put_manifest(REPOSITORY, image.manifest, "1")
        login = UpstreamSettings(url=private.url, username="u", password=SecretStr("p"))
        mirror = await start_mirror(upstreams={"docker.io": public, "private.test": login})

        private_path = path_of(image, name=f"private.test/{REPOSITORY}")
        assert listed(await mirror.get(private_path)) == [described(signature)]
        assert listed(await mirror.get(path_of(image))) == []

    async def test_an_index_permits_nothing(self, mirror: RunningMirror, upstream: FakeRegistry, image: Image) -> None:
        """Whoever can attach something can name any digest: what is named is asked for like anything else."""
        secret = upstream.add_image("team/secret", "1")
        await mirror.manifest("team/secret", "1")
        forged = {**EMPTY, "manifests": [secret.manifest.descriptor]}
        upstream.put_manifest(REPOSITORY, forged, f"sha256-{image.digest.hex}", media_type=OCI_INDEX)

        assert len(listed(await mirror.get(path_of(image)))) == 1
        assert (await mirror.manifest("demo", secret.digest)).code == "MANIFEST_UNKNOWN"


class TestAttachedTags:
    """Signatures and the like by the tags that cosign gives them."""

    @pytest.mark.parametrize("suffix", [".sig", ".att", ".sbom", ""])
    async def test_an_absent_one_is_a_quick_404(
        self, mirror: RunningMirror, upstream: FakeRegistry, image: Image, clock: Clock, suffix: str
    ) -> None:
        """With one question for as long as a 404 is remembered, however many ask; then with another one."""
        path = f"/v2/demo/manifests/sha256-{image.digest.hex}{suffix}"

        replies = await mirror.together(20, path)
        replies.append(await mirror.get(path, method="HEAD"))

        assert {reply.status for reply in replies} == {404}
        assert {reply.code for reply in replies[:-1]} == {"MANIFEST_UNKNOWN"}
        assert upstream.count(kind="manifest") == 1
        clock.forward(31)
        assert (await mirror.get(path)).code == "MANIFEST_UNKNOWN"
        assert upstream.count(kind="manifest") == 2

    async def test_one_is_good_for_thirty_seconds(
        self, start_mirror: StartMirror, upstream: FakeRegistry, image: Image, clock: Clock
    ) -> None:
        """Other tags are good for `tag_ttl`; a pattern of the operator counts for these, too."""
        for suffix in (".sig", ".att"):
            upstream.tag(REPOSITORY, f"sha256-{image.digest.hex}{suffix}", image)
        settings = UpstreamSettings(url=upstream.url, tag_ttls={"*.att": 300.0})
        mirror = await start_mirror(upstreams={"docker.io": settings}, clock=clock)
        tags = ["1", f"sha256-{image.digest.hex}.sig", f"sha256-{image.digest.hex}.att"]
        for tag in tags:
            await mirror.manifest("demo", tag)

        clock.forward(31)

        assert [(await mirror.manifest("demo", tag)).cache for tag in tags] == ["hit", "revalidated", "hit"]


async def test_it_is_counted(mirror: RunningMirror, upstream: FakeRegistry, image: Image) -> None:
    """Metrics have the kind `referrers`, for what clients ask and for what we ask; a fallback counts as a manifest."""
    for _ in range(2):
        await mirror.get(path_of(image))

    assert mirror.metric("mirror_requests_total", kind="referrers", result="miss") == 1
    assert mirror.metric("mirror_requests_total", kind="referrers", result="hit") == 1
    assert mirror.metric("mirror_upstream_requests_total", kind="referrers", status="404") == 1
    assert mirror.metric("mirror_upstream_requests_total", kind="manifest", status="404") == 1

"""Which upstream and repository a request means, seen from outside: `ns`, prefix, default; all else is refused."""

from __future__ import annotations

import pytest

from mirror.config import UpstreamSettings
from tests.asking import Names
from tests.conftest import StartMirror
from tests.harness import RunningMirror
from tests.upstream import FakeRegistry, Image
from tests.upstream.fixtures import StartUpstream

PATTERN = "*.pattern.test"


@pytest.fixture
async def corp(start_upstream: StartUpstream) -> FakeRegistry:
    """A second upstream, with a port in its name."""
    return await start_upstream()


@pytest.fixture
async def mirror(start_mirror: StartMirror, upstream: FakeRegistry, corp: FakeRegistry) -> RunningMirror:
    """A mirror in front of `upstream` as docker.io, the default, and `corp` as registry.corp:5000."""
    return await start_mirror(upstreams={"docker.io": upstream, "registry.corp:5000": corp})


@pytest.fixture
def image(upstream: FakeRegistry) -> Image:
    """On Docker Hub, an official one."""
    return upstream.add_image("library/demo", "1")


@pytest.fixture
def ours(corp: FakeRegistry) -> Image:
    """On the second upstream, under the same name."""
    return corp.add_image("demo", "1", labels={"whose": "ours"})


def ends(image: Image) -> list[str]:
    """Every kind of content."""
    return ["manifests/1", f"manifests/{image.digest}", f"blobs/{image.config.digest}"]


async def test_every_way_to_docker_hub_is_one(mirror: RunningMirror, upstream: FakeRegistry, image: Image) -> None:
    """Default, prefix and `ns`, by each of its names, with and without library/: one tag, one manifest, one blob."""
    ways = [
        "demo/{}",
        "library/demo/{}",
        *(f"{host}/{name}/{{}}" for host in ("docker.io", "index.docker.io", "registry-1.docker.io")
          for name in ("demo", "library/demo")),
        "demo/{}?ns=docker.io",
        "library/demo/{}?ns=index.docker.io",
        "demo/{}?ns=DOCKER.IO",
        "docker.io/library/demo/{}?ns=docker.io",
    ]  # fmt: skip
    for end in ends(image):
        for way in ways:
            reply = await mirror.get("/v2/" + way.format(end))
            assert reply.status == 200, (way, reply.body)
    await mirror.quiet()

    assert upstream.count(kind="manifest", method="GET") == 1
    assert upstream.count(image.config, method="GET") == 1
    assert {seen.repository for seen in upstream.content_requests()} == {"library/demo"}


async def test_another_upstream_is_meant_by_prefix_or_ns(
    mirror: RunningMirror, corp: FakeRegistry, upstream: FakeRegistry, image: Image, ours: Image
) -> None:
    """Its repositories are its own: no library/ is added, and the same name elsewhere is something else."""
    for way in ("registry.corp:5000/demo/{}", "demo/{}?ns=registry.corp:5000", "registry.corp:5000/demo/{}?ns=registry.corp:5000"):  # fmt: skip  # noqa: E501 - one line, one list
        reply = await mirror.get("/v2/" + way.format("manifests/1"))
        assert reply.body == ours.manifest.content
    assert (await mirror.get("/v2/demo/manifests/1")).body == image.manifest.content

    assert {seen.repository for seen in corp.content_requests()} == {"demo"}
    assert upstream.count(repository="demo") == 0


async def test_ns_goes_before_the_prefix(
    mirror: RunningMirror, corp: FakeRegistry, upstream: FakeRegistry, ours: Image
) -> None:
    """A prefix that names another upstream than `ns` is part of the repository's name."""
    odd = upstream.add_image("registry.corp/demo", "1", labels={"odd": "name"})

    reply = await mirror.get("/v2/registry.corp/demo/manifests/1?ns=docker.io")

    assert reply.body == odd.manifest.content
    assert corp.content_requests() == []


async def test_names_may_hold_what_looks_like_a_path(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """Names are greedy: the last `/manifests/` or `/blobs/` counts; escapes mean what they stand for."""
    image = upstream.add_image("team/manifests/blobs/app", "1")

    assert (await mirror.get("/v2/team/manifests/blobs/app/manifests/1")).body == image.manifest.content
    assert (await mirror.get("/v2/team%2Fmanifests%2Fblobs%2Fapp/manifests/1")).body == image.manifest.content
    escaped = str(image.config.digest).replace(":", "%3A")
    assert (await mirror.get(f"/v2/team/manifests/blobs/app/blobs/{escaped}")).body == image.config.content


async def test_another_default_may_be_configured(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """Then a name without a registry means that one, as it is."""
    image = upstream.add_image("demo", "1")
    mirror = await start_mirror(upstreams={"registry.corp:5000": upstream}, default_upstream="registry.corp:5000")

    assert (await mirror.get("/v2/demo/manifests/1")).body == image.manifest.content


async def test_hosts_of_a_pattern_are_upstreams_of_their_own(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """One entry, many registries: what one of them has shown is not given through another; metrics have one label."""
    names = Names({})  # neither host exists: what matters is whom the mirror takes them for
    mirror = await start_mirror(
        upstreams={"docker.io": upstream, PATTERN: UpstreamSettings()}, wiring={"resolver": names}
    )

    for way in ("/v2/a.pattern.test/demo/{}", "/v2/demo/{}?ns=b.pattern.test", "/c.pattern.test/v2/demo/{}"):
        reply = await mirror.get(way.format("manifests/1"))
        assert (reply.status, reply.code) == (503, "UNAVAILABLE")
    assert (await mirror.get("/v2/a.b.pattern.test/demo/manifests/1")).status == 403
    assert (await mirror.get("/v2/demo/manifests/1?ns=pattern.test")).status == 403
    assert (await mirror.get("/a.b.pattern.test/v2/demo/manifests/1")).status == 404

    assert set(names.asked) == {"a.pattern.test", "b.pattern.test", "c.pattern.test"}
    assert mirror.metric("mirror_requests_total", upstream=PATTERN) == 3
    assert mirror.metric("mirror_requests_total", upstream="a.pattern.test") == 0


REFUSED = [
    "/v2/evil.test/demo/{}",
    "/v2/demo/{}?ns=evil.test",
    "/v2/docker.io/library/demo/{}?ns=evil.test",
    "/v2/localhost:5000/demo/{}",
    "/v2/localhost/demo/{}",
    "/v2/demo/{}?ns=127.0.0.1:80",
    "/v2/demo/{}?ns=169.254.169.254",
    "/v2/demo/{}?ns=registry.corp",
    "/v2/demo/{}?ns=registry.corp:5001",
    "/v2/demo/{}?ns=[::1]:5000",
    "/v2/10.0.0.1/demo/{}",
]


async def test_what_is_neither_configured_nor_well_known_is_refused(
    mirror: RunningMirror, upstream: FakeRegistry, corp: FakeRegistry, image: Image
) -> None:
    """403 DENIED to GET and HEAD of everything: nobody can aim us at an internal host, not even at another port."""
    asked = [(path.format(end), method) for path in REFUSED for end in ends(image) for method in ("GET", "HEAD")]
    for path, method in asked:
        reply = await mirror.get(path, method=method)
        assert reply.status == 403, path
        assert "WWW-Authenticate" not in reply.headers
        assert method == "HEAD" or reply.code == "DENIED"

    assert upstream.requests == corp.requests == []
    refused = mirror.metric("mirror_requests_total", upstream="none", result="refused", status="403")
    assert refused == len(asked)


async def test_an_ns_that_is_no_host_is_a_bad_request(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """Not a matter of permission: 400, and nobody is asked."""
    for ns in ("", "http://docker.io", "docker.io/library", "user@docker.io", "do%20cker.io", "%0d%0a"):
        reply = await mirror.get(f"/v2/demo/manifests/1?ns={ns}")
        assert (reply.status, reply.code) == (400, "NAME_INVALID"), ns

    assert upstream.requests == []


async def test_a_name_outside_the_grammar_is_a_bad_request(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """It could never exist, so nobody is asked for it."""
    for name in ("Demo", "demo..x", "-demo", "demo/", "a" * 300, "dem%20o", "%2e%2e"):
        reply = await mirror.get(f"/v2/{name}/manifests/1")
        assert (reply.status, reply.code) in ((400, "NAME_INVALID"), (404, "UNSUPPORTED")), name

    assert upstream.requests == []


async def test_a_refused_request_leaves_no_label_behind(mirror: RunningMirror) -> None:
    """Whatever clients ask for, the metrics stay as many as the configuration has entries."""
    for number in range(20):
        assert (await mirror.get(f"/v2/host{number}.test/demo/manifests/1")).status == 403

    assert mirror.metric("mirror_requests_total", upstream="none") == 20


ANYTHING = [
    "/v2/",
    "/v2",
    "/v2/_catalog",
    "/v2/demo/nothing",
    "/v2/demo/manifests/1",
    "/v2/demo/tags/list",
    "/elsewhere",
]


async def test_an_ns_is_validated_on_every_path(mirror: RunningMirror, upstream: FakeRegistry, image: Image) -> None:
    """Whoever may not be asked is refused at the ping already, where clients choose the next mirror."""
    for path in ANYTHING:
        for method in ("GET", "HEAD"):
            refused = await mirror.get(f"{path}?ns=evil.test", method=method)
            assert refused.status == 403, path
            assert method == "HEAD" or refused.code == "DENIED"
            invalid = await mirror.get(f"{path}?ns=docker.io/x", method=method)
            assert invalid.status == 400, path
            assert method == "HEAD" or invalid.code == "NAME_INVALID"
            assert "OCI-Namespace" not in [*refused.headers, *invalid.headers]
    assert upstream.requests == []


async def test_an_ns_may_be_said_twice_but_not_differently(
    mirror: RunningMirror, image: Image, corp: FakeRegistry
) -> None:
    """Two that mean one registry are one; two that do not are a mistake, not a choice."""
    for twice in ("ns=docker.io&ns=docker.io", "ns=docker.io&ns=index.docker.io", "ns=docker.io&n=1&ns=DOCKER.io"):
        reply = await mirror.get(f"/v2/demo/manifests/1?{twice}")
        assert reply.body == image.manifest.content
        assert reply.headers.getall("OCI-Namespace") == ["docker.io"]
    for differing in ("ns=docker.io&ns=registry.corp:5000", "ns=docker.io&ns=evil.test", "ns=docker.io&ns="):
        for path in ("/v2/", "/v2/demo/manifests/1"):
            reply = await mirror.get(f"{path}?{differing}")
            assert (reply.status, reply.code) == (400, "NAME_INVALID"), differing

    assert corp.requests == []


async def test_the_namespace_that_was_used_is_repeated(
    mirror: RunningMirror, image: Image, corp: FakeRegistry, ours: Image
) -> None:
    """Every answer to a request with a valid ns= says so in OCI-Namespace, as it was written, whatever the answer."""
    digest, config = image.digest, image.config.digest
    asked: list[tuple[int, str, dict[str, str]]] = [
        (200, "/v2/", {}),
        (200, f"/v2/demo/manifests/{digest}", {}),
        (200, f"/v2/demo/manifests/{digest}", {"method": "HEAD"}),
        (200, f"/v2/docker.io/library/demo/blobs/{config}", {}),
        (200, f"/docker.io/v2/library/demo/blobs/{config}", {}),
        (206, f"/v2/demo/blobs/{config}", {"Range": "bytes=0-1"}),
        (416, f"/v2/demo/blobs/{config}", {"Range": "bytes=999999-"}),
        (304, f"/v2/demo/blobs/{config}", {"If_None_Match": f'"{config}"'}),
        (404, "/v2/demo/manifests/absent", {}),
        (404, "/v2/_catalog", {}),
        (404, "/elsewhere", {}),
        (404, "/registry.corp:5000/v2/demo/manifests/1", {}),
        (400, "/v2/demo/blobs/sha256:0", {}),
        (400, "/v2/DEMO/manifests/1", {}),
        (405, "/v2/demo/manifests/1", {"method": "PUT"}),
        (405, "/v2/", {"method": "POST"}),
    ]
    for written in ("docker.io", "Index.Docker.io"):
        for status, path, options in asked:
            reply = await mirror.get(f"{path}?ns={written}", **options)
            assert (reply.status, reply.headers.get("OCI-Namespace")) == (status, written), path
    assert (await mirror.get("/v2/?ns=registry.corp%3A5000")).headers["OCI-Namespace"] == "registry.corp:5000"
    corp.refuse_connections()
    reply = await mirror.get("/v2/demo/manifests/1?ns=registry.corp:5000")
    assert (reply.status, reply.headers["OCI-Namespace"]) == (503, "registry.corp:5000")


async def test_no_namespace_is_repeated_to_who_named_none(mirror: RunningMirror, image: Image) -> None:
    """Nor is one that clients could have made up, or used to write our headers."""
    for path in ("/v2/", "/v2/demo/manifests/1", "/v2/docker.io/library/demo/manifests/1", "/docker.io/v2/"):
        assert "OCI-Namespace" not in (await mirror.get(path)).headers
    for ns in ("evil.test", "docker.io%0d%0aSet-Cookie:a=b", "docker.io&ns=evil.test", ""):
        headers = (await mirror.get(f"/v2/demo/manifests/1?ns={ns}")).headers
        assert "OCI-Namespace" not in headers
        assert "Set-Cookie" not in headers

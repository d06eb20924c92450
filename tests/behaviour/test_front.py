"""What stands in front: names of ours that mean an upstream, paths before `/v2/`, proxies that speak for clients."""

from __future__ import annotations

import json
from ipaddress import ip_network

import pytest

from mirror.config import UpstreamSettings
from tests.conftest import StartMirror
from tests.harness import RunningMirror
from tests.lines import Lines, lines
from tests.raw import Head, RawClient
from tests.upstream import FakeRegistry, Image
from tests.upstream.fixtures import StartUpstream

__all__ = ["lines"]

LOOPBACK = (ip_network("127.0.0.0/8"),)
REPOSITORY = "org/app"


@pytest.fixture
async def quay(start_upstream: StartUpstream) -> FakeRegistry:
    """A second upstream."""
    return await start_upstream()


@pytest.fixture
async def mirror(start_mirror: StartMirror, upstream: FakeRegistry, quay: FakeRegistry) -> RunningMirror:
    """Docker Hub by default; quay.io also by two names of ours; a public URL with a path."""
    named = UpstreamSettings(url=quay.url, hosts=("quay.mirror.test", "mirror.test:5001"))
    return await start_mirror(
        upstreams={"docker.io": upstream, "quay.io": named}, public_url="https://corp.test/mirror"
    )


@pytest.fixture
def hubs(upstream: FakeRegistry) -> Image:
    """An image on Docker Hub."""
    return upstream.add_image(REPOSITORY, "1", labels={"whose": "hub"})


@pytest.fixture
def quays(quay: FakeRegistry) -> Image:
    """Another one of the same name on quay.io."""
    return quay.add_image(REPOSITORY, "1", labels={"whose": "quay"})


def ends(image: Image) -> list[tuple[str, bytes]]:
    """What can be asked for under a repository, and what it is."""
    manifest, config = image.manifest.content, image.config
    return [
        ("manifests/1", manifest),
        (f"manifests/{image.digest}", manifest),
        (f"blobs/{config.digest}", config.content),
    ]


async def ask(mirror: RunningMirror, request: str) -> tuple[Head, bytes]:
    """Sends these bytes as the head of a request, and reads the answer to the end of the connection."""
    async with await RawClient.connect(mirror.app.port) as client:
        await client.send(request.replace("\n", "\r\n").encode("latin-1") + b"\r\n\r\n")
        return await client.head(), await client.rest()


async def test_an_upstream_is_meant_by_a_name_of_ours(mirror: RunningMirror, hubs: Image, quays: Image) -> None:
    """With any port, in any case, where the alias has no port; with that port alone where it has one."""
    for host in ("quay.mirror.test", "QUAY.mirror.test:8080", "quay.mirror.test.", "mirror.test:5001"):
        for end, content in ends(quays):
            assert (await mirror.get(f"/v2/{REPOSITORY}/{end}", Host=host)).body == content, host
        # What is said twice is dropped once.
        assert (await mirror.get(f"/v2/quay.io/{REPOSITORY}/manifests/1", Host=host)).body == quays.manifest.content
    for host in ("mirror.test", "mirror.test:5002", "evil.test", "quay.io"):
        for end, content in ends(hubs):
            assert (await mirror.get(f"/v2/{REPOSITORY}/{end}", Host=host)).body == content, host


HOSTS = [
    ("GET {} HTTP/1.0", "hub"),
    ("GET {} HTTP/1.0\nHost: quay.mirror.test", "quay"),
    ("GET http://quay.mirror.test{} HTTP/1.1\nHost: elsewhere", "quay"),
    ("GET http://quay.mirror.test:99{} HTTP/1.1\nHost: elsewhere", "quay"),
    ("GET http://elsewhere{} HTTP/1.1\nHost: quay.mirror.test", "hub"),
    ("GET {} HTTP/1.1\nHost:", "hub"),
    ("GET {} HTTP/1.1\nHost: :", "hub"),
    ("GET {} HTTP/1.1\nHost: [::1", "hub"),
    ("GET {} HTTP/1.1\nHost: quay.mirror.test:http", "hub"),
    ("GET {} HTTP/1.1\nHost: quay.mirror.test/", "hub"),
    ("GET {} HTTP/1.1\nHost: user@quay.mirror.test", "hub"),
    ("GET {} HTTP/1.1\nHost: quay.mirror.test quay.mirror.test", "hub"),
    ("GET {} HTTP/1.1\nHost: \xff\xfe", "hub"),
    ("GET {} HTTP/1.1\nHost: " + "a" * 4000, "hub"),
]


async def test_no_host_header_is_worth_an_error(lines: Lines, mirror: RunningMirror, hubs: Image, quays: Image) -> None:
    """Absent, malformed, endless or foreign ones mean nobody in particular; an absolute target goes before them."""
    for request, whose in HOSTS:
        head, body = await ask(mirror, request.format(f"/v2/{REPOSITORY}/manifests/1") + "\nConnection: close")

        assert head.status == 200, request
        assert body == (quays if whose == "quay" else hubs).manifest.content, request
    assert lines.troubles() == []


async def test_the_path_before_v2_means_that_upstream(mirror: RunningMirror, hubs: Image, quays: Image) -> None:
    """As Docker and containerd ask a mirror whose URL has a path; also under the path of the public URL."""
    for outer in ("", "/mirror"):
        for end, content in ends(quays):
            for inner in (f"quay.io/v2/{REPOSITORY}", f"v2/quay.io/{REPOSITORY}", f"quay.io/v2/quay.io/{REPOSITORY}"):
                reply = await mirror.get(f"{outer}/{inner}/{end}")
                assert (reply.status, reply.body) == (200, content), (outer, inner)
        assert (await mirror.get(f"{outer}/quay.io/v2/")).body == b"{}"
        for way in (f"docker.io/v2/{REPOSITORY}", f"v2/{REPOSITORY}"):
            reply = await mirror.get(f"{outer}/{way}/manifests/1", Host="elsewhere")
            assert reply.body == hubs.manifest.content, (outer, way)
    # The path says it more plainly than the name under which we are called.
    reply = await mirror.get(f"/docker.io/v2/{REPOSITORY}/manifests/1", Host="quay.mirror.test")
    assert reply.body == hubs.manifest.content


async def test_any_other_path_before_v2_is_unknown(
    mirror: RunningMirror, upstream: FakeRegistry, quay: FakeRegistry, quays: Image
) -> None:
    """404, for writes too: it is no path of ours; neither is one that disagrees with ns=."""
    for path in ("/evil.test/v2/", "/mirror/evil.test/v2/", "//v2/", "/quay.io//v2/", "/a/quay.io/v2/", "/quay.io/"):
        for method in ("GET", "PUT"):
            reply = await mirror.get(f"{path}{REPOSITORY}/manifests/1", method=method)
            assert (reply.status, reply.code) == (404, "UNSUPPORTED"), path
    reply = await mirror.get(f"/quay.io/v2/{REPOSITORY}/manifests/1?ns=docker.io")
    assert (reply.status, reply.code) == (404, "UNSUPPORTED")
    reply = await mirror.get(f"/quay.io/v2/{REPOSITORY}/manifests/1", method="PUT")
    assert (reply.status, reply.code) == (405, "UNSUPPORTED")

    assert upstream.requests == quay.requests == []


async def test_a_mirror_may_stand_before_a_mirror_for_each_upstream(
    start_mirror: StartMirror, mirror: RunningMirror, hubs: Image, quays: Image
) -> None:
    """Its url is the other one with the upstream as path: nothing else is to be set up there."""
    front = await start_mirror(
        upstreams={name: UpstreamSettings(url=f"{mirror.url}/{name}") for name in ("docker.io", "quay.io")}
    )

    for end, content in ends(quays):
        assert (await front.get(f"/v2/quay.io/{REPOSITORY}/{end}")).body == content
    for end, content in ends(hubs):
        assert (await front.get(f"/v2/{REPOSITORY}/{end}")).body == content


# Proxies.


async def test_a_trusted_proxy_speaks_for_its_client(
    lines: Lines, start_mirror: StartMirror, upstream: FakeRegistry, quay: FakeRegistry, hubs: Image, quays: Image
) -> None:
    """Its client's address is in the access line, its client's name for us chooses the upstream."""
    named = UpstreamSettings(url=quay.url, hosts=("quay.mirror.test",))
    upstreams = {"docker.io": upstream, "quay.io": named}
    mirror = await start_mirror(upstreams=upstreams, trusted_proxies=LOOPBACK)
    wary = await start_mirror(upstreams=upstreams, trusted_proxies=(ip_network("10.0.0.0/8"),))
    headers = {"X_Forwarded_For": "198.51.100.1, 192.0.2.9", "X_Forwarded_Host": "quay.mirror.test:443"}

    believed = await mirror.get(f"/v2/{REPOSITORY}/manifests/1", **headers)
    ignored = await wary.get(f"/v2/{REPOSITORY}/manifests/1", **headers)

    assert (believed.body, ignored.body) == (quays.manifest.content, hubs.manifest.content)
    assert [line["client"] for line in lines.access()] == ["192.0.2.9", "127.0.0.1"]


PREFIXED = [
    (f"/v2/quay.io/{REPOSITORY}", "/mirror", {}),
    (f"/v2/{REPOSITORY}", "/mirror", {"Host": "quay.mirror.test"}),
    (f"/mirror/v2/quay.io/{REPOSITORY}", "/mirror", {}),
    (f"/quay.io/v2/{REPOSITORY}", "/mirror/quay.io", {}),
    (f"/mirror/quay.io/v2/{REPOSITORY}", "/mirror/quay.io", {}),
    (f"/mirror/registry.corp%3A5000/v2/{REPOSITORY}", "/mirror/registry.corp:5000", {}),
    (f"/v2/registry.corp%3A5000/{REPOSITORY}", "/mirror", {}),
    (f"/v2/{REPOSITORY}", "/outer", {"X_Forwarded_Prefix": "/outer/", "X_Forwarded_Host": "quay.mirror.test"}),
    (f"/quay.io/v2/{REPOSITORY}", "/outer/quay.io", {"X_Forwarded_Prefix": "/outer"}),
    (f"/outer/quay.io/v2/{REPOSITORY}", "/outer/quay.io", {"X_Forwarded_Prefix": "/outer"}),
    (f"/quay.io/v2/{REPOSITORY}", "/mirror/quay.io", {"X_Forwarded_Prefix": "//evil.test"}),
]


async def test_links_lead_to_where_the_client_sees_us(
    start_mirror: StartMirror, upstream: FakeRegistry, quay: FakeRegistry, quays: Image
) -> None:
    """Under the path that a proxy takes off, or that of the public URL, and the one that names the upstream.

    Followed through that proxy, or without it, they bring the rest of the list.
    """
    for tag in ("2", "3"):
        quay.tag(REPOSITORY, tag, quays)
    named = UpstreamSettings(url=quay.url, hosts=("quay.mirror.test",))
    upstreams = {"docker.io": upstream, "quay.io": named, "registry.corp:5000": quay}
    mirror = await start_mirror(upstreams=upstreams, public_url="https://corp.test/mirror", trusted_proxies=LOOPBACK)
    for path, prefix, headers in PREFIXED:
        first = await mirror.get(f"{path}/tags/list?n=2", **headers)
        link = first.headers["Link"].partition(">")[0].removeprefix("<")
        assert link.startswith(f"{prefix}/v2/"), (path, link)

        for way in {link, link.removeprefix("/outer")}:
            rest = await mirror.get(way, **headers)
            assert (json.loads(first.body)["tags"], json.loads(rest.body)["tags"]) == (["1", "2"], ["3"]), way
            assert "Link" not in rest.headers


FORWARDED = ["", ",", ", ,", "unknown", "\xff", "a" * 8000, "192.0.2.9, " * 700, "[::1", "/..//../", "127.0.0.1",
             '";rel=x', "::ffff:1.2.3.4"]  # fmt: skip


async def test_no_forwarded_header_is_worth_an_error(
    lines: Lines, start_mirror: StartMirror, upstream: FakeRegistry, hubs: Image
) -> None:
    """Whatever proxies write: empty, endless, broken, repeated."""
    mirror = await start_mirror(trusted_proxies=LOOPBACK)
    for value in FORWARDED:
        for name in ("For", "Host", "Prefix"):
            header = f"\nX-Forwarded-{name}: {value[:8000]}"
            request = f"GET /v2/{REPOSITORY}/manifests/1 HTTP/1.1\nHost: x\nConnection: close{header}{header}"
            head, body = await ask(mirror, request)
            assert (head.status, body) == (200, hubs.manifest.content), (name, value[:40])

    assert lines.troubles() == []
    assert all(line["client"] for line in lines.access())


async def test_a_malformed_request_has_the_address_of_its_peer(lines: Lines, start_mirror: StartMirror) -> None:
    """What is no HTTP has no headers to believe."""
    mirror = await start_mirror(trusted_proxies=LOOPBACK)
    async with await RawClient.connect(mirror.app.port) as client:
        await client.send(b"hello\r\nX-Forwarded-For: 192.0.2.9\r\n\r\n")
        await client.error()

    [line] = [line for line in lines.all() if line["event"] == "malformed request"]
    assert line["client"] == "127.0.0.1"


# Encodings.


ENCODED = [
    "/v2/org/app/{}",
    "/v2/org%2Fapp/{}",
    "/v2/org%2fapp/{}",
    "/%76%32/%6f%72%67/app/{}",
    "/v2/docker.io/org/app/{}",
    "/v2/docker%2Eio/org/app/{}",
    "/v2/docker.io%2Forg%2Fapp%2F{}",
    "/docker%2eio/v2/org/app/{}",
    "/docker.io%2Fv2%2Forg%2Fapp/{}",
    "/mirror%2Fv2/org/app/{}",
    "http://x/v2/org%2Fapp/{}",
    "/v2/org/app/{}?ns=docker%2Eio",
    "/v2/org/app/{}?%6Es=docker.io",
    "/v2/org/app/{}?n=1&ns=docker.io&&=",
]


async def test_every_encoding_of_a_path_is_one_path(mirror: RunningMirror, upstream: FakeRegistry, hubs: Image) -> None:
    """The upstream is asked once for each thing, and by its plain name."""
    for end, content in ends(hubs):
        for way in ENCODED:
            for form in (end, end.replace(":", "%3A"), end.replace("s/", "s%2F"), f"%{ord(end[0]):x}{end[1:]}"):
                head, body = await ask(mirror, f"GET {way.format(form)} HTTP/1.1\nHost: x\nConnection: close")
                assert (head.status, body) == (200, content), way.format(form)
    await mirror.quiet()

    assert {seen.repository for seen in upstream.content_requests()} == {REPOSITORY}
    assert all("%" not in seen.target for seen in upstream.content_requests())
    assert upstream.count(kind="manifest", method="GET") == 1
    assert upstream.count(hubs.config, method="GET") == 1


MEANINGLESS = [
    ("/v2/org%252Fapp/manifests/1", 400),
    ("/v2/org/app%/manifests/1", 400),
    ("/v2/org/ap%zz/manifests/1", 400),
    ("/v2/org/app%ff/manifests/1", 400),
    ("/v2/org/%c0%ae%c0%ae/app/manifests/1", 400),
    ("/v2/org/app+/manifests/1", 400),
    ("/v2/org//app/manifests/1", 400),
    ("/v2//org/app/manifests/1", 400),
    ("/v2/./org/app/manifests/1", 400),
    ("/v2/org/../org/app/manifests/1", 400),
    ("/v2/org/%2e%2e/app/manifests/1", 400),
    ("/v2/org/..%2fapp/manifests/1", 400),
    ("/v2/org\\app/manifests/1", 400),
    ("/v2/org/app%00/manifests/1", 400),
    ("/v2/org/app%0d%0aX:y/manifests/1", 400),
    ("/v2/org/app%3Fa=b/manifests/1", 400),
    ("/v2/org/app%23/manifests/1", 400),
    ("/v2/%EF%BD%8Frg/app/manifests/1", 400),
    ("/v2/org/app/manifests/1%20", 404),
    ("/v2/org/app/manifests/%2e%2e", 404),
    ("/v2/org/app/manifests/1%3Fns=quay.io", 404),
    ("/v2/org/app/manifests/1#x", 404),
    ("/v2/org/app/blobs/sha256%253A" + "0" * 64, 400),
    ("/v2/org/app/blobs/sha256%3A" + "0" * 63 + "%ff", 400),
    ("/v2/registry.corp%3A5000/app/manifests/1", 403),
    ("/v2/evil.test%2Fapp/manifests/1", 403),
    ("/v2/org/app/manifests/1?ns=docker.io%00", 400),
    ("/v2/org/app/manifests/1?ns=docker.io%2F..", 400),
    ("/v2/org/app/manifests/1?ns=%ff", 400),
    ("/v2/org/app/manifests/1?ns=%E2%84%AAquay.io", 400),
    ("/v2/org/app/manifests/1?ns=docker.io;ns=quay.io", 400),
    ("/v2/org/app/manifests/1?ns=docker.io#ns=quay.io", 400),
    ("/v2/org/app/manifests/1?ns=docker%252Eio", 400),
    ("/v2/org/app/manifests/1?ns=docker.io+", 400),
]


async def test_what_an_encoding_hides_reaches_nobody(
    lines: Lines, mirror: RunningMirror, upstream: FakeRegistry, quay: FakeRegistry
) -> None:
    """Broken, doubled or smuggled characters are refused as the name, tag, digest or host that they spoil."""
    for raw, status in MEANINGLESS:
        head, body = await ask(mirror, f"GET {raw} HTTP/1.1\nHost: x\nConnection: close")
        assert head.status == status, raw
        assert json.loads(body)["errors"][0]["code"] != "UNKNOWN"

    assert upstream.requests == quay.requests == []
    assert lines.troubles() == []

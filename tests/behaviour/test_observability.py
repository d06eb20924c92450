"""What an operator sees: one line a request, metrics that stay few, health on a port of its own, and no secret."""

from __future__ import annotations

import asyncio
import base64
import re

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from mirror.metrics import Metrics
from mirror.oci.digest import Digest
from tests.conftest import StartMirror
from tests.harness import RunningMirror
from tests.lines import Lines, lines
from tests.raw import RawClient
from tests.upstream import ANY, Bearer, FakeRegistry, Image, header, status

__all__ = ["lines"]

SECRET = "s3cr3t-of-a-client"

PROMISED = {
    "requests": {"upstream", "kind", "result", "status"},
    "request_duration_seconds": {"kind"},
    "first_byte_seconds": {"kind", "result"},
    "served_bytes": {"upstream", "kind", "result"},
    "upstream_requests": {"upstream", "kind", "status"},
    "upstream_bytes": {"upstream", "kind"},
    "upstream_first_byte_seconds": {"upstream"},
    "upstream_retries": {"upstream", "reason"},
    "connections": set(),
    "connections_refused": {"reason"},
    "downloads_in_flight": set(),
    "downloads_queued": set(),
    "download_joins": {"upstream"},
    "stored_bytes": {"upstream"},
    "cache_bytes": set(),
    "cache_max_bytes": set(),
    "cache_objects": {"kind"},
    "evictions": {"reason"},
    "evicted_bytes": set(),
    "eviction_age_seconds": set(),
    "stale_served": {"upstream", "reason"},
    "digest_mismatches": {"upstream"},
    "upstream_quota_remaining": {"upstream"},
    "upstream_quota_limit": {"upstream"},
    "upstream_up": {"upstream"},
    "upstream_breaker_open": {"upstream"},
    "credentials_rejected": {"upstream"},
    "scrub_bytes": set(),
    "scrub_corrupt": set(),
    "storage_degraded": {"reason"},
    "bypass_bytes": {"upstream", "reason"},
    "log_lines_dropped": set(),
    "peer_requests": {"peer", "result"},
    "worker_restarts": set(),
    "tls_certificate_expiry_timestamp_seconds": set(),
    "start_time_seconds": set(),
    "build_info": {"version"},
}
"""The metrics of the design that have arrived, without their prefix and `_total`, and their labels."""

RESULTS = {"hit", "miss", "joined", "stale", "revalidated", "bypass", "error", "refused", "none"}
KINDS = {"manifest", "blob", "tags", "referrers", "none"}


@pytest.fixture
def image(upstream: FakeRegistry) -> Image:
    """library/demo:1, with one layer."""
    return upstream.add_image("library/demo", "1", layers=[50_000])


def label_values(registry: CollectorRegistry) -> set[tuple[str, str, str]]:
    """Every label value there is, with the metric and label it belongs to; buckets apart."""
    return {
        (sample.name, name, value)
        for family in registry.collect()
        for sample in family.samples
        for name, value in sample.labels.items()
        if name != "le"
    }


# Metrics.


def test_every_metric_has_its_name_labels_and_meaning() -> None:
    """Dashboards and alerts are written against these names."""
    found = {}
    for family in Metrics().registry.collect():
        assert family.name.startswith("mirror_")
        assert family.documentation.endswith(".")
        found[family.name.removeprefix("mirror_")] = family

    assert set(found) == set(PROMISED)


async def test_metrics_carry_the_promised_labels(mirror: RunningMirror, upstream: FakeRegistry, image: Image) -> None:
    """A cold pull, a warm one and a few failures; what a scrape then shows has the labels of the design."""
    upstream.fault(ANY, header("RateLimit-Remaining", "76;w=21600"), times=1)
    for _ in range(2):
        await mirror.manifest("demo", "1")
        await mirror.blob("demo", image.layers[0].digest)
        await mirror.quiet()
    await mirror.manifest("demo", "absent")
    await mirror.get("/v2/")
    await mirror.app.traffic.recorded()

    text = (await mirror.session.get(f"{mirror.admin_url}/metrics")).text
    families = {family.name: family for family in text_string_to_metric_families(await text())}

    for name, labels in PROMISED.items():
        family = families[f"mirror_{name}"]
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == labels, name
    for sample in families["mirror_requests"].samples:
        assert sample.labels["kind"] in KINDS
        assert sample.labels["result"] in RESULTS
        assert sample.labels["upstream"] in ("docker.io", "none")
        assert re.fullmatch("[1-5][0-9][0-9]", sample.labels["status"])


async def test_a_thousand_repositories_add_no_label(mirror: RunningMirror, image: Image) -> None:
    """Whatever clients ask for, in names, ns=, tags, digests, paths and methods: the series stay the same few."""
    registry = mirror.app.metrics.registry

    async def ask(number: int) -> None:
        digest = Digest.of(str(number).encode())
        kind = ("manifests", "blobs", "tags", "referrers", "nonsense")[number % 5]
        reference = (str(digest), f"tag{number}", f"sha256:{number}")[number % 3]
        ns = ("", "?ns=docker.io", f"?ns=registry{number}.test:{number}", f"?ns=%00{number}", "?ns=")[number % 7 % 5]
        method = ("GET", "HEAD", "PUT", f"ODD{number}")[(number % 11) % 4]
        async with await RawClient.connect(mirror.app.port) as client:
            await client.ask(f"/v2/org{number}/app{number}/{kind}/{reference}{ns}", method, Host=f"h{number}.test")
            await client.head()

    for first in range(0, 1000, 50):
        await asyncio.gather(*(ask(number) for number in range(first, first + 50)))

    allowed = {
        "upstream": "docker.io|none",
        "kind": "|".join(KINDS | {"auth", "record"}),
        "result": "|".join(RESULTS),
        "status": "[1-5][0-9][0-9]|[a-z_]+",
        "reason": "[a-z_]+",
        "version": r"[0-9.]+",
    }
    found = label_values(registry)
    for metric, label, value in found:
        assert re.fullmatch(allowed[label], value), (metric, label)
    assert len(found) < 200


async def test_a_pattern_is_one_label(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """Many hosts fall under one entry; they are counted under it, never by their own name."""
    mirror = await start_mirror(tag_ttl=60)
    for number in range(20):
        await mirror.get(f"/v2/demo/manifests/1?ns=europe-west{number}-docker.pkg.dev", method="PUT")
        await mirror.get(f"/v2/demo/blobs/sha256:{number}?ns=europe-west{number}-docker.pkg.dev")

    values = {value for name, label, value in label_values(mirror.app.metrics.registry) if label == "upstream"}
    assert "*.pkg.dev" in values
    assert not any("europe" in value for value in values)


async def test_what_is_counted_is_what_was_sent(mirror: RunningMirror, upstream: FakeRegistry, image: Image) -> None:
    """Requests and body bytes by result: a miss, hits, a HEAD, an error, a part."""
    layer = image.layers[0]
    await mirror.blob("demo", layer.digest)
    await mirror.quiet()
    for _ in range(3):
        await mirror.blob("demo", layer.digest)
    await mirror.blob("demo", layer.digest, method="HEAD")
    await mirror.blob("demo", layer.digest, Range="bytes=0-99")
    manifest = await mirror.manifest("demo", "1")
    refused = await mirror.manifest("demo", "absent")
    await mirror.app.traffic.recorded()

    def served(**labels: str) -> float:
        return mirror.metric("mirror_served_bytes_total", upstream="docker.io", **labels)

    assert mirror.metric("mirror_requests_total", kind="blob", result="miss", status="200") == 1
    assert mirror.metric("mirror_requests_total", kind="blob", result="hit", status="200") == 4
    assert mirror.metric("mirror_requests_total", kind="blob", result="hit", status="206") == 1
    assert mirror.metric("mirror_requests_total", kind="manifest", result="refused", status="404") == 1
    assert served(kind="blob", result="miss") == layer.size
    assert served(kind="blob", result="hit") == 3 * layer.size + 100
    assert served(kind="manifest", result="miss") == len(manifest.body)
    assert served(kind="manifest", result="refused") == len(refused.body)
    assert mirror.metric("mirror_request_duration_seconds_count", kind="blob") == 6
    assert mirror.metric("mirror_first_byte_seconds_count", kind="blob", result="hit") == 5


# Lines.


async def test_each_request_has_one_line(lines: Lines, mirror: RunningMirror, image: Image) -> None:
    """What was asked, of whom, what came of it, how much, how long, and under which id; failures say why."""
    layer = image.layers[0]
    await mirror.manifest("demo", "1", X_Request_Id="first")
    await mirror.manifest("demo", "1", X_Request_Id="second")
    await mirror.blob("demo", layer.digest, X_Request_Id="third")
    await mirror.manifest("demo", "1", method="HEAD", X_Request_Id="fourth")
    await mirror.manifest("demo", "absent", X_Request_Id="fifth")
    await mirror.get("/v2/", X_Request_Id="sixth")
    given = await mirror.get("/nothing")
    await mirror.app.traffic.recorded()

    access = {line["request_id"]: line for line in lines.access()}

    assert list(access) == ["first", "second", "third", "fourth", "fifth", "sixth", given.headers["X-Request-Id"]]
    assert len(lines.access()) == len(access)
    for line in access.values():
        assert {"upstream", "repository", "kind", "result", "status", "bytes", "duration", "request_id"} <= set(line)
        assert 0 <= line["duration"] < 20
    told = {
        name: (line["upstream"], line["repository"], line["kind"], line["result"], line["status"], line["bytes"])
        for name, line in access.items()
    }
    repository, size = "docker.io/library/demo", len(image.manifest.content)
    assert told["first"] == ("docker.io", repository, "manifest", "miss", 200, size)
    assert told["second"] == ("docker.io", repository, "manifest", "hit", 200, size)
    assert told["third"] == ("docker.io", repository, "blob", "miss", 200, layer.size)
    assert told["fourth"] == ("docker.io", repository, "manifest", "hit", 200, 0)
    assert told["fifth"][:5] == ("docker.io", repository, "manifest", "refused", 404)
    assert told["sixth"] == ("none", None, "none", "none", 200, 2)
    assert "failure" not in access["first"]
    assert access["fifth"]["failure"]


async def test_lines_of_one_request_share_its_id(
    lines: Lines, start_mirror: StartMirror, upstream: FakeRegistry
) -> None:
    """What the engine logs on behalf of a request can be found by the id that the client knows."""
    mirror = await start_mirror(tag_ttl=0)
    image = upstream.add_image("library/demo", "1")
    await mirror.manifest("demo", "1")
    upstream.fault(image, status(503))

    reply = await mirror.manifest("demo", "1", X_Request_Id="find-me")

    await mirror.app.traffic.recorded()
    assert reply.cache == "stale"
    assert {line["event"] for line in lines.all() if line.get("request_id") == "find-me"} >= {"request", "served stale"}


async def test_pipelined_requests_keep_their_ids_apart(lines: Lines, mirror: RunningMirror) -> None:
    """Many requests over one connection, each line with its own id."""
    async with await RawClient.connect(mirror.app.port) as client:
        for number in range(20):
            await client.ask("/v2/", X_Request_Id=f"n{number}")
        for number in range(20):
            head, _ = await client.answer()
            assert head.headers["X-Request-Id"] == f"n{number}"

    await mirror.app.traffic.recorded()
    assert [line["request_id"] for line in lines.access()] == [f"n{number}" for number in range(20)]


# Secrets.


async def test_a_clients_credential_goes_nowhere(
    lines: Lines, mirror: RunningMirror, upstream: FakeRegistry, image: Image
) -> None:
    """Docker sends Hub credentials to any mirror that challenges, containerd may send them anyway: they reach no
    upstream, no line and no metric, whatever form they have and whatever goes wrong.
    """
    upstream.auth = Bearer({"ci": "x"})
    basic = base64.b64encode(f"user:{SECRET}".encode()).decode()
    for authorization in (f"Basic {basic}", f"Bearer {SECRET}", SECRET, f"Basic {SECRET}"):
        for path in (
            "/v2/",
            "/v2/demo/manifests/1",
            f"/v2/demo/blobs/{image.layers[0].digest}",
            "/v2/demo/manifests/absent",
            "/v2/private.internal/demo/manifests/1",
            "/v2/_catalog",
        ):
            reply = await mirror.get(
                path, Authorization=authorization, Proxy_Authorization=authorization, Cookie=f"a={SECRET}"
            )
            assert reply.status in (200, 404, 403)
            for hidden in (SECRET, basic):
                assert hidden.encode() not in reply.body
                assert hidden not in str(reply.headers)
    metrics = await (await mirror.session.get(f"{mirror.admin_url}/metrics")).text()

    for seen in upstream.select():
        assert SECRET not in str(seen.headers)
        assert basic not in str(seen.headers)
        assert "Cookie" not in seen.headers
        assert "Proxy-Authorization" not in seen.headers
    for hidden in (SECRET, basic):
        assert hidden not in lines.text
        assert hidden not in metrics


async def test_queries_stay_out_of_the_lines(lines: Lines, mirror: RunningMirror) -> None:
    """Somebody always puts a token into a URL."""
    await mirror.get(f"/v2/demo/manifests/absent?access_token={SECRET}")
    await mirror.get(f"/nothing?token={SECRET}")

    assert SECRET not in lines.text


# The admin port.


async def test_health_and_metrics_are_on_the_admin_port_alone(mirror: RunningMirror, image: Image) -> None:
    """200 there, 404 on the public one; and no content on the admin port."""
    for path, content_type in (("/livez", "text/plain"), ("/readyz", "application/json"), ("/metrics", "text/plain")):
        async with mirror.session.get(mirror.admin_url + path) as answer:
            assert (answer.status, answer.content_type) == (200, content_type)
            assert await answer.read()
        assert (await mirror.get(path)).status == 404
    for path in ("/v2/", "/v2/demo/manifests/1", f"/v2/demo/blobs/{image.layers[0].digest}", "/"):
        async with mirror.session.get(mirror.admin_url + path) as answer:
            assert answer.status == 404


async def test_readiness_says_what_is_the_matter(mirror: RunningMirror) -> None:
    """Ready, with nothing degraded; while we drain, 503."""
    async with mirror.session.get(f"{mirror.admin_url}/readyz") as answer:
        assert await answer.json() == {"ready": True, "draining": False, "degraded": []}
    mirror.app.traffic.draining = True
    async with mirror.session.get(f"{mirror.admin_url}/readyz") as answer:
        assert (answer.status, (await answer.json())["ready"]) == (503, False)
    async with mirror.session.get(f"{mirror.admin_url}/livez") as answer:
        assert answer.status == 200


async def test_any_scraper_is_answered(lines: Lines, mirror: RunningMirror) -> None:
    """The text format or OpenMetrics by its Accept header, the text format whatever else that says."""
    for accept, content_type in (
        ("", "text/plain"),
        ("*/*", "text/plain"),
        ("text/html", "text/plain"),
        ("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5", "application/openmetrics-text"),
        ("application/openmetrics-text; version=nonsense; q=x", "text/plain"),
        (";;,,", "text/plain"),
        ("text/plain;version=0.0.4;escaping=", "text/plain"),
    ):
        async with mirror.session.get(f"{mirror.admin_url}/metrics", headers={"Accept": accept}) as answer:
            assert (answer.status, answer.content_type) == (200, content_type), accept
            assert "mirror_build_info" in await answer.text()

    assert lines.troubles() == []

"""Anything goes: whatever a registry can hold is served as it is, cold and warm, and is never converted."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from mirror.config import UpstreamSettings
from mirror.oci.digest import Digest
from mirror.oci.manifest import DOCKER_LIST, DOCKER_MANIFEST, MANIFEST_LIMIT, OCI_INDEX, OCI_MANIFEST, parse_manifest
from tests.conftest import StartMirror
from tests.harness import Reply, RunningMirror
from tests.raw import RawClient
from tests.upstream import FakeRegistry, Manifest, Stored, content_type, header, html, no_digest, no_length, status

REPOSITORY = "library/demo"
EMPTY = "application/vnd.oci.empty.v1+json"
SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"


async def check(mirror: RunningMirror, reference: str | Digest, stored: Stored, *, cold: str = "miss") -> None:
    """HEAD and GET of a manifest, twice each: its exact bytes and headers; the second pair asks nobody."""
    for source in (cold, "hit"):
        head = await mirror.manifest("demo", reference, method="HEAD")
        get = await mirror.manifest("demo", reference)
        for reply in (head, get):
            assert reply.status == 200, reply.body
            assert reply.headers["Content-Type"] == stored.media_type
            assert reply.headers["Content-Length"] == str(stored.size)
            assert reply.headers["Docker-Content-Digest"] == str(stored.digest)
            assert "Content-Encoding" not in reply.headers
        assert (head.body, get.body) == (b"", stored.content)
        assert get.cache == source


async def pull(mirror: RunningMirror, upstream: FakeRegistry, tag: str) -> list[Digest]:
    """Pulls a tag as clients do, by tag and then by digest, through all that it names; returns what was seen."""
    repository = upstream.repositories[REPOSITORY]
    top = repository.tags[tag]
    await check(mirror, tag, top)
    seen = [top.digest]
    waiting = [top]
    while waiting:
        manifest = parse_manifest(waiting.pop().content)
        assert manifest is not None
        for digest, _ in manifest.named_manifests():
            child = repository.manifests.get(digest)
            if child is None or digest in seen:
                continue
            await check(mirror, digest, child)
            seen.append(digest)
            waiting.append(child)
        for digest, size in manifest.named_blobs():
            blob = repository.blobs[digest]
            for _ in range(2):
                reply = await mirror.blob("demo", digest)
                assert (reply.status, reply.body) == (200, blob.content)
                assert reply.headers["Content-Length"] == str(size)
                assert reply.headers["Content-Type"] == "application/octet-stream"
                await mirror.quiet()
            seen.append(digest)
    return seen


async def pull_twice(mirror: RunningMirror, upstream: FakeRegistry, tag: str) -> None:
    """A cold pull, and after a restart a warm one for which the upstream is not needed."""
    cold = await pull(mirror, upstream, tag)
    await mirror.restart()
    upstream.reset()
    for digest in cold:
        held = upstream.repositories[REPOSITORY].blobs.get(digest)
        reply = await (mirror.blob("demo", digest) if held is not None else mirror.manifest("demo", digest))
        assert (reply.status, reply.cache) == (200, "hit")
    assert (await mirror.manifest("demo", tag)).cache == "hit"
    assert upstream.content_requests() == []


# Shapes.


@dataclass(frozen=True, slots=True)
class Artifact:
    """A manifest to be made: `layers` are media types with contents, `extra` are further fields."""

    config: tuple[str, bytes]
    layers: tuple[tuple[str, bytes], ...]
    extra: Mapping[str, Any]
    media_type: str = OCI_MANIFEST

    def put(self, upstream: FakeRegistry, tag: str, *, algorithm: str = "sha256") -> Manifest:
        """Adds blobs and manifest under `tag`."""

        def blob(media_type: str, content: bytes) -> dict[str, Any]:
            return upstream.put_blob(REPOSITORY, content, media_type=media_type, algorithm=algorithm).descriptor

        body = {
            "schemaVersion": 2,
            "mediaType": self.media_type,
            "config": blob(*self.config),
            "layers": [blob(*layer) for layer in self.layers],
            **self.extra,
        }
        return upstream.put_manifest(REPOSITORY, body, tag, media_type=self.media_type, algorithm=algorithm)


SUBJECT = {"mediaType": OCI_MANIFEST, "digest": str(Digest.of(b"a subject that is nowhere")), "size": 99}
OCI, DOCKER, COSIGN, HELM = (f"application/vnd.{name}" for name in ("oci", "docker", "dev.cosign", "cncf.helm"))
NOTHING, CONFIG = (EMPTY, b"{}"), (f"{OCI}.image.config.v1+json", b'{"os":"linux"}')
ARTIFACTS = {
    "artifact": Artifact(NOTHING, (NOTHING,), {"artifactType": "application/vnd.acme.rocket"}),
    "artifact without layers": Artifact(NOTHING, (), {"artifactType": "application/vnd.acme.nothing"}),
    "signature": Artifact(NOTHING, ((f"{COSIGN}.simplesigning.v1+json", b'{"critical":1}'),), {"subject": SUBJECT}),
    "attached": Artifact(("application/spdx+json", b"{ }"), (("text/spdx", b"SPDX"),), {"subject": SUBJECT}),
    "helm chart": Artifact(
        (f"{HELM}.config.v1+json", b'{"name":"chart"}'),
        ((f"{HELM}.chart.content.v1.tar+gzip", b"\x1f\x8b"), (f"{HELM}.chart.provenance.v1.prov", b"proof")),
        {},
    ),
    "zstd": Artifact(CONFIG, ((f"{OCI}.image.layer.v1.tar+zstd", b"\x28\xb5\x2f\xfd"),), {}),
    "zstd chunked": Artifact(
        CONFIG,
        ((f"{OCI}.image.layer.v1.tar+zstd", b"\x28\xb5\x2f\xfd chunks \x50\x2a\x4d\x18"),),
        {"annotations": {"io.github.containers.zstd-chunked.manifest-position": "1:2:3:1"}},
    ),
    "encrypted": Artifact(CONFIG, ((f"{OCI}.image.layer.v1.tar+gzip+encrypted", b"\x00secret"),), {}),
    "wasm": Artifact(("application/vnd.wasm.config.v0+json", b"{}"), (("application/wasm", b"\x00asm"),), {}),
    "docker": Artifact(
        (f"{DOCKER}.container.image.v1+json", b'{"os":"linux"} '),
        ((f"{DOCKER}.image.rootfs.diff.tar.gzip", b"\x1f\x8b layer"),),
        {},
        DOCKER_MANIFEST,
    ),
    "docker plugin": Artifact((f"{DOCKER}.plugin.v1+json", b"{}\n"), (), {}, DOCKER_MANIFEST),
    "empty blobs": Artifact((EMPTY, b""), (("application/vnd.acme.nothing", b""),), {}),
    "inline data": Artifact(NOTHING, (), {"annotations": {"a": ""}, "data": "e30="}),
}


@pytest.mark.parametrize("shape", ARTIFACTS)
async def test_every_kind_of_artifact_is_pulled(mirror: RunningMirror, upstream: FakeRegistry, shape: str) -> None:
    """Manifest and blobs, cold, warm and after a restart; nothing of it depends on what they are."""
    ARTIFACTS[shape].put(upstream, "1")

    await pull_twice(mirror, upstream, "1")


@pytest.mark.parametrize("docker", [True, False], ids=["docker", "oci"])
async def test_lists_and_indexes_are_pulled(mirror: RunningMirror, upstream: FakeRegistry, *, docker: bool) -> None:
    """With the media types of either."""
    index = upstream.add_index(REPOSITORY, "1", docker=docker, platforms=("linux/amd64", "windows/amd64"))
    assert index.manifest.media_type == (DOCKER_LIST if docker else OCI_INDEX)

    await pull_twice(mirror, upstream, "1")


def nested(upstream: FakeRegistry, depth: int, *, algorithm: str = "sha256") -> Manifest:
    """An index of an index of … an artifact, `depth` deep, with an attestation beside each; the top one is tagged."""
    leaf = ARTIFACTS["artifact"].put(upstream, "leaf", algorithm=algorithm)
    signature = ARTIFACTS["signature"].put(upstream, "signature", algorithm=algorithm)
    for level in range(depth):
        body = {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [leaf.descriptor, signature.descriptor],
            "annotations": {"level": str(level)},
        }
        leaf = upstream.put_manifest(REPOSITORY, body, "top", media_type=OCI_INDEX, algorithm=algorithm)
    return leaf


async def test_indexes_of_indexes_are_pulled(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """To any depth."""
    nested(upstream, 4)

    await pull_twice(mirror, upstream, "top")


async def test_sha512_is_pulled_through_and_through(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """The tag, the indexes, the manifests and the blobs are all known by their sha512, and verified by it."""
    top = nested(upstream, 2, algorithm="sha512")
    assert top.digest.algorithm == "sha512"

    await pull_twice(mirror, upstream, "top")

    assert {seen.digest.algorithm for seen in upstream.select() if seen.digest is not None} <= {"sha512"}


async def test_one_manifest_has_both_digests(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """Asked for by the other algorithm, the same bytes are found under that; each answer names what was asked for."""
    content = b'{"schemaVersion": 2, "layers": []}'
    for algorithm in ("sha256", "sha512"):
        manifest = upstream.put_manifest(REPOSITORY, content, algorithm, algorithm=algorithm)
        for reference in (algorithm, manifest.digest):
            for _ in range(2):
                reply = await mirror.manifest("demo", reference)
                assert (reply.body, reply.headers["Docker-Content-Digest"]) == (content, str(manifest.digest))


async def test_an_index_may_mix_algorithms(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """An index with a sha256 digest names what has a sha512 one, and what has one that we cannot verify."""
    child = ARTIFACTS["helm chart"].put(upstream, "child", algorithm="sha512")
    unknown = "blake3:" + "0" * 64
    odd = {"mediaType": OCI_MANIFEST, "digest": unknown, "size": 3}
    upstream.put_manifest(
        REPOSITORY, {"schemaVersion": 2, "manifests": [odd, child.descriptor]}, "1", media_type=OCI_INDEX
    )

    await pull_twice(mirror, upstream, "1")

    reply = await mirror.manifest("demo", unknown)
    assert (reply.status, reply.code) == (400, "DIGEST_INVALID")


async def test_schema_1_is_bytes_like_any_other(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """Signed manifests of old: not read, not converted, not signed anew; their layers are blobs."""
    layer = upstream.put_blob(REPOSITORY, 5000)
    protected = base64.urlsafe_b64encode(b'{"formatLength":100,"formatTail":"Cn0"}').decode().rstrip("=")
    body = {
        "schemaVersion": 1,
        "name": REPOSITORY,
        "tag": "1",
        "architecture": "amd64",
        "fsLayers": [{"blobSum": str(layer.digest)}],
        "history": [{"v1Compatibility": '{"id":"x"}'}],
        "signatures": [{"header": {"alg": "ES256"}, "signature": "c2ln", "protected": protected}],
    }
    signed = upstream.put_manifest(REPOSITORY, body, "1", media_type=SCHEMA_1)

    await check(mirror, "1", signed)
    await check(mirror, signed.digest, signed, cold="hit")
    assert (await mirror.blob("demo", layer.digest)).body == layer.content


# Foreign layers.


async def test_a_foreign_layer_is_what_the_upstream_says(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """Where it has the blob, it is served; where not, that is a 404. The `urls` in a manifest are nobody's word."""
    kept = upstream.put_blob(REPOSITORY, 3000)
    elsewhere = upstream.put_blob("library/elsewhere", 4000)
    seen = {"urls": [upstream.blob_url("library/elsewhere", elsewhere), f"{upstream.cdn_url}/layer"]}
    foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
    nondistributable = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
    body = {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST,
        "config": upstream.put_blob(REPOSITORY, b'{"os":"windows"}').descriptor,
        "layers": [
            {**kept.descriptor, "mediaType": nondistributable, **seen},
            {**elsewhere.descriptor, "mediaType": foreign, **seen},
        ],
    }
    windows = upstream.put_manifest(REPOSITORY, body, "1", media_type=DOCKER_MANIFEST)

    for _ in range(2):
        assert (await mirror.manifest("demo", "1")).body == windows.content
        assert (await mirror.blob("demo", kept.digest)).body == kept.content
        for method in ("HEAD", "GET"):
            reply = await mirror.blob("demo", elsewhere.digest, method=method)
            assert reply.status == 404
        await mirror.quiet()

    assert upstream.count(elsewhere, repository="library/elsewhere") == 0
    assert upstream.count(origin="cdn") == 0
    # Nor does a manifest that names it give a blob that we hold for another repository's sake.
    assert (await mirror.blob("elsewhere", elsewhere.digest)).body == elsewhere.content
    assert (await mirror.blob("demo", elsewhere.digest)).status == 404


# Bytes.

BYTES = {
    "byte order mark": b'\xef\xbb\xbf{"schemaVersion":2}',
    "spaces around": b'\r\n\t {"schemaVersion":2 } \n\n',
    "repeated keys": b'{"schemaVersion":2,"schemaVersion":1,"mediaType":"a/b","mediaType":"a/b"}',
    "numbers": b'{"schemaVersion":2.0,"x":1e400,"y":-0,"z":123456789012345678901234567890}',
    "escapes": b'{"schemaVersion":2,"a":"\\u00e9\\ud83d\\udc33 \xc3\xa9 \\/"}',
    "lone surrogate": b'{"schemaVersion":2,"a":"\\ud800"}',
    "not UTF-8": b'{"schemaVersion":2,"a":"\xff\xfe"}',
    "no JSON": b"schemaVersion = 2",
    "another JSON": b'["schemaVersion", 2]',
    "a number": b"2",
    "null": b"null",
    "half": b'{"schemaVersion":2,',
    "binary": bytes(range(256)),
    "gzip": b"\x1f\x8b\x08\x00 not really",
    "markup": b"<manifest xmlns='x'/>",
    "a page": b"\n <!DOCTYPE html><html></html>",
    "nothing": b"",
    "spaces": b"  \n",
    "nested": b'{"a":' * 2000 + b"1" + b"}" * 2000,
    "odd fields": b'{"schemaVersion":"two","layers":{},"config":[],"manifests":7,"mediaType":3}',
    "odd sizes": b'{"schemaVersion":2,"config":{"digest":"x","size":-1},"layers":[{"digest":"","size":9999999999999}]}',
}


@pytest.mark.parametrize("name", BYTES)
async def test_every_byte_is_what_the_upstream_has(mirror: RunningMirror, upstream: FakeRegistry, name: str) -> None:
    """By tag and by digest, whatever it is: who asks for a digest gets the bytes that have it."""
    media_type = "application/vnd.acme.rocket.manifest.v3"
    by_tag = upstream.put_manifest(REPOSITORY, BYTES[name], "1", media_type=media_type)
    sent = {"a/b"} if b'"a/b"' in BYTES[name] else {media_type}

    for reference in ("1", by_tag.digest):
        for _ in range(2):
            reply = await mirror.manifest("demo", reference)
            assert (reply.status, reply.body) == (200, by_tag.content)
            assert {reply.headers["Content-Type"]} == sent
            assert reply.headers["Content-Length"] == str(by_tag.size)
            assert reply.headers["Docker-Content-Digest"] == str(by_tag.digest)


@pytest.mark.parametrize("name", ["markup", "a page", "nothing"])
async def test_a_page_is_a_manifest_only_under_its_own_digest(
    mirror: RunningMirror, upstream: FakeRegistry, name: str
) -> None:
    """What looks like a page comes with its digest, or is no answer: not by tag, nor to who asked for another one."""
    page = upstream.put_manifest(REPOSITORY, BYTES[name], "1")
    image = upstream.add_image(REPOSITORY, "2")
    upstream.fault(page, no_digest())
    upstream.fault(image, html())

    assert (await mirror.manifest("demo", "1")).status == 503
    assert (await mirror.manifest("demo", page.digest)).body == page.content
    assert (await mirror.manifest("demo", image.digest)).status == 503


def media_types() -> Iterator[tuple[str | None, str]]:
    """What an upstream says of a manifest without a type of its own, and what we say then."""
    for odd in ("application/vnd.a!#$&^_.+-b", "x/y", "application/vnd.Acme.Rocket+JSON", "a/" + "b" * 127):
        yield odd, odd
    yield 'application/vnd.acme; charset="utf-8"; v=1', "application/vnd.acme"
    for nothing in (None, "", "plain", "a/b/c", "a b/c", "text/html", "application/json", "*/*"):
        yield nothing, OCI_MANIFEST


@pytest.mark.parametrize(("said", "served"), list(media_types()))
async def test_a_media_type_is_taken_as_it_is_said(
    start_mirror: StartMirror, upstream: FakeRegistry, said: str | None, served: str
) -> None:
    """Unknown ones to the letter, without parameters; what says nothing is found out, also for a cold HEAD."""
    registry = "registry.test"
    mirror = await start_mirror(upstreams={registry: UpstreamSettings(url=upstream.url)})
    body = {"schemaVersion": 2, "layers": []}
    manifests = [upstream.put_manifest("demo", {**body, "annotations": {"n": tag}}, tag) for tag in "ab"]
    upstream.fault("demo", content_type(said))

    for reference in ("a", manifests[1].digest):
        for method in ("HEAD", "GET", "HEAD"):
            reply = await mirror.manifest(f"{registry}/demo", reference, method=method)
            assert (reply.status, reply.headers["Content-Type"]) == (200, served)
    assert upstream.count(kind="manifest", method="GET") == 2


async def test_the_bodys_own_type_goes_before_the_header(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """They differ: the one is signed by the digest, the other is not."""
    body = {"schemaVersion": 2, "mediaType": "application/vnd.acme.Rocket", "layers": []}
    upstream.put_manifest(REPOSITORY, body, "1", media_type=DOCKER_MANIFEST)

    for method in ("GET", "HEAD", "GET"):
        reply = await mirror.manifest("demo", "1", method=method)
        assert reply.headers["Content-Type"] == "application/vnd.acme.Rocket"


# Sizes.


def padded(size: int) -> bytes:
    """A manifest of so many bytes."""
    start, end = b'{"schemaVersion": 2, "annotations": {"padding": "', b'"}}'
    return start + b"x" * (size - len(start) - len(end)) + end


async def test_four_mebibytes_pass(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """Exactly that many, by tag, by digest, by HEAD, cold and warm."""
    for number, size in enumerate((MANIFEST_LIMIT, MANIFEST_LIMIT - 1)):
        largest = upstream.put_manifest(REPOSITORY, padded(size), str(number))
        await check(mirror, str(number), largest)
        await check(mirror, largest.digest, largest, cold="hit")


@pytest.mark.parametrize("how", ["with a length", "without"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_byte_more_is_an_error_that_says_so(
    mirror: RunningMirror, upstream: FakeRegistry, method: str, how: str
) -> None:
    """By tag and by digest, whoever asks first; a HEAD does not promise what a GET cannot give."""
    large = upstream.put_manifest(REPOSITORY, padded(MANIFEST_LIMIT + 1), "1")
    if how == "without":
        upstream.fault(large, no_length())

    for reference in ("1", large.digest):
        reply = await mirror.manifest("demo", reference, method=method)
        assert reply.status == 503
        error: Reply = await mirror.manifest("demo", reference)
        (said,) = json.loads(error.body)["errors"]
        assert (error.status, said["code"], str(MANIFEST_LIMIT) in said["message"]) == (503, "UNAVAILABLE", True)


async def test_a_tag_that_grew_too_large_is_served_as_it_was(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """No answer that can be used is no answer: what the tag meant before is the stale copy."""
    mirror = await start_mirror(tag_ttl=0)
    image = upstream.add_image(REPOSITORY, "1")
    await mirror.manifest("demo", "1")
    upstream.put_manifest(REPOSITORY, padded(MANIFEST_LIMIT + 1), "1")

    for method in ("HEAD", "GET"):
        reply = await mirror.manifest("demo", "1", method=method)
        assert (reply.status, reply.cache) == (200, "stale")
        assert reply.headers["Docker-Content-Digest"] == str(image.digest)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("first", ["HEAD", "GET"])
async def test_a_blob_of_no_bytes_is_a_blob(
    mirror: RunningMirror, upstream: FakeRegistry, algorithm: str, first: str
) -> None:
    """Cold and warm, by HEAD and GET, in the middle of other requests on one connection."""
    empty = upstream.put_blob(REPOSITORY, b"", algorithm=algorithm)
    path = f"/v2/demo/blobs/{empty.digest}"

    async with await RawClient.connect(mirror.app.port) as client:
        for method in (first, "GET", "HEAD", "GET"):
            await client.ask(path, method)
            head, body = await client.answer(body=method == "GET")
            assert (head.status, head.length, body) == (200, 0, b"")
            assert head.headers["Docker-Content-Digest"] == str(empty.digest)
            await mirror.quiet()
    assert upstream.requests_for(empty) <= 2


async def test_what_is_not_empty_is_never_an_empty_blob(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """Nothing comes where something should, and something where nothing should: neither is given."""
    blob, empty = upstream.put_blob(REPOSITORY, 2000), upstream.put_blob(REPOSITORY, b"")
    upstream.fault(blob, status(200, b"", headers={"Content-Type": "application/octet-stream"}))
    upstream.fault(empty, status(200, b"something", headers={"Content-Type": "application/octet-stream"}))

    for thing in (blob, empty):
        assert (await mirror.blob("demo", thing.digest)).status == 502
        await mirror.quiet()
    upstream.clear_faults()
    for thing in (blob, empty):
        assert (await mirror.blob("demo", thing.digest)).body == thing.content


# Accept.

ACCEPTS: dict[str, list[str]] = {
    "none": [],
    "anything": ["Accept: */*"],
    "docker's alone": [f"Accept: {DOCKER_MANIFEST}"],
    "many lines": [f"Accept: {kind}" for kind in (DOCKER_MANIFEST, DOCKER_LIST, SCHEMA_1, OCI_MANIFEST, OCI_INDEX)],
    "one long line": [f"Accept: {', '.join(f'application/vnd.x{n}+json;q=0.{n % 10}' for n in range(100))}"],
    "nothing acceptable": ["Accept: image/png;q=0", "Accept: */*;q=0"],
    "empty": ["Accept:"],
    "nonsense": ["Accept: ,;=\"", "Accept: /"],
}  # fmt: skip


@pytest.mark.parametrize("name", ACCEPTS)
async def test_no_accept_changes_the_answer(mirror: RunningMirror, upstream: FakeRegistry, name: str) -> None:
    """One digest per tag: an index stays an index and an OCI image an OCI image, cold and warm, by tag and digest."""
    things = [(index := upstream.add_index(REPOSITORY, "1")).manifest, index.images[0].manifest]
    lines = ["Host: mirror", *ACCEPTS[name], "", ""]

    for _ in range(2):
        for reference, manifest in (("1", things[0]), (things[0].digest, things[0]), (things[1].digest, things[1])):
            async with await RawClient.connect(mirror.app.port) as client:
                await client.send("\r\n".join([f"GET /v2/demo/manifests/{reference} HTTP/1.1", *lines]).encode())
                head, body = await client.answer()
            assert (head.status, body) == (200, manifest.content)
            assert head.headers["Content-Type"] == manifest.media_type
    assert upstream.requests_for(index) == 1


async def test_a_clients_accept_encoding_reaches_nobody(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """Nothing is asked for compressed, and what says that it is, though nobody asked, is not passed on as such."""
    image = upstream.add_image(REPOSITORY, "1")
    upstream.fault(image.layers[0], header("Content-Encoding", "identity"))

    for path in ("manifests/1", f"blobs/{image.layers[0].digest}"):
        reply = await mirror.get(f"/v2/demo/{path}", Accept_Encoding="zstd;q=1.0, gzip;q=0.8, deflate;q=0.5")
        assert (reply.status, "Content-Encoding" in reply.headers) == (200, False)
    assert {seen.headers["Accept-Encoding"] for seen in upstream.content_requests()} == {"identity"}

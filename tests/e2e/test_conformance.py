"""The OCI distribution specification, as its conformance programs check it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.conformance import Splitter, Suite
from tests.e2e.images import Image
from tests.e2e.mirrors import MirrorProcess
from tests.e2e.programs import need, run
from tests.e2e.registries import Registry

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

REPOSITORY = "conformance/image"
TAGS = ("t1", "t2", "t3", "t4")

PUSHES = {
    "sha256 blobs",
    "sha512 blobs",
    "read-only/push/manifest-by-tag",
    "read-only/push/manifest-by-digest",
    "read-only/delete/blob-delete",
    "read-only/delete/manifest-delete",
    "invalid-digest-format/manifest-put",
    "invalid-digest-format/delete/blob-delete",
    "invalid-digest-format/delete/manifest-delete",
}
"""What the suite does not try where it is told that nothing can be pushed; what it reads is not among it."""

DISCOVERY = "Content Discovery Test content discovery endpoints"
CANNOT_PASS = {
    f"{DISCOVERY} (listing references) GET request to existing blob should yield 200",
    f"{DISCOVERY} (listing references) GET request to existing blob with filter should yield 200",
}
"""These want the five referrers that the suite pushes where it prepares its content itself, and that a registry with a
referrers API then lists. Distribution has none. Referrers that are there are read by the newer suite."""


@dataclass(frozen=True, slots=True)
class Content:
    """What the upstream holds before the suite begins."""

    manifest: str
    """The digest of the image that every tag names, which also has a referrer."""
    blobs: tuple[str, ...]


@pytest.fixture
def upstream3(tmp_path: Path) -> Iterator[Registry]:
    """Distribution 3.1, holding nothing."""
    registry = Registry(tmp_path / "store", tmp_path, program="registry3")
    yield registry
    registry.stop()


@pytest.fixture
def content(upstream3: Registry, image: Image, tmp_path: Path) -> Content:
    """An image under four tags, with one referrer. Distribution has no referrers API, so a tag lists it."""
    need("crane", "oras", "skopeo")
    name = f"{upstream3.address}/{REPOSITORY}"
    run(
        "skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false",
        f"oci:{image.layout}:image", f"docker://{name}:{TAGS[0]}",
        home=tmp_path,
    )  # fmt: skip
    for tag in TAGS[1:]:
        run("crane", "tag", "--insecure", f"{name}:{TAGS[0]}", tag, home=tmp_path)
    manifest = run("crane", "manifest", "--insecure", f"{name}:{TAGS[0]}", home=tmp_path)
    digest = f"sha256:{hashlib.sha256(manifest.encode()).hexdigest()}"
    (tmp_path / "signature").write_text("signed")
    run(
        "oras", "attach", "--plain-http", "--disable-path-validation",
        "--artifact-type", "application/vnd.example.signature",
        f"{name}@{digest}", f"{tmp_path / 'signature'}:text/plain",
        home=tmp_path,
    )  # fmt: skip
    parsed = json.loads(manifest)
    return Content(digest, tuple(blob["digest"] for blob in (parsed["config"], *parsed["layers"])))


def test_reads_conform(
    content: Content, mirror: MirrorProcess, mirror_port: int, tmp_path: Path, upstream3: Registry
) -> None:
    """Of content that is there, the suite finds nothing wrong; all that it leaves out is what only a push does."""
    mirror.start({"docker.io": {"url": upstream3.url}})

    outcome = Suite(tmp_path, "conformance").run(
        REGISTRY=f"127.0.0.1:{mirror_port}",
        TLS="disabled",
        VERSION="1.1",
        REPO1=REPOSITORY,
        API_PUSH="false",
        API_BLOBS_DELETE="false",
        API_MANIFESTS_DELETE="false",
        API_TAGS_DELETE="false",
        API_BLOBS_MOUNT_ANONYMOUS="false",
        RO_DATA_TAGS=" ".join(TAGS),
        RO_DATA_MANIFESTS=content.manifest,
        RO_DATA_BLOBS=" ".join(content.blobs),
        RO_DATA_REFERRERS=content.manifest,
    )

    assert outcome.failed == {}, outcome.complaints
    assert outcome.skipped == PUSHES
    assert outcome.passed == {
        "ping": 1,
        "empty/tag list": 1,
        "empty/referrers": 1,
        "read-only/tag-list": 1,
        "read-only/head/manifest-head-by-tag": len(TAGS),
        "read-only/head/manifest-head-by-digest": 1,
        "read-only/head/blob-head": len(content.blobs),
        "read-only/pull/manifest-by-tag": len(TAGS),
        "read-only/pull/manifest-by-digest": 1,
        "read-only/pull/blob-get": len(content.blobs),
        "read-only/referrers": 1,
        "missing-manifest/by-digest": 1,
        "missing-manifest/by-tag": 1,
        "invalid-digest-format/manifest-get": 1,
    }


def test_reads_of_what_was_just_pushed_conform(
    mirror: MirrorProcess, mirror_port: int, tmp_path: Path, upstream3: Registry
) -> None:
    """Pushed to the registry and read through the mirror, all that the suite pushes passes as without the mirror.

    It compares every byte, asks for parts, and reads indexes of indexes, manifests of nearly 4 MiB, empty blobs, and
    tags that it moves. Distribution fails the checks of the last five settings itself: it deletes no tags, has no
    referrers API, no sha512, and refuses layers that may not be distributed.
    """
    mirror.start({"docker.io": {"url": upstream3.url, "negative_ttl": "0s"}}, tag_ttl="0s")
    suite = Suite(tmp_path, "conformance")
    settings = {
        "TLS": "disabled",
        "API_TAGS_DELETE": "false",
        "API_MANIFESTS_DELETE": "false",
        "API_BLOBS_DELETE": "false",
        "API_REFERRER": "false",
        "DATA_SHA512": "false",
        "DATA_NONDISTRIBUTABLE": "false",
    }
    direct = suite.run(REGISTRY=upstream3.address, REPO1="direct/one", REPO2="direct/two", **settings)

    splitter = Splitter(tmp_path, reads=f"127.0.0.1:{mirror_port}", writes=upstream3.address)
    try:
        through = suite.run(REGISTRY=splitter.address, REPO1="split/one", REPO2="split/two", **settings)
    finally:
        splitter.stop()

    assert direct.failed == {}, direct.complaints
    assert direct.passed.total() == 420, "a suite that checks less would pass as well"
    assert through.failed == {}, through.complaints
    assert through.passed == direct.passed
    assert mirror.counted("mirror_requests_total", kind="manifest", status="200") > 100, "the reads went elsewhere"


def test_reads_conform_to_1_1(
    content: Content, mirror: MirrorProcess, mirror_port: int, tmp_path: Path, upstream3: Registry
) -> None:
    """The suite of version 1.1 finds nothing wrong with pulls and discovery, but for two checks that cannot pass."""
    mirror.start({"docker.io": {"url": upstream3.url}})

    outcome = Suite(tmp_path, "conformance11").run(
        ROOT_URL=f"http://127.0.0.1:{mirror_port}",
        NAMESPACE=REPOSITORY,
        TEST_PULL="1",
        TEST_CONTENT_DISCOVERY="1",
        TAG_NAME=TAGS[0],
        MANIFEST_DIGEST=content.manifest,
        BLOB_DIGEST=content.blobs[0],
        TAG_LIST=",".join(TAGS),
    )

    assert outcome.failed.keys() == CANNOT_PASS, outcome.complaints
    assert {name: times for name, times in outcome.passed.items() if " Setup " not in name} == {
        "Pull Pull blobs HEAD request to existing blob should yield 200": 1,
        "Pull Pull blobs HEAD request to nonexistent blob should result in 404 response": 1,
        "Pull Pull blobs GET request to existing blob URL should yield 200": 1,
        "Pull Pull blobs GET nonexistent blob should result in 404 response": 1,
        "Pull Pull manifests HEAD request to nonexistent manifest should return 404": 1,
        "Pull Pull manifests HEAD request to manifest path (digest) should yield 200 response": 2,
        "Pull Pull manifests HEAD request to manifest path (tag) should yield 200 response": 1,
        "Pull Pull manifests GET nonexistent manifest should return 404": 1,
        "Pull Pull manifests GET request to manifest path (digest) should yield 200 response": 2,
        "Pull Pull manifests GET request to manifest path (tag) should yield 200 response": 1,
        "Pull Error codes 400 response body should contain OCI-conforming JSON message": 1,
        f"{DISCOVERY} (listing tags) GET request to list tags should yield 200 response": 1,
        f"{DISCOVERY} (listing tags) GET number of tags should be limitable by `n` query parameter": 1,
        f"{DISCOVERY} (listing tags) GET start of tag is set by `last` query parameter": 1,
        f"{DISCOVERY} (listing references) GET request to nonexistent blob should result in empty 200 response": 1,
    }

"""What is no image, and the programs that move it: each gets from the mirror what it gets from the upstream.

These programs know no mirrors: their users write the mirror's name, with the upstream in the path.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.images import Image
from tests.e2e.mirrors import MirrorProcess
from tests.e2e.programs import need, run
from tests.e2e.registries import Registry
from tests.e2e.trixie import inside, need_trixie

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(60)]  # each test starts many programs

UPSTREAM = "ghcr.io"
# Nothing counts as fresh, so that a stopped upstream leaves no answer but the stale ones.
ALWAYS_EXPIRED = {"tag_ttl": "0s", "timeouts": {"stale_after": "500ms"}}

BOTH = pytest.mark.parametrize("upstream", ["docker-registry", "registry3"], indirect=True)


@dataclass(frozen=True, slots=True)
class Place:
    """A registry that a test can write to, and its name at the mirror."""

    registry: Registry
    home: Path
    mirrored: str
    """What replaces the registry's address to read through the mirror."""

    @property
    def direct(self) -> str:
        """The registry's own address."""
        return self.registry.address

    @property
    def log(self) -> Path:
        """The registry's log."""
        return self.registry.log

    def run(self, *argv: str | Path) -> str:
        """What a program prints that exits 0."""
        return run(*argv, home=self.home, seconds=30)

    def nameless(self, text: str) -> str:
        """Text without the names of the registry and of the mirror."""
        return text.replace(self.mirrored, "").replace(self.direct, "")

    def oras(self, *arguments: str | Path) -> str:
        """The same of oras, which looks for files where it runs."""
        return self.run("env", f"--chdir={self.home}", "oras", *arguments)

    def helm(self, *arguments: str | Path) -> str:
        """The same of helm, likewise."""
        return self.run("env", f"--chdir={self.home}", "helm", *arguments)

    def cosign(self, *arguments: str | Path) -> str:
        """The same of cosign, with an empty password for its key."""
        return self.run(*inside("env", "COSIGN_PASSWORD=", "cosign", *arguments, visible=self.home))


@pytest.fixture(params=["docker-registry"])
def upstream(request: pytest.FixtureRequest, tmp_path: Path, mirror_port: int) -> Iterator[Place]:
    """An empty upstream, as ghcr.io behind the mirror; the parameter is the program that it is."""
    home = tmp_path / "upstream"
    home.mkdir()
    registry = Registry(home / "store", home, program=request.param)
    yield Place(registry, home, f"127.0.0.1:{mirror_port}/{UPSTREAM}")
    registry.stop()


@pytest.fixture
def destination(tmp_path: Path) -> Iterator[Registry]:
    """Another registry, to copy to."""
    home = tmp_path / "destination"
    home.mkdir()
    registry = Registry(home / "store", home)
    yield registry
    registry.stop()


def same_everywhere(upstream: Place, mirror: MirrorProcess, read: Callable[[str], object]) -> None:
    """`read`, given a registry, finds the same at the upstream, at the mirror, and there after a restart without it."""
    upstreams = {UPSTREAM: {"url": upstream.registry.url, "negative_ttl": "10m"}}
    expected = read(upstream.direct)
    mirror.start(upstreams, **ALWAYS_EXPIRED)
    assert read(upstream.mirrored) == expected
    upstream.registry.stop()
    mirror.stop()
    mirror.start(upstreams, **ALWAYS_EXPIRED)
    assert read(upstream.mirrored) == expected


@BOTH
def test_crane_reads_validates_and_copies(
    upstream: Place, destination: Registry, mirror: MirrorProcess, image: Image
) -> None:
    """Crane finds the same names and manifests, validates every byte, and copies to another registry."""
    need("crane")
    image.push(upstream.direct, "team/app", "1", home=upstream.home)
    for tag in ("2", "latest"):
        upstream.run("crane", "tag", f"{upstream.direct}/team/app:1", tag)

    def read(registry: str) -> object:
        name, copy = f"{registry}/team/app", f"{destination.address}/{uuid.uuid4().hex}:1"
        upstream.run("crane", "validate", "--remote", f"{name}:1")
        upstream.run("crane", "copy", f"{name}:1", copy)
        return [
            upstream.run("crane", "digest", copy),
            upstream.run("crane", "digest", f"{name}:1"),
            upstream.run("crane", "manifest", f"{name}:2"),
            upstream.run("crane", "config", "--platform", "linux/arm64", f"{name}:latest"),
            in_order(upstream.run("crane", "ls", name)),
        ]

    same_everywhere(upstream, mirror, read)


@BOTH
def test_oras_pulls_discovers_and_copies(upstream: Place, destination: Registry, mirror: MirrorProcess) -> None:
    """Oras pulls an artifact's files, discovers what refers to it, however far away, and copies all of that."""
    need("oras")
    (upstream.home / "data.txt").write_text("data")
    (upstream.home / "report.json").write_text("[]")
    app, plain = f"{upstream.direct}/team/app:1", "--plain-http"
    pushed, attached = "application/vnd.example.data", "application/vnd.example.report"
    upstream.oras("push", plain, app, "--artifact-type", pushed, "--annotation", "for=tests", "data.txt:text/plain")
    for number in "12":
        kind = f"{attached}.{number}"
        upstream.oras("attach", plain, app, "--artifact-type", kind, "--annotation", f"number={number}", "report.json")
    report = json.loads(upstream.oras("discover", plain, app, "--format", "json", "--depth", "1"))["referrers"][0]
    upstream.oras("attach", plain, report["reference"], "--artifact-type", f"{attached}.of-a-report", "report.json")

    def read(registry: str) -> object:
        name, pulled = f"{registry}/team/app:1", upstream.home / uuid.uuid4().hex
        copy = f"{destination.address}/{pulled.name}:1"
        upstream.oras("pull", plain, name, "--output", pulled)
        # One at a time: oras may push a manifest while a blob that it shares with another is still on its way.
        copying = ("--recursive", "--concurrency", "1", "--from-plain-http", "--to-plain-http")
        upstream.oras("cp", *copying, name, copy)
        copied = upstream.oras("discover", plain, copy, "--format", "json")
        filtered = upstream.oras("discover", plain, name, "--format", "json", "--artifact-type", f"{attached}.2")
        return [
            {file.name: file.read_text() for file in pulled.iterdir()},
            upstream.oras("manifest", "fetch", plain, name),
            in_order(upstream.oras("repo", "tags", plain, name.removesuffix(":1"))),
            referrers(copied, copy),
            referrers(upstream.oras("discover", plain, name, "--format", "json"), name),
            referrers(filtered, name),
        ]

    same_everywhere(upstream, mirror, read)


def test_cosign_verifies_signatures_and_attestations(upstream: Place, mirror: MirrorProcess, image: Image) -> None:
    """Cosign finds an image's signature and attestation, and says of an image without any that it has none."""
    need_trixie()
    image.push(upstream.direct, "team/signed", "1", home=upstream.home)
    image.push(upstream.direct, "team/unsigned", "1", home=upstream.home)
    (upstream.home / "predicate.json").write_text("{}")
    upstream.cosign("generate-key-pair")
    signing = ("--key", "cosign.key", "--tlog-upload=false", "--yes")
    signed = f"team/signed@{image.digest}"
    upstream.cosign("sign", *signing, f"{upstream.direct}/{signed}")
    upstream.cosign(
        "attest", *signing, "--type", "custom", "--predicate", "predicate.json", f"{upstream.direct}/{signed}"
    )
    verifying = ("--key", "cosign.pub", "--insecure-ignore-tlog=true", "--output", "json")

    def read(registry: str) -> object:
        with pytest.raises(pytest.fail.Exception, match="no signatures found"):
            upstream.cosign("verify", *verifying, f"{registry}/team/unsigned:1")
        return [
            upstream.nameless(upstream.cosign("verify", *verifying, f"{registry}/team/signed:1")),
            upstream.nameless(
                upstream.cosign("verify-attestation", *verifying, "--type", "custom", f"{registry}/{signed}")
            ),
            sorted(upstream.nameless(upstream.cosign("tree", f"{registry}/{signed}")).splitlines()),
        ]

    same_everywhere(upstream, mirror, read)


def test_helm_pulls_charts(upstream: Place, mirror: MirrorProcess) -> None:
    """Helm shows and pulls a chart, of the version that it is told or of the newest that it finds."""
    need("helm")
    upstream.helm("create", "chart")
    for version in ("0.1.0", "0.2.0"):
        upstream.helm("package", "chart", "--version", version)
        upstream.helm("push", f"chart-{version}.tgz", f"oci://{upstream.direct}/charts", "--plain-http")

    def read(registry: str) -> object:
        name, pulled = f"oci://{registry}/charts/chart", upstream.home / uuid.uuid4().hex
        pulled.mkdir()
        # It would give what it has pulled before.
        asking = ("--plain-http", "--content-cache", upstream.home / f"cache-{pulled.name}")
        upstream.helm("pull", name, "--version", "0.1.0", "--destination", pulled, *asking)
        upstream.helm("pull", name, "--destination", pulled, *asking)
        shown = upstream.helm("show", "chart", name, "--version", "0.1.0", *asking)
        return [{file.name: file.read_bytes() for file in pulled.iterdir()}, upstream.nameless(shown)]

    same_everywhere(upstream, mirror, read)


def test_skopeo_inspects_and_lists(upstream: Place, mirror: MirrorProcess, image: Image) -> None:
    """Skopeo inspects an image and lists its repository's tags under the mirror's name."""
    need("skopeo")
    image.push(upstream.direct, "team/app", "1", home=upstream.home)

    def read(registry: str) -> object:
        name = f"docker://{registry}/team/app"
        return [
            upstream.run("skopeo", "inspect", "--raw", "--tls-verify=false", f"{name}:1"),
            upstream.nameless(upstream.run("skopeo", "inspect", "--tls-verify=false", f"{name}:1")),
            upstream.nameless(upstream.run("skopeo", "list-tags", "--tls-verify=false", name)),
        ]

    same_everywhere(upstream, mirror, read)


def in_order(tags: str) -> list[str]:
    """Tags, a line each; Distribution 2.8 gives them in any order, the mirror as the specification wants them."""
    return sorted(tags.splitlines())


def referrers(discovered: str, name: str) -> object:
    """The tree that `oras discover` found, without the name of the place, and in order: copies are made at once."""

    def tree(node: dict[str, Any]) -> object:
        return {**node, "referrers": sorted(map(tree, node.get("referrers") or []), key=str)}

    return tree(json.loads(discovered.replace(name.rpartition(":")[0], "")))

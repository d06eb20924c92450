"""One cluster for all tests of the chart, with registries around it; its end has to leave the machine as it was."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.clients.client import need_overlay
from tests.e2e.images import Image, build
from tests.e2e.programs import need
from tests.image.build import NAME, build_image
from tests.kubernetes.authority import Authority
from tests.kubernetes.cluster import PROGRAMS, Cluster
from tests.kubernetes.pods import Pods, describe
from tests.kubernetes.registries import HOSTS, PASSWORD, PLACES, PRIVATE, USER, Registries
from tests.kubernetes.release import NODE_PORT, URL, Release
from tests.kubernetes.settings import CERTS_D, NODE, RUNTIME
from tests.kubernetes.traces import traces


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test shows what the cluster and its programs say."""
    report = yield
    cluster = getattr(item, "funcargs", {}).get("cluster")
    if report.failed and report.when != "teardown" and isinstance(cluster, Cluster):
        report.sections.append((f"cluster: {cluster.logs}", describe(cluster)))
    return report


@pytest.fixture(scope="package")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Whom the node and the mirror trust when a registry says its name."""
    need("openssl")
    return Authority(tmp_path_factory.mktemp("authority"), HOSTS)


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Cluster]:
    """The cluster."""
    need(*PROGRAMS, "helm", root=True)
    home = tmp_path_factory.mktemp("kubernetes")
    need_overlay(home)
    before = traces(home)
    with Cluster(home, hosts=HOSTS, trusted=authority.ca) as started:
        yield started
    assert traces(home) == before


@pytest.fixture(scope="package")
def registries(cluster: Cluster, authority: Authority) -> Iterator[Registries]:
    """docker.io, quay.io and a private registry, as the cluster finds them."""
    with Registries(authority, cluster.inside) as serving:
        yield serving


@pytest.fixture(scope="package")
def pods(cluster: Cluster) -> Pods:
    """What runs on the node."""
    return Pods(cluster)


@pytest.fixture
def make_image(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., Image]:
    """Makes an image that has no blob in common with any other."""

    def make(name: str = "image", *, random_bytes: int = 1 << 20) -> Image:
        return build(tmp_path / name, greeting=f"{request.node.nodeid} {name}", random_bytes=random_bytes, apart=True)

    return make


@pytest.fixture(scope="package")
def mirror(
    cluster: Cluster, registries: Registries, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Release:
    """The mirror, where pods may do next to nothing, with a volume of the node's.

    It knows the private registry's password. Each registry is trusted by the authority that the cluster has for all.
    """
    cluster.load(build_image(tmp_path_factory), NAME)
    namespace(cluster, "mirror", profile="restricted")
    cluster.apply(*volume(cluster.home / "volume"), secret("corp", password=PASSWORD))
    cluster.apply(secret("authority", **{"ca.crt": authority.ca.read_text()}))
    release = Release(cluster, "mirror")
    release.install(VALUES)
    return release


@pytest.fixture(scope="package")
def untouched(cluster: Cluster, mirror: Release) -> list[str]:
    """What the directory of the node's container runtime has before anybody configures it; a file in our place, too."""
    cluster.write(CERTS_D / "_default" / "hosts.toml", "# the node's own\n")
    return cluster.tree(RUNTIME.parent)


@pytest.fixture(scope="package")
def nodes(
    cluster: Cluster,
    mirror: Release,
    untouched: list[str],
    registries: Registries,
    tmp_path_factory: pytest.TempPathFactory,
) -> Release:
    """The node, told of the mirror by the chart's DaemonSet, in a namespace that allows it, and pulling to see."""
    seen = build(tmp_path_factory.mktemp("seen") / "image", greeting="seen", random_bytes=1000, apart=True)
    registries["quay.io"].hold(seen, "team/seen", "1")
    namespace(cluster, "nodes", profile="privileged")
    release = Release(cluster, "nodes", "nodes")
    verify = {"image": "quay.io/team/seen:1", "admin": "http://mirror-admin.mirror.svc:5001"}
    release.install({"enabled": False, "image": IMAGE, "nodes": {"enabled": True, "mirror": URL, "verify": verify}})
    return release


REPOSITORY, _, TAG = NAME.rpartition(":")
IMAGE = {"repository": REPOSITORY, "tag": TAG, "pullPolicy": "Never"}
VALUES = {
    "image": IMAGE,
    "config": {
        "storage": {"max_size": "900MiB"},
        "upstreams": {PRIVATE.name: {"url": f"https://{PRIVATE.host}"}},
    },
    "credentials": {PRIVATE.name: {"secret": "corp", "type": "opaque", "username": USER}},
    "authorities": {place.name: {"secret": "authority"} for place in PLACES},
    "persistence": {"size": "1Gi", "storageClass": "local"},
    "service": {"type": "NodePort", "nodePort": NODE_PORT},
}
"""Of the mirror's release."""


def namespace(cluster: Cluster, name: str, *, profile: str) -> None:
    """A namespace that enforces a profile of Pod Security."""
    labels = {"pod-security.kubernetes.io/enforce": profile}
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})


def secret(name: str, **content: str) -> dict[str, Any]:
    """A secret that is there before the chart is installed."""
    metadata = {"name": name, "namespace": "mirror"}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": content}


def volume(directory: Path) -> tuple[dict[str, Any], ...]:
    """A class of storage that has one volume: this directory of the node's."""
    directory.mkdir()
    where = {"key": "kubernetes.io/hostname", "operator": "In", "values": [NODE]}
    return (
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": "local"},
            "provisioner": "kubernetes.io/no-provisioner",
            "volumeBindingMode": "WaitForFirstConsumer",
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": "cache"},
            "spec": {
                "capacity": {"storage": "1Gi"},
                "accessModes": ["ReadWriteOnce"],
                "storageClassName": "local",
                "local": {"path": str(directory)},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [where]}]}},
            },
        },
    )

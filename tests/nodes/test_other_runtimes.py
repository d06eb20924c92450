"""CRI-O, k3s and rke2, and Docker: their files, beside what they had."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest
import yaml

from mirror.nodes import RUNTIMES, Runtime, Unusable, Wanted, apply, find_runtime
from tests.nodes.conftest import Node

PLAIN, TLS = Wanted("http://mirror.test:5000"), Wanted("https://mirror.test", ca="a certificate")
CRIO, K3S, RKE2, DOCKER = (RUNTIMES[name] for name in ("crio", "k3s", "rke2", "docker"))
DROP_IN = "/etc/containers/registries.conf.d/mirror.conf"


def test_crio_gets_each_registry_in_full(node: Node) -> None:
    """The mirror's path names it, since these programs do not."""
    outcome = apply(CRIO, Wanted(PLAIN.mirror, ("quay.io", "docker.io")), node.root)

    assert tomllib.loads(node.text(DROP_IN))["registry"] == [
        {
            "prefix": name,
            "location": name,
            "mirror": [{"location": f"mirror.test:5000/{name}", "insecure": True}],
        }
        for name in ("quay.io", "docker.io")
    ]
    assert any("reload crio" in advice for advice in outcome.advice)


def test_crio_gets_the_well_known_registries(node: Node) -> None:
    """A drop-in can name no others than it lists."""
    apply(CRIO, TLS, node.root)

    entries = tomllib.loads(node.text(DROP_IN))["registry"]
    assert {"docker.io", "quay.io", "ghcr.io", "registry.k8s.io"} <= {entry["prefix"] for entry in entries}
    assert not any("insecure" in entry["mirror"][0] for entry in entries)
    assert node.text("/etc/containers/certs.d/mirror.test/ca.crt") == "a certificate"


def test_crio_keeps_what_another_file_says(node: Node) -> None:
    """Of two files with the same registry only one counts."""
    node.put("/etc/containers/registries.conf", 'unqualified-search-registries = ["docker.io"]\n')
    node.put("/etc/containers/registries.conf.d/10-mine.conf", '[[registry]]\nlocation = "quay.io"\nblocked = true\n')
    outcome = apply(CRIO, PLAIN, node.root)

    assert "quay.io" not in {entry["prefix"] for entry in tomllib.loads(node.text(DROP_IN))["registry"]}
    assert any("10-mine.conf" in advice for advice in outcome.advice)


@pytest.mark.parametrize("text", ["[registries.search]\n", "registry = 1", "registry = [1]", "[["])
def test_crio_files_of_no_use(node: Node, text: str) -> None:
    """Version 1 of the format, and what is none."""
    node.put("/etc/containers/registries.conf", text)

    with pytest.raises(Unusable, match=r"registries\.conf"):
        apply(CRIO, PLAIN, node.root)


@pytest.mark.parametrize("runtime", [K3S, RKE2], ids=["k3s", "rke2"])
def test_k3s_asks_the_mirror_first(node: Node, runtime: Runtime) -> None:
    """For every registry, with its authority."""
    apply(runtime, TLS, node.root)

    ca = f"{runtime.directory}/mirror-ca.pem"
    assert yaml.safe_load(node.text(f"{runtime.directory}/registries.yaml")) == {
        "mirrors": {"*": {"endpoint": ["https://mirror.test"]}},
        "configs": {"mirror.test": {"tls": {"ca_file": ca}}},
    }
    assert node.text(ca) == "a certificate"


def test_k3s_keeps_what_the_file_had(node: Node) -> None:
    """Other registries, other endpoints, other settings."""
    path = "/etc/rancher/k3s/registries.yaml"
    found: dict[str, Any] = {
        "mirrors": {"quay.io": {"endpoint": ["https://a.test"], "rewrite": {"^x": "y"}}, "b.test": None},
        "configs": {"mirror.test:5000": {"auth": {"username": "me"}}},
    }
    node.put(path, yaml.safe_dump(found))
    apply(K3S, Wanted(PLAIN.mirror, ("quay.io", "b.test")), node.root)

    found["mirrors"]["quay.io"]["endpoint"] = [PLAIN.mirror, "https://a.test"]
    found["mirrors"]["b.test"] = {"endpoint": [PLAIN.mirror]}
    assert yaml.safe_load(node.text(path)) == found


@pytest.mark.parametrize(
    "text", ["[1]", "mirrors: 7", "mirrors: {'*': [1]}", "mirrors: {'*': {endpoint: x}}", "a: b: c"]
)
def test_k3s_files_of_no_use(node: Node, text: str) -> None:
    """Named, and left."""
    node.put("/etc/rancher/k3s/registries.yaml", text)

    with pytest.raises(Unusable, match=r"registries\.yaml"):
        apply(K3S, PLAIN, node.root)


def test_docker_asks_the_mirror_first(node: Node) -> None:
    """What else is in the file stays, in its order."""
    node.put("/etc/docker/daemon.json", '{"log-level": "warn", "registry-mirrors": ["https://a.test"], "debug": true}')
    outcome = apply(DOCKER, TLS, node.root)

    found = json.loads(node.text("/etc/docker/daemon.json"))
    assert found == {"log-level": "warn", "registry-mirrors": ["https://mirror.test", "https://a.test"], "debug": True}
    assert list(found) == ["log-level", "registry-mirrors", "debug"]
    assert node.text("/etc/docker/certs.d/mirror.test/ca.crt") == "a certificate"
    assert any("reload docker" in advice for advice in outcome.advice)


def test_docker_that_has_the_mirror_already(node: Node) -> None:
    """Nothing to do."""
    node.put("/etc/docker/daemon.json", '{"registry-mirrors": ["http://mirror.test:5000/"]}')

    assert apply(DOCKER, PLAIN, node.root).changed == []


@pytest.mark.parametrize("text", ["[]", "{", '{"registry-mirrors": "x"}'])
def test_docker_files_of_no_use(node: Node, text: str) -> None:
    """Named, and left."""
    node.put("/etc/docker/daemon.json", text)

    with pytest.raises(Unusable, match=r"daemon\.json"):
        apply(DOCKER, PLAIN, node.root)


def test_docker_mirrors_docker_hub_alone(node: Node) -> None:
    """Whoever asks for more should know."""
    with pytest.raises(Unusable, match=r"quay\.io: dockerd asks mirrors for docker\.io alone"):
        apply(DOCKER, Wanted(PLAIN.mirror, ("docker.io", "quay.io")), node.root)


@pytest.mark.parametrize(
    ("there", "name"),
    [
        ([], "containerd"),
        (["/etc/docker"], "docker"),
        (["/etc/docker", "/etc/containerd"], "containerd"),
        (["/etc/crio", "/etc/containers"], "crio"),
        (["/etc/containerd", "/etc/rancher/k3s"], "k3s"),
        (["/etc/rancher/k3s", "/etc/rancher/rke2"], "rke2"),
    ],
)
def test_which_runtime_a_node_has(node: Node, there: list[str], name: str) -> None:
    """By its settings; containerd where nothing tells."""
    for path in there:
        (node.top / path.lstrip("/")).mkdir(parents=True)

    assert find_runtime(node.root).name == name

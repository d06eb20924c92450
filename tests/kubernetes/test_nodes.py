"""The DaemonSet: it tells the node of the mirror, and takes it back; and a mirror on a port of its node."""

from __future__ import annotations

import json
import tomllib

import pytest

from tests.e2e.processes import eventually
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.conftest import IMAGE, namespace
from tests.kubernetes.release import URL, Release
from tests.kubernetes.settings import CERTS_D, RUNTIME

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

HOSTS = CERTS_D / "_default" / "hosts.toml"
HOST_PORT = 25500
METRICS = 5002


def figures(nodes: Release, cluster: Cluster) -> str:
    """What the DaemonSet's pod tells."""
    address = nodes.daemon()["status"]["podIP"]
    return cluster.run("curl", "--silent", "--fail", f"http://{address}:{METRICS}/metrics")


def test_the_node_is_told_of_the_mirror(nodes: Release, cluster: Cluster) -> None:
    """Beside what it had; the pod says that it is done."""
    text = cluster.run("cat", HOSTS)

    assert list(tomllib.loads(text)["host"]) == [URL]
    assert "# the node's own" in text
    assert 'mirror_node_configured{runtime="containerd"} 1.0' in figures(nodes, cluster)
    assert 'mirror_node_advice{runtime="containerd"} 0.0' in figures(nodes, cluster)


def test_the_mirror_sees_what_the_node_pulls(nodes: Release, cluster: Cluster) -> None:
    """The pod has the node's own runtime pull an image, and reads in the mirror's figures that it was asked for it."""
    assert eventually(lambda: 'seen{runtime="containerd"} 1.0' in figures(nodes, cluster), seconds=120, every=0.5)


def test_a_pod_that_is_replaced_leaves_the_node_as_it_was_between(
    nodes: Release, cluster: Cluster, untouched: list[str]
) -> None:
    """By itself it restores when it ends, and the next one configures the node again."""
    configured = cluster.tree(RUNTIME.parent)
    selector = '{"spec":{"template":{"spec":{"nodeSelector":{"there":"none"}}}}}'
    nodes.kubectl("patch", f"daemonset/{nodes.daemon_set}", f"--patch={selector}")
    assert eventually(lambda: cluster.tree(RUNTIME.parent) == untouched, seconds=60, every=0.5)

    nodes.kubectl("rollout", "undo", f"daemonset/{nodes.daemon_set}")
    assert eventually(lambda: cluster.tree(RUNTIME.parent) == configured, seconds=60, every=0.5)
    nodes.kubectl("rollout", "status", f"daemonset/{nodes.daemon_set}", "--timeout=60s", seconds=90)


def test_a_mirror_on_a_port_of_its_node(cluster: Cluster, mirror: Release) -> None:
    """hostPort, with a cache that goes with the pod; nothing listens there afterwards."""
    namespace(cluster, "hosted", profile="privileged")
    hosted = Release(cluster, "hosted", "hosted")
    hosted.install(
        {
            "image": IMAGE,
            "hostPort": {"enabled": True, "port": HOST_PORT},
            "persistence": {"enabled": False, "size": "1Gi"},
        }
    )

    assert cluster.answers(f"http://127.0.0.1:{HOST_PORT}/v2/")
    hosted.uninstall()
    assert not cluster.answers(f"http://127.0.0.1:{HOST_PORT}/v2/")


def test_the_mirrors_own_namespace_does_not_let_pods_see_the_node(nodes: Release, cluster: Cluster) -> None:
    """It enforces `restricted`: whoever enables nodes there is refused by the cluster, and told why."""
    forbidden = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "seeing", "namespace": "mirror"},
        "spec": nodes.daemon()["spec"] | {"nodeName": None},
    }
    done = cluster.inside.run(
        "kubectl", "create", "--filename=-", "--dry-run=server",
        env=cluster.env, seconds=60, stdin=json.dumps(forbidden),
    )  # fmt: skip

    assert done.returncode != 0
    assert "hostPath" in done.stderr

"""The container runtimes that can be told of a mirror, and the directory in which each keeps its settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from mirror.nodes import containerd, crio, docker, k3s
from mirror.nodes.plan import Before, Plan
from mirror.nodes.root import Root
from mirror.nodes.wanted import Wanted


@dataclass(frozen=True, slots=True)
class Runtime:
    """`plan` computes what to write; it raises Unusable where something that was found cannot be worked with.

    `reload` says what makes the runtime read its files again; empty where it does so by itself.
    """

    name: str
    directory: str
    plan: Callable[[Wanted, Before, Root], Plan]
    reload: str = ""


RUNTIMES: Mapping[str, Runtime] = MappingProxyType(
    {
        runtime.name: runtime
        for runtime in (
            Runtime("containerd", containerd.DIRECTORY, containerd.plan),
            Runtime("crio", crio.DIRECTORY, crio.plan, "CRI-O reads its registries again with: systemctl reload crio"),
            Runtime(
                "k3s", k3s.K3S, k3s.planner(k3s.K3S), "k3s reads registries.yaml when it starts: systemctl restart k3s"
            ),
            Runtime("rke2", k3s.RKE2, k3s.planner(k3s.RKE2), "rke2 reads registries.yaml when it starts: restart it"),
            Runtime(
                "docker", docker.DIRECTORY, docker.plan, "dockerd reads its mirrors again with: systemctl reload docker"
            ),
        )
    }
)


def find_runtime(root: Root) -> Runtime:
    """The runtime whose settings a node has: k3s and rke2 before others, since they bring a containerd of their own.

    containerd where nothing tells.
    """
    for name in ("rke2", "k3s", "containerd", "docker"):
        if root.exists(RUNTIMES[name].directory):
            return RUNTIMES[name]
    return RUNTIMES["crio"] if root.exists("/etc/crio") else RUNTIMES["containerd"]

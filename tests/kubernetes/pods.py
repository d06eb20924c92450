"""Pods that run an image from a registry, and what the node says of its pull."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tests.e2e.processes import eventually, tail
from tests.kubernetes.cluster import Cluster

NAMESPACE = "default"
READY = 120.0  # seconds that a pod may take on a busy machine, whatever it waits for
_PULLED = re.compile(r"Successfully pulled image .* in (\S+) ")
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}


class Pods:
    """Pods of one namespace, by name."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def start(self, name: str, image: str) -> None:
        """Has the node pull `image`, asking even where it holds it, and run what sleeps in it."""
        container = {
            "name": "main",
            "image": image,
            "imagePullPolicy": "Always",
            "command": ["/bin/busybox", "sleep", "3600"],
        }
        self._cluster.apply(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "namespace": NAMESPACE},
                "spec": {"terminationGracePeriodSeconds": 0, "containers": [container]},
            }
        )

    def wait(self, name: str) -> float:
        """Returns once the pod runs: the seconds that the node says its pull took. Fails the test if it never does."""
        if not eventually(lambda: self._condition(name, "Ready") == "True", seconds=READY, every=0.2):
            raise TimeoutError(f"pod {name} does not run:\n{self._cluster.kubectl('describe', 'pod', name)}")
        events: list[dict[str, Any]] = self._cluster.get(
            "events", f"--field-selector=involvedObject.uid={self._uid(name)}"
        )["items"]
        for event in events:
            if pulled := _PULLED.search(event["message"]):
                return seconds(pulled[1])
        raise LookupError(f"no word of a pull by pod {name}: {events}")

    def run(self, name: str, image: str) -> float:
        """`start` and `wait`."""
        self.start(name, image)
        return self.wait(name)

    def remove(self) -> None:
        """Ends all of them, and returns when nothing of them holds their images on the node."""
        self._cluster.kubectl("delete", "pod", "--all", f"--namespace={NAMESPACE}", "--force", "--grace-period=0")
        if not eventually(self._are_gone, seconds=READY, every=0.5):
            raise TimeoutError(f"pods stay on the node:\n{self._cluster.crictl('pods')}")

    def _are_gone(self) -> bool:
        """Whether the node has none; ends those that it has, which a kubelet does once a minute only."""
        here = self._cluster.crictl("pods", f"--namespace={NAMESPACE}", "--quiet").split()
        for pod in here:
            self._cluster.try_crictl("rmp", "--force", pod)
        return not here

    def _condition(self, name: str, kind: str) -> str | None:
        conditions: list[Mapping[str, Any]] = self._cluster.get("pod", name)["status"].get("conditions", [])
        return next((condition["status"] for condition in conditions if condition["type"] == kind), None)

    def _uid(self, name: str) -> str:
        uid: str = self._cluster.get("pod", name)["metadata"]["uid"]
        return uid


def seconds(duration: str) -> float:
    """Of a duration as Go writes it, such as 1m2.5s or 350ms."""
    return sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"([\d.]+)(h|ms|us|µs|m|s)", duration))


def describe(cluster: Cluster) -> str:
    """The state of the cluster and the end of every log, for who has to find out why a test failed."""
    wanted = [
        ["kubectl", "get", "pods,events", "--all-namespaces", "--output=wide"],
        ["crictl", "ps", "--all"],
        *(["crictl", "logs", "--tail=50", container] for container in cluster.crictl("ps", "--all", "--quiet").split()),
    ]
    said = [f"{' '.join(words)}:\n{cluster.say(*words)}" for words in wanted]
    return "\n".join((*said, *(f"{log.name}:\n{tail(log)}" for log in sorted(cluster.logs.iterdir()))))

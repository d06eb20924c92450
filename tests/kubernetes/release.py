"""The chart on a cluster: installed, changed and removed by helm, and asked what its mirror has counted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.e2e.processes import eventually
from tests.kubernetes.cluster import Cluster
from tests.samples import total

CHART = Path(__file__).parents[2] / "helm" / "mirror"
PORT, ADMIN, NODE_PORT = 5000, 5001, 30500
URL = f"http://127.0.0.1:{NODE_PORT}"
"""Where the node finds the mirror."""

_HELM = 240.0  # seconds for one command of helm, which waits for pods


class Release:
    """One release, in `namespace`; `values` are the chart's, as they were given last."""

    def __init__(self, cluster: Cluster, namespace: str, name: str = "mirror") -> None:
        self._cluster = cluster
        self.namespace = namespace
        self.name = name
        self.values: dict[str, Any] = {}

    def install(self, values: Mapping[str, Any]) -> None:
        """Installs the chart and returns when all that it made is ready."""
        self._helm("install", values, "--wait")

    def upgrade(self, values: Mapping[str, Any], *, wait: bool = True) -> None:
        """Upgrades the release to these values; with `wait` returns when all of it is ready."""
        self._helm("upgrade", values, *(("--wait",) if wait else ()))

    def with_config(self, **settings: Any) -> dict[str, Any]:
        """The values that were given last, with other settings of the mirror's."""
        return {**self.values, "config": {**self.values["config"], **settings}}

    def test(self) -> str:
        """`helm test`, and what it said."""
        return self._cluster.run("helm", "test", self.name, f"--namespace={self.namespace}", "--logs", seconds=_HELM)

    def uninstall(self) -> None:
        """Removes the release and returns when its pods are gone; helm leaves the one of a test there."""
        self._cluster.run("helm", "uninstall", self.name, f"--namespace={self.namespace}", "--wait", seconds=_HELM)
        assert eventually(lambda: not any(map(_runs, self._pods())), seconds=_HELM, every=0.5), "its pods stay"

    def _helm(self, command: str, values: Mapping[str, Any], *options: str) -> None:
        self.values = dict(values)
        file = self._cluster.home / f"{self.namespace}.json"
        file.write_text(json.dumps(values))
        self._cluster.run(
            "helm", command, self.name, CHART, f"--namespace={self.namespace}", f"--values={file}",
            f"--timeout={_HELM:g}s", *options,
            seconds=_HELM + 30,
        )  # fmt: skip

    # The nodes' pods

    @property
    def daemon_set(self) -> str:
        """What is on every node."""
        return f"{self.name}-mirror-nodes"

    def daemon(self) -> dict[str, Any]:
        """Its only pod."""
        (pod,) = [pod for pod in self._pods() if _is_ready(pod)]
        return pod

    # The mirror's pod

    def scale(self, replicas: int) -> None:
        """Changes how many pods the mirror has, and waits until it has them."""
        self.kubectl("scale", f"statefulset/{self.name}", f"--replicas={replicas}")
        if replicas:
            self.ready()
        else:
            assert eventually(lambda: self._mirrors() == [], seconds=_HELM, every=0.5), "the mirror's pod stays"

    def ready(self) -> None:
        """Returns when the mirror's pod is the one that it shall have, and the node reaches it."""
        self.kubectl("rollout", "status", f"statefulset/{self.name}", f"--timeout={_HELM:g}s", seconds=_HELM + 30)
        assert eventually(self._serves, seconds=_HELM, every=0.2), "the mirror does not serve"

    def _serves(self) -> bool:
        return [_is_ready(pod) for pod in self._mirrors()] == [True] and self._cluster.answers(f"{URL}/v2/")

    def pod(self) -> dict[str, Any]:
        """The mirror's only pod."""
        (pod,) = self._mirrors()
        return pod

    def wait_until_closed(self, pod: Mapping[str, Any]) -> None:
        """Returns when this pod of the mirror's takes no connection for a pull any more."""
        address = (pod["status"]["podIP"], PORT)
        assert eventually(lambda: not self._cluster.connects(*address), seconds=60, every=0.1), f"{address} is open"

    def wait_until_gone(self, pod: Mapping[str, Any]) -> None:
        """Returns when nothing of this pod runs on the node."""
        label = f"--label=io.kubernetes.pod.uid={pod['metadata']['uid']}"
        assert eventually(lambda: not self._cluster.crictl("ps", "--quiet", label), seconds=60, every=0.1), "it runs on"

    def counted(self, metric: str, **labels: str) -> float:
        """The sum over all samples of the mirror's `metric` that carry these labels, since its pod has started."""
        url = f"http://{self.pod()['status']['podIP']}:{ADMIN}/metrics"
        text = self._cluster.run("curl", "--silent", "--show-error", "--fail", "--max-time", "20", url)
        return total(text, metric, **labels)

    def kubectl(self, *arguments: str, seconds: float = 60.0) -> str:
        """kubectl in the release's namespace."""
        return self._cluster.kubectl(f"--namespace={self.namespace}", *arguments, seconds=seconds)

    def _mirrors(self) -> list[dict[str, Any]]:
        return [
            pod
            for pod in self._pods()
            if any(owner["kind"] == "StatefulSet" for owner in pod["metadata"].get("ownerReferences", []))
        ]

    def _pods(self) -> list[dict[str, Any]]:
        pods: list[dict[str, Any]] = self._cluster.get("pods", f"--namespace={self.namespace}")["items"]
        return pods


def _runs(pod: Mapping[str, Any]) -> bool:
    return pod["status"].get("phase") not in ("Succeeded", "Failed")


def _is_ready(pod: Mapping[str, Any]) -> bool:
    conditions = {condition["type"]: condition["status"] for condition in pod["status"].get("conditions", [])}
    return conditions.get("Ready") == "True" and "deletionTimestamp" not in pod["metadata"]

"""The chart through `helm template`, and the combinations of values that the documentation tells of."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.e2e.programs import environment

CHART = Path(__file__).parents[2] / "helm" / "mirror"
HELMS = ("helm", "helm3")
KUBERNETES = ("1.31.0", "1.34.0", "1.37.0")
"""The oldest, the middle and the newest that the chart is checked against."""
IMAGE = {"image": {"repository": "registry.test/mirror"}}
Object = dict[str, Any]

DOCUMENTED: Mapping[str, Mapping[str, Any]] = {
    "defaults": {},
    "node port": {"service": {"type": "NodePort", "nodePort": 30500}, "nodes": {"enabled": True}},
    "verified": {
        "hostPort": {"enabled": True},
        "nodes": {"enabled": True, "verify": {"image": "registry.k8s.io/pause:3.10"}},
    },
    "any node port": {"service": {"type": "NodePort"}},
    "load balancer": {"service": {"type": "LoadBalancer", "port": 80, "annotations": {"a.test/b": "c"}}},
    "host port": {"hostPort": {"enabled": True, "port": 25500}, "nodes": {"enabled": True, "runtime": "crio"}},
    "ingress": {
        "ingress": {"enabled": True, "className": "nginx", "host": "mirror.test", "tlsSecret": "mirror-tls"},
        "nodes": {"enabled": True, "runtime": "k3s", "registries": ["docker.io", "quay.io"]},
    },
    "gateway": {"httpRoute": {"enabled": True, "parentRefs": [{"name": "public"}], "hostnames": ["mirror.test"]}},
    "tls": {"tls": {"enabled": True, "existingSecret": "mirror-tls", "clientCA": True}, "hostPort": {"enabled": True}},
    "cert-manager": {
        "tls": {
            "enabled": True,
            "certManager": {
                "enabled": True,
                "issuerRef": {"name": "corp", "kind": "ClusterIssuer"},
                "dnsNames": ["mirror.test"],
            },
        }
    },
    "emptyDir": {"persistence": {"enabled": False, "size": "10Gi"}},
    "private": {
        "config": {"upstreams": {"registry.corp:5000": {"tag_ttl": "30s"}}, "shutdown_grace": "2m", "workers": 2},
        "credentials": {
            "docker.io": {"secret": "hub", "type": "dockerconfigjson"},
            "registry.corp:5000": {"secret": "corp", "type": "opaque", "key": "token", "username": "ci"},
        },
        "authorities": {"registry.corp:5000": {"configMap": "corp-ca"}, "quay.io": {"secret": "quay", "key": "ca.pem"}},
    },
    "replicas": {"replicas": 3, "reload": "watch"},
    "prometheus": {
        "metrics": {"annotations": True, "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}}},
        "networkPolicy": {"adminFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}]},
    },
    "open": {"networkPolicy": {"enabled": False}},
    "placed": {
        "imagePullSecrets": ["pull"],
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "cache", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "system-cluster-critical",
        "podAnnotations": {"a": "b"},
        "podLabels": {"team": "platform"},
        "env": [{"name": "HTTPS_PROXY", "value": "http://proxy.test"}],
        "persistence": {"storageClass": "fast", "whenDeleted": "Delete", "annotations": {"a": "b"}},
        "image": {"repository": "registry.test/mirror", "digest": f"sha256:{'a' * 64}"},
    },
    "nodes alone": {
        "enabled": False,
        "nodes": {
            "enabled": True,
            "mirror": "https://mirror.test",
            "caConfigMap": "mirror-ca",
            "addConfigPath": True,
        },
    },
}


class Unrendered(Exception):
    """helm has refused, in these words."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """All objects of a release named `mirror` in the namespace `caches`, and the text that they came from."""

    text: str

    def __iter__(self) -> Iterator[Object]:
        return (found for found in yaml.safe_load_all(self.text) if found)

    def all(self, kind: str) -> list[Object]:
        """The objects of a kind."""
        return [found for found in self if found["kind"] == kind]

    def one(self, kind: str, name: str = "") -> Object:
        """The only one of a kind, or the one of a name."""
        (found,) = (it for it in self.all(kind) if name in ("", it["metadata"]["name"]))
        return found

    def pod(self, kind: str = "StatefulSet") -> Object:
        """The pods' specification."""
        spec: Object = self.one(kind)["spec"]["template"]["spec"]
        return spec

    def config(self) -> Object:
        """The mirror's settings."""
        settings: Object = yaml.safe_load(self.one("ConfigMap")["data"]["mirror.yaml"])
        return settings


def render(values: Mapping[str, Any], home: Path, *, helm: str = "helm", chart: Path = CHART) -> Rendered:
    """What `helm template` makes of these values. Raises Unrendered."""
    version = f"--kube-version={KUBERNETES[1]}"
    return Rendered(run(helm, home, values, "template", "mirror", str(chart), "--namespace=caches", version))


def run(helm: str, home: Path, values: Mapping[str, Any], *arguments: str) -> str:
    """What helm prints. Raises Unrendered."""
    home.mkdir(exist_ok=True)
    file = home / "values.json"
    file.write_text(json.dumps({**IMAGE, **values}))
    done = subprocess.run(
        [helm, *arguments, f"--values={file}"], env=environment(home), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Unrendered(done.stdout + done.stderr)
    return done.stdout

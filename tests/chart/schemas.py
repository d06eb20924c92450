"""What the API servers of several versions accept, with nothing beside it, as files for kubeconform."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from tests.chart.rendering import KUBERNETES
from tests.e2e.recipes import CACHE

CRDS = CACHE / "crds"
_PACKAGE = "kubernetes_validate"
_KINDS = (
    "configmap-v1",
    "daemonset-apps-v1",
    "ingress-networking-v1",
    "networkpolicy-networking-v1",
    "pod-v1",
    "poddisruptionbudget-policy-v1",
    "service-v1",
    "statefulset-apps-v1",
)
_DEFINITIONS = "_definitions.json"
_REFERRED = f"/api/{_DEFINITIONS}"
_ANYTHING = "x-kubernetes-preserve-unknown-fields"


def write(top: Path) -> list[str]:
    """Writes them below `top`, and returns where kubeconform has to look for them."""
    source = resources.files(_PACKAGE) / "kubernetes-json-schema"
    for version in KUBERNETES:
        target = top / f"v{version}"
        target.mkdir(parents=True)
        for name in (*(f"{kind}.json" for kind in _KINDS), _DEFINITIONS):
            schema = json.loads((source / f"v{version}-local" / name).read_text().replace(_REFERRED, _DEFINITIONS))
            schema.pop("$id", None)  # they are found by their files
            (target / name).write_text(json.dumps(_strict(schema)))
    custom = top / "custom"
    custom.mkdir()
    for path in sorted(CRDS.glob("*.yaml")):
        for crd in yaml.load_all(path.read_text(), yaml.CSafeLoader):
            spec = crd["spec"]
            for version in spec["versions"]:
                schema = _strict(version["schema"]["openAPIV3Schema"])
                name = f"{spec['names']['kind']}-{spec['group'].partition('.')[0]}-{version['name']}.json".lower()
                (custom / name).write_text(json.dumps(schema))
    kind = "{{.ResourceKind}}{{.KindSuffix}}.json"
    return [f"{top}/{{{{.NormalizedKubernetesVersion}}}}/{kind}", f"{custom}/{kind}"]


def _strict(schema: Any) -> Any:
    """The schema without room for what it does not name."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(value) for key, value in schema.items()}
    kinds = schema.get("type")
    is_object = "object" in kinds if isinstance(kinds, str | list) else False
    named = is_object and isinstance(schema.get("properties"), dict)
    if named and "additionalProperties" not in schema and not schema.get(_ANYTHING):
        strict["additionalProperties"] = False
        if "apiVersion" in strict["properties"]:
            strict["properties"].setdefault("metadata", {})
    return strict

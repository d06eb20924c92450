"""k3s and rke2: the mirror as the first endpoint in `registries.yaml`, of which they make hosts files themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml

from mirror.nodes.errors import Unusable
from mirror.nodes.plan import Before, Plan, text_before
from mirror.nodes.root import Root
from mirror.nodes.wanted import WRITTEN_BY, Wanted

K3S, RKE2 = "/etc/rancher/k3s", "/etc/rancher/rke2"
_ALL = "*"


def planner(directory: str) -> Callable[[Wanted, Before, Root], Plan]:
    """Computes the files in this directory."""

    def plan(wanted: Wanted, before: Before, root: Root) -> Plan:
        path, ca = f"{directory}/registries.yaml", f"{directory}/mirror-ca.pem"
        found = _parse(path, text_before(before, path) or "")
        mirrors = _table(path, found, "mirrors")
        for name in wanted.registries or (_ALL,):
            settings = _table(path, mirrors, name)
            endpoints = settings.setdefault("endpoint", [])
            if not isinstance(endpoints, list):
                raise Unusable(f"{path}: the endpoint of {name} should be a list")
            if wanted.mirror not in endpoints:
                endpoints.insert(0, wanted.mirror)
        made = Plan()
        if wanted.ca is not None:
            made.files[ca] = wanted.ca.encode()
            _table(path, _table(path, _table(path, found, "configs"), wanted.host), "tls").setdefault("ca_file", ca)
        made.files[path] = (f"# {WRITTEN_BY}\n" + yaml.safe_dump(found, sort_keys=False)).encode()
        return made

    return plan


def _parse(path: str, text: str) -> dict[str, Any]:
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise Unusable(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise Unusable(f"{path} should have mirrors and configs by name")
    return found


def _table(path: str, found: dict[str, Any], key: str) -> dict[str, Any]:
    """The mapping at a key, made where there is none."""
    if found.get(key) is None:
        found[key] = {}
    table = found[key]
    if not isinstance(table, dict):
        raise Unusable(f"{path}: {key} should have settings by name")
    return table

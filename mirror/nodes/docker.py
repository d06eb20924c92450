"""Docker: the mirror in front of others in `daemon.json`, for Docker Hub, the only registry that dockerd mirrors."""

from __future__ import annotations

import json
from typing import Any

from mirror.config.names import HUB
from mirror.nodes.errors import Unusable
from mirror.nodes.plan import Before, Plan, text_before
from mirror.nodes.root import Root
from mirror.nodes.wanted import Wanted

DIRECTORY = "/etc/docker"
FILE = f"{DIRECTORY}/daemon.json"
_KEY = "registry-mirrors"


def plan(wanted: Wanted, before: Before, root: Root) -> Plan:
    """The file with the mirror. Raises Unusable for a file that is not understood, and for other registries."""
    others = [name for name in wanted.registries if name != HUB]
    if others:
        raise Unusable(f"{', '.join(others)}: dockerd asks mirrors for {HUB} alone")
    found = _parse(text_before(before, FILE))
    mirrors = found.get(_KEY, [])
    if not isinstance(mirrors, list):
        raise Unusable(f"{FILE}: {_KEY} should be a list of URLs")
    made = Plan()
    if wanted.mirror not in [str(mirror).rstrip("/") for mirror in mirrors]:
        text = json.dumps({**found, _KEY: [wanted.mirror, *mirrors]}, indent=2, ensure_ascii=False) + "\n"
        made.files[FILE] = text.encode()
    if wanted.ca is not None:
        made.files[f"{DIRECTORY}/certs.d/{wanted.host}/ca.crt"] = wanted.ca.encode()
    return made


def _parse(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text) if text and text.strip() else {}
    except ValueError as error:
        raise Unusable(f"{FILE} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise Unusable(f"{FILE} should be an object")
    return found

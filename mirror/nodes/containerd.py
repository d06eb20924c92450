"""containerd: a `hosts.toml` for all registries, or one for each that is named, below its `config_path`."""

from __future__ import annotations

import re
import tomllib
from typing import Any

from mirror.config.wellknown import upstream_settings
from mirror.nodes import containerd_config
from mirror.nodes.errors import Unusable
from mirror.nodes.plan import Before, Plan, text_before
from mirror.nodes.root import Root
from mirror.nodes.wanted import WRITTEN_BY, Wanted

DIRECTORY = "/etc/containerd"
ALL = "_default"
_CA = "mirror-ca.pem"
_TABLE = re.compile(r"^[ \t]*\[", re.MULTILINE)


def plan(wanted: Wanted, before: Before, root: Root) -> Plan:
    """The files for what is wanted. Raises Unusable for files that are not understood."""
    made = Plan()
    settings = containerd_config.read(before, root)
    if settings.config_path is None:
        containerd_config.provide(settings, made, before, add=wanted.add_config_path)
    top = settings.directory
    for name in wanted.registries or (ALL,):
        path = f"{top}/{name}/hosts.toml"
        text = _with_mirror(path, text_before(before, path), name, wanted)
        if text is None:
            made.advice.append(f"{path} names {wanted.mirror} already: it is left as it is")
            continue
        made.files[path] = text.encode()
        if wanted.ca is not None:
            made.files[f"{top}/{name}/{_CA}"] = wanted.ca.encode()
    if not wanted.registries:
        own = [name for name in root.names(top) if name != ALL and root.exists(f"{top}/{name}/hosts.toml")]
        if own:
            made.advice.append(
                f"{', '.join(own)}: with a directory of its own in {top}, which {ALL} does not touch. "
                "Name those that shall go through the mirror with --registry"
            )
    return made


def _with_mirror(path: str, found: str | None, name: str, wanted: Wanted) -> str | None:
    """The file with the mirror in front of whatever else it names; None where it names it already."""
    block = _block(wanted)
    if found is None:
        # Without a server containerd asks the registry itself after the mirror: right for all of them.
        server = "" if name == ALL else f'server = "{upstream_settings(name, None).url}"\n\n'
        return f"# {WRITTEN_BY}\n{server}{block}"
    old = _parse(path, found)
    hosts = old.get("host", {})
    if not isinstance(hosts, dict):
        raise Unusable(f"{path}: host is no table, so it is no hosts.toml")
    if wanted.mirror in hosts:
        return None
    first = _TABLE.search(found)
    at = first.start() if first else len(found)
    head = found[:at] if found[:at].endswith("\n") or not found[:at] else found[:at] + "\n"
    mixed = f"{head}# {WRITTEN_BY}\n{block}\n{found[at:]}"
    expected = {**old, "host": {**_parse(path, block)["host"], **hosts}}
    new = _parse(path, mixed)
    if new != expected or next(iter(new["host"])) != wanted.mirror:
        raise Unusable(f"{path} is written in a way that nothing can be put in front of: add\n\n{block}\nby hand")
    return mixed


def _block(wanted: Wanted) -> str:
    lines = [
        f'[host."{wanted.mirror}"]',
        '  capabilities = ["pull", "resolve"]',
        '  dial_timeout = "1s"',  # else a node waits 30 s for each request while the mirror's machine is off
    ]
    if wanted.ca is not None:
        lines.append(f'  ca = "{_CA}"')
    return "\n".join(lines) + "\n"


def _parse(path: str, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Unusable(f"{path} is no TOML: {error}") from None

"""CRI-O, and podman with it: one drop-in of `registries.conf.d` that names the mirror for each registry."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator

from mirror.config.wellknown import WELL_KNOWN
from mirror.nodes.errors import Unusable
from mirror.nodes.plan import Before, Plan
from mirror.nodes.root import Root
from mirror.nodes.wanted import WRITTEN_BY, Wanted

DIRECTORY = "/etc/containers"
FILE = f"{DIRECTORY}/registries.conf.d/mirror.conf"
_MAIN = f"{DIRECTORY}/registries.conf"


def plan(wanted: Wanted, before: Before, root: Root) -> Plan:
    """A drop-in for the registries that are wanted, without those that another file has settings for."""
    made = Plan()
    taken = dict(_taken(root))
    blocks = []
    for name in wanted.registries or [name for name in WELL_KNOWN if "*" not in name]:
        if name in taken:
            made.advice.append(f"{name} is configured in {taken[name]}: it is left as it is there, without the mirror")
        else:
            blocks.append(_block(name, wanted))
    if blocks:
        made.files[FILE] = (f"# {WRITTEN_BY}\n" + "\n".join(blocks)).encode()
    if wanted.ca is not None:
        made.files[f"{DIRECTORY}/certs.d/{wanted.host}/ca.crt"] = wanted.ca.encode()
    return made


def _block(name: str, wanted: Wanted) -> str:
    insecure = "insecure = true\n" if wanted.is_plain else ""
    return (
        f'[[registry]]\nprefix = "{name}"\nlocation = "{name}"\n\n'
        f'[[registry.mirror]]\nlocation = "{wanted.host}/{name}"\n{insecure}'
    )


def _taken(root: Root) -> Iterator[tuple[str, str]]:
    """The registries that other files have settings for, with the file. Raises Unusable for files of no use."""
    drop_ins = [f"{DIRECTORY}/registries.conf.d/{name}" for name in root.names(f"{DIRECTORY}/registries.conf.d")]
    for path in [_MAIN, *(path for path in drop_ins if path.endswith(".conf") and path != FILE)]:
        text = root.read_text(path)
        try:
            found = tomllib.loads(text or "")
        except tomllib.TOMLDecodeError as error:
            raise Unusable(f"{path} is no TOML: {error}") from None
        if "registries" in found:
            raise Unusable(f"{path} has [registries]: that is version 1 of the format, which knows no mirrors")
        entries = found.get("registry", [])
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise Unusable(f"{path}: registry should be a list of tables, [[registry]]")
        for entry in entries:
            yield str(entry.get("prefix") or entry.get("location")), path

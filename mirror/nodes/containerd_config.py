"""containerd's own `config.toml`: does it read hosts files, from where, and the lines that make it do so."""

from __future__ import annotations

import fnmatch
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from mirror.nodes.errors import Unusable
from mirror.nodes.plan import Before, Plan, text_before
from mirror.nodes.root import Root

FILE = "/etc/containerd/config.toml"
CERTS = "/etc/containerd/certs.d"
_OLD, _NEW = "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images"
_MOST_IMPORTS = 64
_KEY = re.compile(r"\s*config_path\s*=")


@dataclass(frozen=True, slots=True)
class Settings:
    """`config_path` is None where nothing sets it. `version` is that of the file, 0 where there is none."""

    config_path: str | None
    version: int
    has_mirrors: bool

    @property
    def directory(self) -> str:
        """Where hosts files belong: of several directories the first one is asked first."""
        return (self.config_path or CERTS).split(":")[0].rstrip("/")

    @property
    def table(self) -> str:
        """The name of the table that the setting belongs in; a file of version 2 is understood by all."""
        return f'plugins."{_NEW if self.version > 2 else _OLD}".registry'

    @property
    def lines(self) -> str:
        """What to add to the file."""
        version = "" if self.version else "version = 2\n\n"
        return f'{version}[{self.table}]\n  config_path = "{CERTS}"\n'


def read(before: Before, root: Root) -> Settings:
    """What the file and those that it imports say. Raises Unusable for one that is no TOML."""
    config_path, has_mirrors, version = None, False, 0
    for path, found in _files(before, root):
        if path == FILE:
            version = found.get("version", 1)
            if not isinstance(version, int):
                raise Unusable(f"{FILE}: version is {version!r}, and should be a number")
        for plugin in (_OLD, _NEW):
            registry = _at(found, "plugins", plugin, "registry")
            has_mirrors = has_mirrors or bool(registry.get("mirrors"))
            told = registry.get("config_path")
            if told is not None and not (isinstance(told, str) and (not told or told.startswith("/"))):
                raise Unusable(f"{path}: config_path is {told!r}, and should be the path of a directory")
            config_path = told or config_path
    return Settings(config_path, version, has_mirrors)


def provide(settings: Settings, plan: Plan, before: Before, *, add: bool) -> None:
    """Has `config_path` set, or tells which lines set it. Raises Unusable where they cannot be added."""
    if settings.has_mirrors:
        raise Unusable(
            f"{FILE} has registry.mirrors, with which containerd reads no hosts.toml. Move them to {CERTS}, then add:"
            f"\n\n{settings.lines}"
        )
    if not add:
        plan.advice.append(
            f"{FILE} sets no config_path: containerd before 2.2 reads {CERTS} only with these lines, and a restart "
            f"(--add-config-path adds them):\n\n{settings.lines}"
        )
        return
    plan.files[FILE] = with_config_path(text_before(before, FILE), settings).encode()
    plan.advice.append("containerd reads its config.toml when it starts: systemctl restart containerd")


def with_config_path(text: str | None, settings: Settings) -> str:
    """The file with `config_path` set, and otherwise as it was. Raises Unusable where that cannot be done."""
    if text is None:
        return settings.lines
    if settings.version == 1:
        raise Unusable(
            f"{FILE} is of version 1, which has no place for it: rewrite it with `containerd config migrate`"
        )
    lines = text.splitlines(keepends=True)
    at = next((number for number, line in enumerate(lines) if _is_header(line, _plugin(settings))), None)
    if at is None:
        new = text + ("" if text.endswith("\n") or not text else "\n") + "\n" + settings.lines
    else:
        end = next((n for n in range(at + 1, len(lines)) if lines[n].lstrip().startswith("[")), len(lines))
        kept = [line for line in lines[at + 1 : end] if not _KEY.match(line)]
        new = "".join([*lines[:at], lines[at].rstrip("\n"), f'\n  config_path = "{CERTS}"\n', *kept, *lines[end:]])
    expected = _with(_parse(FILE, text), CERTS, "plugins", _plugin(settings), "registry", "config_path")
    try:
        got: object = tomllib.loads(new)
    except tomllib.TOMLDecodeError:
        got = None
    if got != expected:
        raise Unusable(f"{FILE} is written in a way that nothing can be added to. Add by hand:\n\n{settings.lines}")
    return new


def _is_header(line: str, plugin: str) -> bool:
    return bool(re.match(rf"\s*\[\s*plugins\s*\.\s*(['\"]){re.escape(plugin)}\1\s*\.\s*registry\s*\]", line))


def _plugin(settings: Settings) -> str:
    return _NEW if settings.version > 2 else _OLD


def _files(before: Before, root: Root) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The file and those that it imports, directly or not; what comes later overrides."""
    waiting, seen = [FILE], set[str]()
    while waiting:
        path = waiting.pop(0)
        text = text_before(before, path)
        if path in seen or text is None:
            continue
        seen.add(path)
        if len(seen) > _MOST_IMPORTS:
            raise Unusable(f"{FILE} imports more than {_MOST_IMPORTS} files")
        found = _parse(path, text)
        yield path, found
        imports = found.get("imports", [])
        if not isinstance(imports, list) or not all(isinstance(pattern, str) for pattern in imports):
            raise Unusable(f"{path}: imports should be a list of paths")
        for pattern in imports:
            wanted = PurePosixPath(path).parent / pattern
            names = fnmatch.filter(root.names(str(wanted.parent)), wanted.name)
            waiting += [str(wanted.parent / name) for name in names]


def _at(found: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """The table at some keys; an empty one where there is none."""
    for key in keys:
        found = found.get(key, {})
        if not isinstance(found, dict):
            return {}
    return found


def _with(found: Mapping[str, Any], value: str, *keys: str) -> dict[str, Any]:
    if len(keys) == 1:
        return {**found, keys[0]: value}
    return {**found, keys[0]: _with(_at(found, keys[0]), value, *keys[1:])}


def _parse(path: str, text: str) -> Mapping[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Unusable(f"{path} is no TOML: {error}") from None

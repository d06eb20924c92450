"""Settings from the environment: `MIRROR_<SECTION>__<KEY>` as text, lists and maps as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping

from mirror.config.keys import closest, is_collection, leaves
from mirror.config.mistakes import dotted
from mirror.config.source import KeyPath, Source

PREFIX = "MIRROR_"
# What Kubernetes gives every container in the namespace of a Service named mirror.
_SERVICE_LINK = re.compile(
    r"MIRROR_SERVICE_HOST|MIRROR_SERVICE_PORT(?:_[A-Z0-9_]+)?|MIRROR_PORT_\d+_(?:TCP|UDP|SCTP)(?:_(?:ADDR|PORT|PROTO))?"
)
_SERVICE_URL = re.compile(r"(?:tcp|udp|sctp)://")


def variable(path: Iterable[str]) -> str:
    """The variable that sets the key at `path`: `MIRROR_STORAGE__MAX_SIZE`."""
    return PREFIX + "__".join(path).upper()


def read_environment(environ: Mapping[str, str]) -> Source:
    """What the variables that start with `MIRROR_` set; unknown ones and broken JSON are in the result's `problems`."""
    known = {variable(path): (path, field) for path, field in leaves()}
    data: dict[str, object] = {}
    origins: dict[KeyPath, str] = {}
    problems: list[str] = []
    for name in sorted(name for name in environ if name.startswith(PREFIX)):
        if name not in known:
            if not _is_service_link(name, environ[name]):
                problems.append(f"environment variable {name}: is not a setting; {_instead(name, known)}")
            continue
        path, field = known[name]
        value: object = environ[name]
        if is_collection(field):
            try:
                value = json.loads(environ[name], object_pairs_hook=_unique)
            except (ValueError, RecursionError) as exc:
                problems.append(f"environment variable {name}: {dotted(path)} is not valid JSON ({_reason(exc)})")
                continue
        _put(data, path, value)
        origins.update((inner, f"environment variable {name}") for inner in _paths(value, path))
    return Source(data, origins, tuple(problems))


def _is_service_link(name: str, value: str) -> bool:
    if name == "MIRROR_PORT":
        # A bare number is someone who hopes that this sets our port.
        return _SERVICE_URL.match(value) is not None
    return _SERVICE_LINK.fullmatch(name) is not None


def _instead(name: str, known: Iterable[str]) -> str:
    found = closest(name.removeprefix(PREFIX), [other.removeprefix(PREFIX) for other in known])
    return (
        f"did you mean {PREFIX}{found}?" if found else "expected one such as MIRROR_LISTEN or MIRROR_STORAGE__MAX_SIZE"
    )


class _Repeated(ValueError):
    """A key is there twice in one JSON object."""


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise _Repeated("a key is there twice")
    return result


def _reason(error: Exception) -> str:
    """Why JSON could not be read, without what it held."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos + 1}"
    return str(error) if isinstance(error, _Repeated) else "it is nested too deeply or has too long a number"


def _put(data: dict[str, object], path: tuple[str, ...], value: object) -> None:
    for part in path[:-1]:
        inner = data.setdefault(part, {})
        assert isinstance(inner, dict)
        data = inner
    data[path[-1]] = value


def _paths(value: object, path: KeyPath) -> list[KeyPath]:
    inner = value.items() if isinstance(value, dict) else ()
    return [path, *(found for key, child in inner for found in _paths(child, (*path, key)))]

"""YAML files: plain data with the line of every key; no surprises of YAML 1.1 and no key twice."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from mirror.config.mistakes import dotted
from mirror.config.source import KeyPath, Source

_SIZE_LIMIT = 1 << 20
_DEPTH_LIMIT = 16
_TAG = "tag:yaml.org,2002:"
_NUMBER = re.compile(r"[-+]?(?:0|[1-9]\d{0,17})", re.ASCII)
_REAL = re.compile(r"[-+]?\d{1,18}\.\d{0,18}", re.ASCII)
_QUOTED = re.compile(r"(['\"])(.*?)\1", re.DOTALL)
_NOTHING = object()
"""In place of a value about which a problem has been noted."""


class _Loader(yaml.BaseLoader):
    """Knows null, true, false and decimal numbers; `yes`, `off`, `0123`, `1:30` and dates stay the text they are."""


_Loader.add_implicit_resolver(f"{_TAG}null", re.compile(r"(?:~|null|Null|NULL|)\Z"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(f"{_TAG}bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), list("tTfF"))
_Loader.add_implicit_resolver(f"{_TAG}int", re.compile(rf"(?:{_NUMBER.pattern})\Z"), list("-+0123456789"))
_Loader.add_implicit_resolver(f"{_TAG}float", re.compile(rf"(?:{_REAL.pattern})\Z"), list("-+0123456789"))


def read_document(path: Path) -> Source:
    """Reads a configuration file; what is wrong with it as a file or as YAML is in the result's `problems`."""
    try:
        with path.open("rb") as file:
            raw = file.read(_SIZE_LIMIT + 1)
    except OSError as exc:
        return _unreadable(f"{path}: cannot be read ({exc.strerror}); expected a YAML file")
    if len(raw) > _SIZE_LIMIT:
        return _unreadable(f"{path}: is larger than 1MiB; expected a configuration in YAML")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        return _unreadable(f"{path}: is not UTF-8 text (byte {exc.start}); expected YAML")
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.reader.ReaderError as exc:
        line = text.count("\n", 0, exc.position) + 1
        return _unreadable(f"{path}:{line}: holds a control character; expected YAML")
    except yaml.MarkedYAMLError as exc:
        return _unreadable(f"{path}{_position(exc)}: is not valid YAML: {_problem(exc)}")
    except RecursionError:
        return _unreadable(f"{path}: is nested too deeply; expected YAML")
    return _Reading(path).source(node)


class _Reading:
    """One walk over a file's nodes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._origins: dict[KeyPath, str] = {}
        self._problems: list[str] = []

    def source(self, node: yaml.Node | None) -> Source:
        data = {} if node is None else self._value(node, ())
        if data is None or data is _NOTHING:
            data = {}
        if not isinstance(data, dict):
            return _unreadable(f"{self._path}: holds {_kind(data)} at the top; expected a mapping of keys")
        return Source(data, self._origins, tuple(self._problems))

    def _value(self, node: yaml.Node, path: KeyPath) -> object:
        if len(path) > _DEPTH_LIMIT:
            self._problem(node, path, "is nested too deeply, or holds itself; expected fewer levels")
            return _NOTHING
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            children = {key: self._value(child, (*path, key)) for key, child in self._items(node, path)}
            return {key: child for key, child in children.items() if child is not _NOTHING}
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            return [self._value(child, (*path, index)) for index, child in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and node.tag in _SCALARS:
            return _SCALARS[node.tag](node.value)
        self._problem(node, path, "has a tag; expected a plain value")
        return _NOTHING

    def _items(self, node: yaml.MappingNode, path: KeyPath) -> Iterator[tuple[str, yaml.Node]]:
        seen = set()
        for key_node, child in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem(key_node, path, "has a list or mapping as a key; expected text")
                continue
            key = str(key_node.value)
            if key in seen:
                self._problem(key_node, (*path, key), "is there twice; expected one")
                continue
            seen.add(key)
            self._origins[(*path, key)] = self._origin(key_node)
            yield key, child

    def _problem(self, node: yaml.Node, path: KeyPath, predicate: str) -> None:
        self._problems.append(f"{self._origin(node)}: {dotted(path) or 'the file'} {predicate}")

    def _origin(self, node: yaml.Node) -> str:
        return f"{self._path}:{node.start_mark.line + 1}"


_SCALARS: dict[str, Callable[[str], object]] = {
    f"{_TAG}null": lambda text: None,
    f"{_TAG}bool": lambda text: text.lower() == "true",
    f"{_TAG}int": lambda text: int(text) if _NUMBER.fullmatch(text) else text,
    f"{_TAG}float": lambda text: float(text) if _REAL.fullmatch(text) else text,
    f"{_TAG}str": str,
}


def _unreadable(problem: str) -> Source:
    return Source(problems=(problem,), unreadable=True)


def _position(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    return f":{mark.line + 1}:{mark.column + 1}" if mark else ""


def _problem(error: yaml.MarkedYAMLError) -> str:
    """The parser's complaint without what it quotes of the file, which may be a secret."""
    parts = (error.context, error.problem)
    text = ", ".join(part for part in parts if part)
    return _QUOTED.sub(lambda quoted: quoted[0] if _is_harmless(quoted[2]) else "'…'", text) or "cannot be parsed"


def _is_harmless(quoted: str) -> bool:
    """Whether a quote is a token's name, such as `<stream end>`, or a single character."""
    return len(quoted) == 1 or quoted.startswith(("<", "\\"))


def _kind(value: object) -> str:
    return "a list" if isinstance(value, list) else "a single value"

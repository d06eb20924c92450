"""The table of a Helm chart's values, made of its values.yaml: each value's comment, and what it is by default."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import yaml


def values_table(path: Path) -> str:
    """A row for each value. Raises ValueError for one without a comment."""
    text = path.read_text()
    root = yaml.compose(text)
    assert isinstance(root, yaml.MappingNode)
    rows = [f"| `{name}` | {_shown(node)} | {said} |" for name, node, said in _values(root, text.splitlines(), "")]
    return "\n".join(["| value | default | |", "| --- | --- | --- |", *rows]) + "\n"


def _values(mapping: yaml.MappingNode, lines: list[str], above: str) -> Iterator[tuple[str, yaml.Node, str]]:
    for key, node in mapping.value:
        name, said = f"{above}{key.value}", _comment(lines, key.start_mark.line)
        if isinstance(node, yaml.MappingNode) and node.value and _comment(lines, node.value[0][0].start_mark.line):
            if said:
                yield name, yaml.ScalarNode("tag:yaml.org,2002:null", ""), said
            yield from _values(node, lines, f"{name}.")
        elif said:
            yield name, node, said
        else:
            raise ValueError(f"{name} has no comment")


def _comment(lines: list[str], line: int) -> str:
    """What stands right above a line."""
    first = line
    while first and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return " ".join(text.strip().removeprefix("#").strip() for text in lines[first:line])


def _shown(node: yaml.Node) -> str:
    value = yaml.safe_load(yaml.serialize(node))
    return "" if value is None or value == "" else f"`{json.dumps(value)}`"

"""What the documentation says of faults: noted from a run of every row, read by docs/fault_table.py."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.faults.expectations import rule_of
from tests.faults.grammar import AUDIENCES, Row
from tests.faults.scene import Story
from tests.faults.troubles import TROUBLES

FILE = Path(__file__).with_name("table.json")


def cells(rows: Iterable[Row]) -> dict[str, dict[str, dict[str, list[str]]]]:
    """Trouble, kind and moment → what clients may hear there."""
    table: dict[str, dict[str, dict[str, list[str]]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        table[row.trouble][row.kind][row.moment] = sorted(rule_of(row).words)
    return table


def read_table() -> dict[str, Any]:
    """The table as it was noted last."""
    table: dict[str, Any] = json.loads(FILE.read_text())
    return table


def write_table(stories: Iterable[Story]) -> None:
    """Notes the table of a run in which nothing was wrong."""
    stories = sorted(stories, key=lambda story: (list(TROUBLES).index(story.row.trouble), story.row.id))
    lines = [
        f"  {json.dumps(name)}: {json.dumps({'does': TROUBLES[name].does, **found})}"
        for name, found in cells(story.row for story in stories).items()
    ]
    figures = {
        "rows": len(stories),
        "rows by audience": {who: sum(story.row.audience == who for story in stories) for who in AUDIENCES},
        "answers": sum(story.heard.total() for story in stories),
        "whole and right": sum(story.heard["right"] for story in stories),
        "cut": sum(story.heard["cut"] for story in stories),
        "seconds to recover": round(max(story.recovered_after for story in stories), 1),
    }
    FILE.write_text("\n".join([f'{{"figures": {json.dumps(figures)},', '"troubles": {', ",\n".join(lines), "}}", ""]))

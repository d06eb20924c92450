"""The table of upstream faults in docs/reliability.md, from what a run of tests/faults has noted."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_NOTED = Path(__file__).parent.parent / "tests" / "faults" / "table.json"

_COLUMNS: Mapping[str, Sequence[str]] = {
    "manifest": ("tag", "digest"),
    "blob": ("blob",),
    "part of a blob": ("range",),
    "list": ("tags", "referrers"),
    "`HEAD`": ("head-manifest", "head-blob"),
    "expired copy in hand": ("old-tag", "old-tags", "old-referrers"),
    "token endpoint": ("token",),
}
_WORDS = {"right": "ok", "wrong": "unverified"}
_MOMENTS = {"before": "headers", "first": "first byte", "middle": "middle", "last": "end", "resume": "resumed"}
_ORDER = ("right", "stale", "cut", "empty", "claim", "wrong")


def fault_table() -> str:
    """One line for each way in which an upstream fails; ways that clients cannot tell apart share one."""
    noted = json.loads(_NOTED.read_text())
    lines: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for trouble in noted["troubles"].values():
        lines[tuple(_cell(trouble, kinds) for kinds in _COLUMNS.values())].append(trouble["does"])
    header = ["the upstream …", *_COLUMNS]
    rows = [["; ".join(does), *cells] for cells, does in lines.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows])


def fault_figures() -> str:
    """What the run came to."""
    figures = json.loads(_NOTED.read_text())["figures"]
    audience = figures["rows by audience"]
    return "\n".join(
        [
            f"{figures['rows']:,} rows: {audience['one']:,} with one client, {audience['many']:,} with twenty at once, "
            f"{audience['nobody']:,} with one that had left.",
            f"Of {figures['answers']:,} answers {figures['whole and right']:,} were whole and right, and "
            f"{figures['cut']:,} cut short. None was whole and wrong, but for parts of blobs",
            "that nobody had verified yet. Once the fault was over, the next answer was right after at most "
            f"{figures['seconds to recover']:g} s, with what",
            "the upstream had asked us to wait.",
        ]
    )


def _cell(trouble: Mapping[str, Any], kinds: Sequence[str]) -> str:
    """`ok`, or `headers: 503; middle: ok`; a dash where it cannot happen."""
    heard: dict[str, set[str]] = {}
    for moment in _MOMENTS:
        words = {word for kind in kinds for word in trouble.get(kind, {}).get(moment, ())}
        if words:
            heard[moment] = words
    moments: dict[str, list[str]] = defaultdict(list)
    for moment, words in heard.items():
        moments[_said(words)].append(_MOMENTS[moment])
    if len(moments) < 2:
        return next(iter(moments), "-")
    return "; ".join(f"{', '.join(when)}: {said}" for said, when in moments.items())


def _said(words: set[str]) -> str:
    ordered = sorted(words, key=lambda word: (_ORDER.index(word) if word in _ORDER else len(_ORDER), word))
    *most, last = (_WORDS.get(word, word) for word in ordered)
    return f"{', '.join(most)} or {last}" if most else last

"""Bars as SVG, the same bytes for the same figures; no library, since rectangles and words are all there is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from bench.figures import FIGURES, Answer
from bench.servers import MIRROR

_WIDTH = 760
_LEFT = 220
_RIGHT = 90
_BAR = 16
_GAP = 5
_TITLE = 34
_GROUP = 26
_OURS, _THEIRS = "#1f6feb", "#9aa4b2"
_FONT = 'font-family="system-ui, sans-serif"'


@dataclass(frozen=True, slots=True)
class Plot:
    """One figure of some cases of a question."""

    question: str
    title: str
    bars: Sequence[tuple[str, str, str]]
    """Groups: a heading, the case, and the key of the figure."""
    logarithmic: bool = False


PLOTS: Mapping[str, Plot] = {
    "blobs": Plot(
        "blobs",
        "Warm blob of 256 MiB: CPU seconds per GB (less is better)",
        [
            ("1 connection", "plain-1", "cpu_per_gb"),
            ("8 connections", "plain-8", "cpu_per_gb"),
            ("64 connections", "plain-64", "cpu_per_gb"),
            ("TLS, 1 connection", "tls-1", "cpu_per_gb"),
            ("TLS, 8 connections", "tls-8", "cpu_per_gb"),
            ("TLS, 64 connections", "tls-64", "cpu_per_gb"),
        ],
    ),
    "manifests": Plot(
        "manifests",
        "Warm manifest: CPU seconds per 1,000 requests (less is better, logarithmic)",
        [
            ("GET by tag", "tag", "cpu_per_thousand"),
            ("GET by digest", "digest", "cpu_per_thousand"),
            ("HEAD by tag", "head-tag", "cpu_per_thousand"),
        ],
        logarithmic=True,
    ),
    "cold": Plot(
        "cold",
        "Cold blob of 256 MiB: speed, direct = 1 (more is better)",
        [
            ("upstream at 200 MB/s", "fast", "speed"),
            ("upstream at 50 MB/s, 100 ms away", "long", "speed"),
            ("upstream as fast as it can", "unthrottled", "speed"),
        ],
    ),
    "herd": Plot(
        "herd",
        "100 clients want one cold blob: how often the upstream sends it (less is better)",
        [
            ("upstream at 10 MB/s", "limited", "upstream"),
            ("upstream as fast as it can", "unlimited", "upstream"),
        ],
    ),
    "image": Plot(
        "image",
        "A real image, pulled by containerd: seconds (less is better)",
        [("cold", "image", "cold"), ("warm", "image", "warm")],
    ),
    "memory": Plot(
        "memory",
        "Memory at its most, MB (less is better)",
        [("after a cold blob, warm blobs and manifests", "memory", "manifests_memory")],
    ),
}
"""By the name of the file."""


def draw(plot: Plot, answer: Answer) -> str:
    """The plot of an answer."""
    groups = [(heading, key, _values(answer, case, key)) for heading, case, key in plot.bars]
    known = [value for _, _, values in groups for _, value in values if value is not None and value > 0]
    most, least = max(known, default=1.0), min(known, default=1.0)
    parts, y = [], _TITLE
    for heading, key, values in groups:
        parts.append(_text(8, y + 14, heading, weight="600"))
        y += _GROUP
        for server, value in values:
            name = answer.servers.get(server, server)
            parts.append(_text(_LEFT - 8, y + 12, name, anchor="end"))
            if value is None:
                parts.append(_text(_LEFT + 4, y + 12, "failed", color="#b42318"))
            else:
                width = _length(value, least, most, logarithmic=plot.logarithmic)
                color = _OURS if server.startswith(MIRROR) else _THEIRS
                parts.append(f'<rect x="{_LEFT}" y="{y}" width="{width:.1f}" height="{_BAR}" fill="{color}"/>')
                parts.append(_text(_LEFT + width + 5, y + 12, FIGURES[key].text(value)))
            y += _BAR + _GAP
        y += _GAP
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{y}" viewBox="0 0 {_WIDTH} {y}" {_FONT} '
        f'font-size="12" role="img">\n<title>{escape(plot.title)}</title>\n'
        f'<rect width="{_WIDTH}" height="{y}" fill="#ffffff"/>'
    )
    return "\n".join((head, _text(8, 20, plot.title, weight="700"), *parts, "</svg>")) + "\n"


def _values(answer: Answer, case: str, key: str) -> list[tuple[str, float | None]]:
    """Of the servers that have the figure, or should have."""
    rows = answer.rows.get(case, {})
    found = [(server, row, row.middle(key)) for server, row in rows.items()]
    return [(server, value) for server, row, value in found if value is not None or row.failure is not None]


def _length(value: float, least: float, most: float, *, logarithmic: bool) -> float:
    whole = _WIDTH - _LEFT - _RIGHT
    if not logarithmic:
        return whole * value / most
    bottom = math.log10(least) - 0.5
    return whole * (math.log10(max(value, least)) - bottom) / (math.log10(most) - bottom)


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "400", color: str = "#1f2328") -> str:
    return (
        f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}" font-weight="{weight}" fill="{color}">{escape(text)}</text>'
    )

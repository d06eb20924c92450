"""The parts of `docs/performance.md` that are made from the figures kept in `docs/performance.json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import plots, report, targets
from bench.figures import Answer
from bench.questions import QUESTIONS

KEPT = Path(__file__).parents[1] / "docs" / "performance.json"
PLOTS = KEPT.parent / "plots"


def part(what: str) -> str:
    """`targets`, `about`, or the tables of a question with their plot. Raises ValueError for anything else."""
    kept = report.read(KEPT)
    if what == "targets":
        return targets.table({name: answer for name, (_, answer) in kept.items()})
    if what == "about":
        return _about(kept)
    if what not in QUESTIONS:
        raise ValueError(f"no question is called {what!r}")
    if what not in kept:
        return "Not asked yet.\n"
    picture = f"![{plots.PLOTS[what].title}](plots/{what}.svg)\n\n" if what in plots.PLOTS else ""
    return picture + report.markdown(kept[what][1])


def pictures() -> Mapping[Path, str]:
    """The plots by their files."""
    kept = report.read(KEPT)
    return {
        PLOTS / f"{name}.svg": plots.draw(plot, kept[plot.question][1])
        for name, plot in plots.PLOTS.items()
        if plot.question in kept
    }


def _about(kept: Mapping[str, tuple[Mapping[str, Any], Answer]]) -> str:
    """Where and when; a line for each question, since each may be asked anew alone."""
    lines = ["| question | date | machine | rounds | seconds | load before and after |", "|---|---|---|--:|--:|--:|"]
    for name, (about, _) in kept.items():
        machine = about["machine"]
        where = f"{machine['cpu']}, {machine['memory']}, {machine['system']}, Python {machine['python']}"
        load = " / ".join(f"{value:g}" for value in about["load_average"])
        lines.append(f"| {name} | {about['date']} | {where} | {about['rounds']} | {about['seconds']} | {load} |")
    return "\n".join(lines) + "\n"

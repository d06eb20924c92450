"""What the answers look like: tables in a terminal and in Markdown, and JSON that is kept and read again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from bench.figures import FIGURES, Answer, Case, Row, ratio
from bench.servers import MIRROR


def show(console: Console, answer: Answer) -> None:
    """Prints the tables of one question."""
    for case in answer.cases:
        table = Table(title=case.title, box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left", title_style="bold")
        head, *others = headings(case)
        table.add_column(head, no_wrap=True)
        for name in others:
            table.add_column(name, justify="right", no_wrap=True)
        for cells in lines(answer, case):
            table.add_row(*cells)
        console.print(table)
        for server, row in answer.rows[case.name].items():
            if row.failure is not None:
                console.print(f"  {answer.servers.get(server, server)} failed: {row.failure}", markup=False)


def markdown(answer: Answer) -> str:
    """The tables of one question."""
    parts = []
    for case in answer.cases:
        head = headings(case)
        table = [head, ["---", *["--:"] * (len(head) - 1)], *lines(answer, case)]
        parts.append(f"*{case.title}*\n\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in table))
        notes = [
            f"{answer.servers.get(server, server)}: {row.failure}."
            for server, row in answer.rows[case.name].items()
            if row.failure is not None
        ]
        if notes:
            parts.append("\n".join(notes))
    return "\n\n".join(parts) + "\n"


def headings(case: Case) -> list[str]:
    """Of the table of a case; a ratio is the mirror's figure over the server's."""
    return [case.subject, *(FIGURES[key].heading for key in case.columns), *_ratio_headings(case)]


def lines(answer: Answer, case: Case) -> Iterator[list[str]]:
    """The cells of a case, a line for each server."""
    rows = answer.rows[case.name]
    for server, row in rows.items():
        figures = [_figure(row, key) for key in case.columns]
        ratios = ["" if server == MIRROR else _ratio(rows, server, key) for key in case.ratios]
        if row.failure is not None and not row.figures:
            figures[0] = "failed"
        yield [answer.servers.get(server, server), *figures, *ratios]


def write(file: Path, about: Mapping[str, Any], answers: Sequence[Answer]) -> None:
    """Notes the answers in the file, where they take the place of earlier ones to the same questions."""
    kept = json.loads(file.read_text()) if file.exists() else {}
    for answer in answers:
        kept[answer.name] = {"about": dict(about), **_document(answer)}
    beside = file.with_name(f"{file.name}.new")  # an interruption shall not cost what was found before
    beside.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
    beside.replace(file)


def read(file: Path) -> dict[str, tuple[Mapping[str, Any], Answer]]:
    """The answers in a file by question, and under which circumstances each was found."""
    return {name: (found["about"], _answer(name, found)) for name, found in json.loads(file.read_text()).items()}


def _document(answer: Answer) -> dict[str, Any]:
    rows = {
        case: {
            server: {
                "figures": {key: [float(f"{value:.5g}") for value in values] for key, values in row.figures.items()},
                "failure": row.failure,
            }
            for server, row in by_server.items()
        }
        for case, by_server in answer.rows.items()
    }
    cases = [asdict(case) for case in answer.cases]
    return {"title": answer.title, "servers": answer.servers, "cases": cases, "rows": rows}


def _answer(name: str, found: Mapping[str, Any]) -> Answer:
    rows = {
        case: {server: Row(row["figures"], row["failure"]) for server, row in by_server.items()}
        for case, by_server in found["rows"].items()
    }
    return Answer(name, found["title"], [Case(**case) for case in found["cases"]], rows, found["servers"])


def _figure(row: Row, key: str) -> str:
    value = row.middle(key)
    return "" if value is None else FIGURES[key].text(value)


def _ratio(rows: Mapping[str, Row], server: str, key: str) -> str:
    value = ratio(rows, server, key)
    return "" if value is None else f"{value:.2f}"


def _ratio_headings(case: Case) -> list[str]:
    short = [_short(key) for key in case.ratios]
    return [
        f"{name if short.count(name) == 1 else FIGURES[key].heading} ratio"
        for name, key in zip(short, case.ratios, strict=True)
    ]


def _short(key: str) -> str:
    return "CPU" if key.startswith("cpu") else "speed" if key.endswith("per_second") else FIGURES[key].heading

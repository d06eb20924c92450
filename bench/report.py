"""What the samples come to: medians, ratios to the mirror within each round, tables for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from rich import box
from rich.console import Console
from rich.table import Table

from bench.questions import Kind, Question, Sample
from bench.servers import MIRROR

_GB = 1e9
_THOUSAND = 1e3


@dataclass(frozen=True, slots=True)
class Line:
    """Medians over the rounds of one server.

    `rate`: GB/s or requests/s. `cpu`: CPU seconds per GB or per 1,000 requests. `p50`, `p99`: seconds. The ratios are
    the mirror's figure over this server's in the same round, their median; None where the mirror was not measured.
    """

    server: str
    rate: float
    cpu: float
    p50: float | None
    p99: float | None
    rate_ratio: float | None
    cpu_ratio: float | None


def summarise(kind: Kind, samples: Sequence[Sample]) -> list[Line]:
    """One line for each server, in the order in which they were measured."""
    unit = _GB if kind == "blob" else _THOUSAND
    servers = list(dict.fromkeys(sample.server for sample in samples))
    return [_line(server, unit, kind, samples) for server in servers]


def show(console: Console, question: Question, lines: Sequence[Line], titles: Mapping[str, str]) -> None:
    """Prints the table of one question."""
    table = Table(
        title=question.title,
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title_justify="left",
        title_style="bold",
        padding=(0, 1, 0, 0),
    )
    blob = question.kind == "blob"
    table.add_column("server", no_wrap=True)
    for name in ["GB/s", "CPU s/GB"] if blob else ["req/s", "CPU s/1000", "p50/p99 ms"]:
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("speed ratio", "CPU ratio"):
        table.add_column(name, justify="right", no_wrap=True)
    for line in lines:
        rate = f"{line.rate:.2f}" if blob else f"{line.rate:,.0f}"
        latency = [] if blob else [_milliseconds(line)]
        ratios = ["" if ratio is None else f"{ratio:.2f}" for ratio in (line.rate_ratio, line.cpu_ratio)]
        table.add_row(titles[line.server], rate, f"{line.cpu:.3f}", *latency, *ratios)
    console.print(table)


def write_json(
    file: Path, about: Mapping[str, object], questions: Sequence[Question], samples: Sequence[Sample]
) -> None:
    """All samples, what they come to, and under which circumstances."""
    found = {}
    for question in questions:
        own = [sample for sample in samples if sample.question == question.name]
        lines = [asdict(line) for line in summarise(question.kind, own)]
        found[question.name] = {"title": question.title, "summary": lines, "samples": [asdict(one) for one in own]}
    file.write_text(json.dumps({**about, "questions": found}, indent=2) + "\n")


def _line(server: str, unit: float, kind: Kind, samples: Sequence[Sample]) -> Line:
    own = [sample for sample in samples if sample.server == server]
    mirror = {sample.round: sample for sample in samples if sample.server == MIRROR}

    def ratio(figure: Callable[[Sample], float]) -> float | None:
        pairs = [(figure(mirror[one.round]), figure(one)) for one in own if one.round in mirror]
        return median(ours / its for ours, its in pairs) if pairs else None

    return Line(
        server,
        median(map(_rate, own)) / (_GB if kind == "blob" else 1),
        median(map(_cpu, own)) * unit,
        _middle([sample.p50 for sample in own]),
        _middle([sample.p99 for sample in own]),
        ratio(_rate),
        ratio(_cpu),
    )


def _rate(sample: Sample) -> float:
    return sample.amount / sample.seconds


def _cpu(sample: Sample) -> float:
    return sample.cpu / sample.amount


def _middle(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _milliseconds(line: Line) -> str:
    assert line.p50 is not None
    assert line.p99 is not None
    return "/".join(f"{value * 1000:.{1 if value < 0.1 else 0}f}" for value in (line.p50, line.p99))

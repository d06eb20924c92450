"""What can be measured: each figure's unit and how it is shown; and what the samples of several rounds come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from bench.servers import MIRROR


@dataclass(frozen=True, slots=True)
class Figure:
    """A quantity: its heading with the unit, and the digits after the point."""

    heading: str
    digits: int

    def text(self, value: float) -> str:
        """As it stands in a table."""
        return f"{value:,.{self.digits}f}"


FIGURES: Mapping[str, Figure] = {
    "gb_per_second": Figure("GB/s", 2),
    "cpu_per_gb": Figure("CPU s/GB", 3),
    "requests_per_second": Figure("requests/s", 0),
    "cpu_per_thousand": Figure("CPU s/1,000", 3),
    "p50": Figure("p50 ms", 2),
    "p99": Figure("p99 ms", 2),
    "first_byte": Figure("first byte ms", 2),
    "first_byte_p50": Figure("first byte p50 ms", 2),
    "first_byte_p99": Figure("first byte p99 ms", 2),
    "added_p50": Figure("added p50 ms", 2),
    "added_p99": Figure("added p99 ms", 2),
    "total": Figure("total s", 2),
    "speed": Figure("of direct", 3),
    "slowdown": Figure("÷ direct", 2),
    "upstream": Figure("fetched times", 3),
    "fairness": Figure("slowest ÷ fastest", 2),
    "memory": Figure("memory MB", 0),
    "ready": Figure("ready s", 2),
    "first_hit": Figure("first hit s", 2),
    "counted": Figure("counted s", 1),
    "cpu_counted": Figure("CPU s until then", 1),
    "early_p99": Figure("p99 ms meanwhile", 1),
    "manifest_hit": Figure("CPU µs per manifest", 0),
    "blob_hit": Figure("CPU µs per small blob", 0),
    "cores": Figure("cores in use", 2),
    "manifest_p50": Figure("manifest p50 ms", 2),
    "manifest_p99": Figure("manifest p99 ms", 2),
    "blob_p50": Figure("blob p50 ms", 2),
    "blob_p99": Figure("blob p99 ms", 2),
    "asked": Figure("requests", 0),
    "crowd": Figure("the crowd got MiB", 0),
    "freed": Figure("freed GB", 2),
    "sweep_seconds": Figure("seconds", 1),
    "worst": Figure("worst ms", 1),
    "quiet_p99": Figure("without: p99 ms", 2),
    "quiet_worst": Figure("without: worst ms", 1),
    "peak_memory": Figure("peak MB", 0),
    "kernel_share": Figure("in the kernel %", 0),
    "loop_share": Figure("in the event loop's thread %", 0),
    "share": Figure("%", 1),
    "calls": Figure("calls", 0),
    "cold": Figure("cold s", 2),
    "warm": Figure("warm s", 2),
    "cold_to_direct": Figure("cold ÷ direct", 2),
    "cpu_cold": Figure("CPU s cold", 2),
    "cpu_warm": Figure("CPU s warm", 2),
    "idle_memory": Figure("idle MB", 0),
    "cold_memory": Figure("cold blob", 0),
    "blobs_memory": Figure("blobs", 0),
    "manifests_memory": Figure("manifests", 0),
    "own_first_byte": Figure("own first byte ms", 2),
    "peer_first_byte": Figure("by peer ms", 2),
    "hop_added": Figure("hop adds ms", 2),
    "own_cpu": Figure("own CPU s/GB", 3),
    "peer_cpu": Figure("by peer CPU s/GB", 3),
    "hop_cpu": Figure("hop CPU s/GB", 3),
}
"""By the key under which samples carry them."""


@dataclass(frozen=True, slots=True)
class Case:
    """One table: something that every server is asked in the same way."""

    name: str
    title: str
    columns: Sequence[str]
    """Keys of FIGURES."""
    ratios: Sequence[str] = ()
    """Those of which the mirror's figure over a server's is shown too."""
    subject: str = "server"
    """What there is a line for."""


@dataclass(slots=True)
class Row:
    """One server's figures in one case, a value for each round in which it was asked."""

    figures: dict[str, list[float]] = field(default_factory=dict)
    failure: str | None = None
    """Why there are no (more) figures."""

    def note(self, figures: Mapping[str, float]) -> None:
        """Adds a round."""
        for key, value in figures.items():
            self.figures.setdefault(key, []).append(value)

    def middle(self, key: str) -> float | None:
        """The median over the rounds."""
        values = self.figures.get(key)
        return median(values) if values else None


@dataclass(slots=True)
class Answer:
    """All that one question found: its cases, a row for each case and server, and the servers' full names."""

    name: str
    title: str
    cases: list[Case] = field(default_factory=list)
    rows: dict[str, dict[str, Row]] = field(default_factory=dict)
    """By case and server."""
    servers: dict[str, str] = field(default_factory=dict)

    def case(self, case: Case) -> Case:
        """Adds a case, without rows."""
        self.cases.append(case)
        self.rows[case.name] = {}
        return case

    def row(self, case: Case, server: str) -> Row:
        """The row of a server, made where it is missing."""
        return self.rows[case.name].setdefault(server, Row())


def ratio(rows: Mapping[str, Row], server: str, key: str, to: str = MIRROR) -> float | None:
    """The figure of `to` over a server's in the same round, and then the median of those; None where there is none.

    So a slow moment of the machine, which both meet, cancels out.
    """
    if to not in rows or server not in rows:
        return None
    ours, its = rows[to].figures.get(key, []), rows[server].figures.get(key, [])
    pairs = [one / other for one, other in zip(ours, its, strict=False) if other]
    return median(pairs) if pairs else None

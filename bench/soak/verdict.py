"""What a long run comes to: each promise with its figure and its bound, and the tables for people."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import linear_regression
from typing import Any

from bench.soak.run import MAX_SIZE, TREND_SECONDS, Run, Sample
from bench.soak.tally import FORBIDDEN, Outcome

_MEMORY_RISE = 12 << 20
"""Over a quarter of an hour it is less than a hundred bytes for each request."""
_FILES_RISE = 12
_THREADS_RISE = 8
"""Pools grow to their sizes one thread at a time, when a call finds no idle one."""
_LEFT_OPEN = 4
"""Files more than at the start, once everybody has gone: the pools of the store open theirs when first used."""
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Check:
    """One promise: what was found, what the bound is, and whether that was kept."""

    what: str
    found: str
    bound: str
    good: bool


@dataclass(frozen=True, slots=True)
class Trend:
    """A straight line through the second half of a run: where it begins and ends, and the most of the whole run."""

    start: float
    end: float
    most: float

    @property
    def rise(self) -> float:
        """How much it rose over that half."""
        return self.end - self.start


def trend(samples: Sequence[Sample], figure: Callable[[Sample], float]) -> Trend:
    """Of one figure of the samples, of which there are at least four."""
    half = samples[len(samples) // 2 :]
    times = [sample.seconds for sample in half]
    slope, intercept = linear_regression(times, [figure(sample) for sample in half])
    return Trend(intercept + slope * times[0], intercept + slope * times[-1], max(map(figure, samples)))


def checks(run: Run) -> list[Check]:
    """Every promise of the run."""
    tally = run.tally
    found = [Check(_SAID[outcome], f"{tally.of(outcome):,}", "0", not tally.of(outcome)) for outcome in FORBIDDEN]
    found += [
        Check("blobs on the disk with wrong bytes", f"{run.rotten:,} of {run.held:,}", "0", not run.rotten),
        Check("tracebacks in the log", f"{run.tracebacks:,}", "0", not run.tracebacks),
    ]
    disk = max(sample.disk for sample in run.during)
    found.append(Check("data directory, the most", _mib(disk), _mib(MAX_SIZE), disk <= MAX_SIZE))
    files = run.after.files - run.before.files
    found.append(
        Check("open files after the run, above before it", f"{files:+}", f"{_LEFT_OPEN:+}", files <= _LEFT_OPEN)
    )
    if run.seconds >= TREND_SECONDS:
        found += [_flat(name, trend(run.during, figure), bound, show) for name, figure, bound, show in _TRENDS]
    return found


def summary(run: Run) -> dict[str, Any]:
    """All of it as plain values, for JSON."""
    read = run.tally.read
    return {
        "minutes": round(run.seconds / 60, 1),
        "requests": run.tally.total,
        "read_gb": round(read / 1e9, 1),
        "evictions": run.evictions,
        "mismatches": run.mismatches,
        "idle": asdict(run.before),
        "after": asdict(run.after),
        "checks": [asdict(check) for check in checks(run)],
        "outcomes": run.tally.by_kind(),
        "trends": {name: asdict(trend(run.during, figure)) for name, figure, _, _ in _TRENDS},
        "examples": run.tally.examples,
    }


def table(found: Mapping[str, Any]) -> str:
    """A summary as Markdown."""
    lines = [
        f"{found['minutes']:g} minutes, {found['requests']:,} requests, {found['read_gb']:,.1f} GB read by clients, "
        f"{found['evictions']:,} evictions, {found['mismatches']:,} wrong bodies from the upstream.",
        "",
        "| promise | found | bound |",
        "| --- | --- | --- |",
        *(_row(one) for one in found["checks"]),
        "",
        "| asked for | right | refused | cut short | left | no promise |",
        "| --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    columns = (Outcome.RIGHT, Outcome.REFUSED, Outcome.CUT, Outcome.LEFT, Outcome.UNPROMISED)
    for what, ends in found["outcomes"].items():
        lines.append(f"| {what} | " + " | ".join(f"{ends.get(column, 0):,}" for column in columns) + " |")
    return "\n".join(lines) + "\n"


def _row(check: Mapping[str, Any]) -> str:
    return f"| {'' if check['good'] else '**broken:** '}{check['what']} | {check['found']} | {check['bound']} |"


def _mib(size: float) -> str:
    return f"{size / _MIB:.1f} MiB"


def _count(value: float) -> str:
    return f"{value:.1f}"


def _flat(name: str, line: Trend, bound: float, show: Callable[[float], str]) -> Check:
    found = f"{show(line.start)} → {show(line.end)} (most: {show(line.most)})"
    return Check(f"{name}, trend of the second half", found, f"a rise of {show(bound)}", line.rise <= bound)


_TRENDS: tuple[tuple[str, Callable[[Sample], float], float, Callable[[float], str]], ...] = (
    ("resident memory", lambda sample: sample.resident, _MEMORY_RISE, _mib),
    ("memory of its own", lambda sample: sample.own, _MEMORY_RISE, _mib),
    ("open files", lambda sample: sample.files, _FILES_RISE, _count),
    ("threads", lambda sample: sample.threads, _THREADS_RISE, _count),
)
_SAID = {
    Outcome.WRONG: "answers that looked whole and were wrong",
    Outcome.BACK: "tags that went back in time",
    Outcome.ODD: "statuses that nothing explains",
    Outcome.LATE: "requests without an end in 60 s",
    Outcome.UNREACHABLE: "connections refused by the mirror",
}

"""What the mirror has to reach, and whether it does, by the answers of one run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from bench.figures import Answer, Row, ratio
from bench.questions.cold import PIPELINE
from bench.questions.disk import QUIET
from bench.questions.workers import TWO
from bench.servers import MIRROR

_NGINX, _DISTRIBUTION = "nginx", "registry3"
Value = Callable[[Answer], float | None]


@dataclass(frozen=True, slots=True)
class Target:
    """A bound on one value of one question's answer."""

    question: str
    text: str
    value: Value
    limit: float
    at_least: bool = False
    digits: int = 2

    def met(self, value: float) -> bool:
        """Whether a value, as it is shown, keeps the bound."""
        shown = round(value, self.digits)
        return shown >= self.limit if self.at_least else shown <= self.limit


def figure(case: str, key: str, *, times: float = 1.0, server: str = MIRROR) -> Value:
    """A figure of the mirror's own."""

    def value(answer: Answer) -> float | None:
        row = answer.rows.get(case, {}).get(server)
        middle = row.middle(key) if row is not None else None
        return None if middle is None else middle * times

    return value


def most(case: str, key: str) -> Value:
    """The largest of a figure of the mirror's own, of all rounds."""
    return lambda answer: max(answer.rows.get(case, {}).get(MIRROR, Row()).figures.get(key, ()), default=None)


def over(case: str, key: str, server: str, *, to: str = MIRROR) -> Value:
    """The mirror's figure over a server's."""
    return lambda answer: ratio(answer.rows.get(case, {}), server, key, to)


def under(case: str, key: str, server: str) -> Value:
    """A server's figure over the mirror's."""

    def value(answer: Answer) -> float | None:
        found = ratio(answer.rows.get(case, {}), server, key)
        return 1 / found if found else None

    return value


def _manifests() -> Iterator[Target]:
    for case, times in (("tag", 15), ("digest", 3)):
        named = f"manifest by {case}"
        yield Target(
            "manifests", f"{named}: CPU µs per request", figure(case, "cpu_per_thousand", times=1e3), 55, digits=1
        )
        yield Target("manifests", f"{named}: CPU ÷ nginx's", over(case, "cpu_per_thousand", _NGINX), 4.5)
        yield Target(
            "manifests",
            f"{named}: requests per CPU second ÷ Distribution 3.1's",
            under(case, "cpu_per_thousand", _DISTRIBUTION),
            times,
            at_least=True,
            digits=1,
        )
        yield Target("manifests", f"{named}: p99 ÷ Distribution 3.1's", over(case, "p99", _DISTRIBUTION), 1.0)


def _blobs() -> Iterator[Target]:
    for connections, nginx, distribution in ((1, 1.35, 0.9), (8, 1.25, 0.7)):
        case, named = f"plain-{connections}", f"blob, {connections} connection{'s' if connections > 1 else ''}"
        yield Target("blobs", f"{named}: CPU ÷ nginx's", over(case, "cpu_per_gb", _NGINX), nginx)
        yield Target(
            "blobs", f"{named}: CPU ÷ Distribution 3.1's", over(case, "cpu_per_gb", _DISTRIBUTION), distribution
        )
        for server, name in ((_NGINX, "nginx"), (_DISTRIBUTION, "Distribution 3.1")):
            speed = over(case, "gb_per_second", server)
            yield Target("blobs", f"{named}: throughput ÷ {name}'s", speed, 1.0, at_least=True)
    for connections in (1, 8):
        named = f"blob over TLS, {connections} connection{'s' if connections > 1 else ''}"
        yield Target("blobs", f"{named}: CPU ÷ nginx's", over(f"tls-{connections}", "cpu_per_gb", _NGINX), 1.4)


TARGETS: tuple[Target, ...] = (
    *_manifests(),
    *_blobs(),
    Target(
        "workers",
        "2 workers: CPU per request ÷ 1 worker's",
        over("one-core", "cpu_per_thousand", MIRROR, to=TWO),
        1.1,
    ),
    Target("workers", "a hop: ms to the first byte", figure("hop", "hop_added", server=TWO), 1.0),
    Target("workers", "a hop: CPU s/GB", figure("hop", "hop_cpu", server=TWO), 0.6),
    Target("cold", "cold blob at 200 MB/s: speed ÷ direct", figure("fast", "speed"), 0.95, at_least=True, digits=3),
    Target("cold", "cold blob: CPU ÷ curl, tee, sha256sum", over("unthrottled", "cpu_per_gb", PIPELINE), 1.3),
    Target("cold", "cold blob: time ÷ curl, tee, sha256sum", over("unthrottled", "total", PIPELINE), 1.3),
    Target("cold", "first byte added, cold: p50 ms", figure("first-byte", "added_p50"), 1.0),
    Target("cold", "first byte added, cold: p99 ms", figure("first-byte", "added_p99"), 3.0),
    Target("herd", "herd of 100: time ÷ one direct download", figure("limited", "slowdown"), 1.15),
    Target("herd", "herd of 100: upstream bytes ÷ blob", figure("limited", "upstream"), 1.0, digits=3),
    Target("herd", "herd of 100: slowest ÷ fastest", figure("limited", "fairness"), 1.2),
    Target("image", "real image, warm: time ÷ Distribution 3.1's", over("image", "warm", _DISTRIBUTION), 1.0),
    Target("image", "real image, cold: time ÷ direct", figure("image", "cold_to_direct"), 1.1),
    Target("cores", "1 worker: cores in use by cold blobs", figure("cold", "cores"), 1.0, at_least=True),
    Target("cores", "1 worker: cores in use by a warm blob", figure("warm", "cores"), 1.0, at_least=True),
    Target(
        "disk", "a slow disk: p99 of a manifest in memory ÷ p99 without", over("first-byte", "manifest_p99", QUIET), 3.0
    ),
    Target("disk", "a slow disk: p99 of a blob in memory ÷ p99 without", over("first-byte", "blob_p99", QUIET), 3.0),
    Target("objects", "1,000,000 blobs: seconds until it is ready", figure("starts", "ready"), 3.0),
    Target(
        "objects",
        "a sweep frees 1 GiB: ms of the worst request meanwhile, of all rounds",
        most("sweep", "worst"),
        50,
        digits=1,
    ),
    Target(
        "objects", "1,000,000 blobs: CPU of a manifest hit ÷ empty", over("hits", "manifest_hit", "mirror-empty"), 1.05
    ),
    Target("objects", "1,000,000 blobs: CPU of a blob hit ÷ empty", over("hits", "blob_hit", "mirror-empty"), 1.05),
)
"""In the order of the questions."""


def table(answers: Mapping[str, Answer]) -> str:
    """In Markdown: each target, what was measured, and whether that is enough."""
    lines = ["| | target | measured | met |", "|---|--:|--:|:-:|"]
    for target in TARGETS:
        answer = answers.get(target.question)
        value = None if answer is None else target.value(answer)
        bound = f"{'≥' if target.at_least else '≤'} {target.limit:g}"
        measured = "not measured" if value is None else f"{value:,.{target.digits}f}"
        met = "" if value is None else "yes" if target.met(value) else "**no**"
        lines.append(f"| {target.text} | {bound} | {measured} | {met} |")
    return "\n".join(lines) + "\n"

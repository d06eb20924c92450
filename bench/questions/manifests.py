"""What does a warm manifest cost, by tag and by digest, and a HEAD?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from bench.figures import Answer, Case
from bench.image import BenchFailed
from bench.load import Requests, head, request
from bench.machine import cpu_seconds
from bench.rounds import Bench, in_rounds, record, standing, warm
from bench.servers import Server
from bench.site import Site, upstream

CONNECTIONS = 64
_COLUMNS = ("requests_per_second", "cpu_per_thousand", "p50", "p99")
_RATIOS = ("requests_per_second", "cpu_per_thousand")


def ask(bench: Bench) -> Answer:
    """Every server, by both names and both methods."""
    answer = Answer("manifests", "Warm manifests")
    site = Site(bench.home / "manifests-site")
    image = site.add("library/manifests", [1 << 16] * 8)
    cases = {
        "tag": answer.case(Case("tag", f"GET by tag, {CONNECTIONS} connections", _COLUMNS, _RATIOS)),
        "digest": answer.case(Case("digest", f"GET by digest, {CONNECTIONS} connections", _COLUMNS, _RATIOS)),
        "head-tag": answer.case(Case("head-tag", f"HEAD by tag, {CONNECTIONS} connections", _COLUMNS, _RATIOS)),
        "head-digest": answer.case(
            Case("head-digest", f"HEAD by digest, {CONNECTIONS} connections", _COLUMNS, _RATIOS)
        ),
    }
    with (
        upstream(bench.home / "manifests-upstream", site) as behind,
        standing(bench, answer, [*cases.values()], bench.rivals(), behind, warm(behind, image)) as servers,
    ):
        for name, case in cases.items():
            path = image.by_tag if name.endswith("tag") else image.by_digest
            for server in in_rounds(bench, servers):
                asking = _heads if name.startswith("head") else _gets
                record(answer, case, server.name, partial(asking, bench, server, path))
    return answer


def _gets(bench: Bench, server: Server, path: str) -> Mapping[str, float]:
    return costs(server, lambda: request(bench.home, server.port, path, CONNECTIONS, bench.effort.seconds))


def _heads(bench: Bench, server: Server, path: str) -> Mapping[str, float]:
    return costs(server, lambda: head(server.port, path, CONNECTIONS, bench.effort.seconds))


def costs(server: Server, asking: Callable[[], Requests]) -> Mapping[str, float]:
    """The figures of many small answers."""
    before = cpu_seconds(server.group)
    got = asking()
    used = cpu_seconds(server.group) - before
    if not got.count:
        raise BenchFailed("nobody was answered in time")
    return {
        "requests_per_second": got.count / got.seconds,
        "cpu_per_thousand": used / got.count * 1e3,
        "p50": got.p50 * 1e3,
        "p99": got.p99 * 1e3,
    }

"""What does a crowd get that wants one blob which is not there yet, and how often is the upstream asked for it?"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial

from bench import machine
from bench.figures import Answer, Case
from bench.image import BenchFailed, Image, fetch
from bench.link import link
from bench.load import percentile
from bench.readers import Unfinished, read
from bench.rounds import Bench, record, started
from bench.servers import TITLES
from bench.site import Site, Upstream, upstream
from tests.e2e.processes import eventually

DIRECT = "direct"
RATE = 10e6
"""Bytes a second of the limited upstream: what a hundred clients take then is within what a core can send."""
_COLUMNS = ("total", "slowdown", "upstream", "first_byte_p50", "first_byte_p99", "fairness", "cpu_per_gb")
_LIMIT_SECONDS = 25.0
_LOG_SECONDS = 5.0


def ask(bench: Bench) -> Answer:
    """Every cache, with the upstream at a limited rate and without a limit; each is started anew for it."""
    answer = Answer("herd", "A herd")
    crowd = f"{bench.effort.herd} clients want one cold blob of {bench.effort.herd_blob / (1 << 20):g} MiB"
    limited = answer.case(Case("limited", f"{crowd}, upstream at {RATE / 1e6:g} MB/s", _COLUMNS))
    free = answer.case(Case("unlimited", f"{crowd}, upstream as fast as it can", _COLUMNS))
    answer.servers[DIRECT] = "one client, direct"
    site = Site(bench.home / "herd-site")
    image = site.add("library/herd", [bench.effort.herd_blob])
    with upstream(bench.home / "herd-upstream", site) as behind:
        for case, rate in ((limited, RATE), (free, None)):
            for _ in range(bench.effort.rounds):
                alone = _Alone()
                record(answer, case, DIRECT, partial(_direct, bench, behind, image, rate, alone))
                for name in bench.rivals("nginx"):
                    answer.servers.setdefault(name, TITLES[name])
                    record(answer, case, name, partial(_herd, bench, answer, name, behind, image, rate, alone))
    return answer


class _Alone:
    """How long one client takes who asks the upstream itself, in this round."""

    seconds = 0.0


def _direct(bench: Bench, behind: Upstream, image: Image, rate: float | None, alone: _Alone) -> Mapping[str, float]:
    with ExitStack() as stack:
        far = _line(stack, bench, behind, rate)
        (reading,) = read(far.port, image.layers)
    alone.seconds = reading.total
    return {"total": reading.total, "first_byte_p50": reading.first_byte * 1e3, "upstream": 1.0}


def _herd(
    bench: Bench, answer: Answer, name: str, behind: Upstream, image: Image, rate: float | None, alone: _Alone
) -> Mapping[str, float]:
    blob, clients = image.layers[0], bench.effort.herd
    with ExitStack() as stack:
        # A line of its own: what one server leaves on it shall not meet the next.
        far = _line(stack, bench, behind, rate)
        server = stack.enter_context(started(bench, name, far))
        answer.servers[name] = server.what
        fetch(server.port, image.by_tag)
        asked, used = behind.sent(blob.digest), machine.cpu_seconds(server.group)
        try:
            readings = read(server.port, [blob] * clients, seconds=_LIMIT_SECONDS + alone.seconds)
        except Unfinished as error:
            raise BenchFailed(f"{error}; alone one takes {alone.seconds:.1f} s") from error
        used = machine.cpu_seconds(server.group) - used
        # nginx writes its line after the answer.
        eventually(lambda: behind.sent(blob.digest) - asked >= blob.size, seconds=_LOG_SECONDS)
        totals = [reading.total for reading in readings]
        firsts = [reading.first_byte * 1e3 for reading in readings]
        return {
            "total": max(totals),
            "slowdown": max(totals) / alone.seconds,
            "upstream": (behind.sent(blob.digest) - asked) / blob.size,
            "first_byte_p50": percentile(firsts, 50),
            "first_byte_p99": percentile(firsts, 99),
            "fairness": max(totals) / min(totals),
            "cpu_per_gb": used / (blob.size * clients / 1e9),
        }


def _line(stack: ExitStack, bench: Bench, behind: Upstream, rate: float | None) -> Upstream:
    return behind if rate is None else stack.enter_context(link(bench.home, behind, rate))

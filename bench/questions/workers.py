"""What do two workers cost beside one, on one core and on all; and what does the way through the other worker add?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

from bench import machine
from bench.figures import Answer, Case
from bench.image import BenchFailed, Blob, Image, fetch
from bench.load import request
from bench.questions.manifests import CONNECTIONS, costs
from bench.readers import flow, read
from bench.rounds import FAILURES, Bench, in_rounds, reason, record, settle, started, warm
from bench.servers import MIRROR, Server, Shape
from bench.site import Site, Upstream, upstream

TWO = "mirror-2"
_BLOB_CONNECTIONS = 8
_SMALL = 256 << 10
_LARGE_COUNT = 12
"""Cold blobs of which some come by the other worker, and some do not."""
_COLUMNS = ("requests_per_second", "cpu_per_thousand", "p99", "gb_per_second", "cpu_per_gb", "memory")
_RATIOS = ("cpu_per_thousand", "cpu_per_gb")


def ask(bench: Bench) -> Answer:
    """The mirror with one worker and with two, and two workers' first answers to what neither holds."""
    answer = Answer("workers", "Workers", servers={MIRROR: "1 worker", TWO: "2 workers"})
    work = f"manifests by digest over {CONNECTIONS} connections and blobs over {_BLOB_CONNECTIONS}"
    one_core = answer.case(Case("one-core", f"One core for all workers: {work}", _COLUMNS, _RATIOS))
    all_cores = answer.case(Case("all-cores", f"All cores, shared with the load: {work}", _COLUMNS, _RATIOS))
    columns = ("own_first_byte", "peer_first_byte", "hop_added", "own_cpu", "peer_cpu", "hop_cpu")
    hop = answer.case(
        Case("hop", "Cold blobs by the worker that was asked, and by its peer (2 workers, 1 core)", columns)
    )
    size = bench.effort.herd_blob
    site = Site(bench.home / "workers-site")
    image = site.add("library/workers", [bench.effort.blob])
    small = [
        site.add(f"library/small-{number}", [_SMALL] * bench.effort.small) for number in range(bench.effort.rounds)
    ]
    large = [site.add(f"library/large-{number}", [size] * _LARGE_COUNT) for number in range(bench.effort.rounds)]
    with upstream(bench.home / "workers-upstream", site) as behind:
        for case, free in ((one_core, False), (all_cores, True)):
            _compare(bench, answer, case, behind, image, free=free)
        for one, other in zip(small, large, strict=True):
            record(answer, hop, TWO, partial(_hops, bench, behind, one, other))
    return answer


def _compare(bench: Bench, answer: Answer, case: Case, behind: Upstream, image: Image, *, free: bool) -> None:
    with ExitStack() as stack:
        running = []
        for name, workers in ((MIRROR, 1), (TWO, 2)):
            try:
                server = stack.enter_context(started(bench, MIRROR, behind, Shape(workers=workers)))
                warm(behind, image)(server)
                if free:
                    machine.unpin(server.group)
                running.append(replace(server, name=name))
            except FAILURES as error:
                answer.row(case, name).failure = f"not available: {reason(error)}"
        for server in in_rounds(bench, running):
            record(answer, case, server.name, partial(_serve, bench, server, image))


def _serve(bench: Bench, server: Server, image: Image) -> Mapping[str, float]:
    found = costs(
        server, lambda: request(bench.home, server.port, image.by_digest, CONNECTIONS, bench.effort.seconds)
    )  # fmt: skip
    clock = partial(machine.cpu_seconds, server.group)
    sent = flow(server.port, image.layers[0], _BLOB_CONNECTIONS, bench.effort.seconds, clock)
    blobs = {"gb_per_second": sent.size / sent.seconds / 1e9, "cpu_per_gb": sent.clock / (sent.size / 1e9)}
    return {**found, **blobs, "memory": machine.memory_bytes(server.group) / 1e6}


@dataclass(frozen=True, slots=True)
class _Pulled:
    """One cold blob: whether it came by the other worker, seconds to its first byte, CPU seconds per GB."""

    by_peer: bool
    first_byte: float
    cpu: float


def _hops(bench: Bench, behind: Upstream, small: Image, large: Image) -> Mapping[str, float]:
    with _two(bench, behind) as server:
        firsts = _pull(server, small, small.layers, with_cpu=False)
        own, peer = ([one.first_byte * 1e3 for one in firsts if one.by_peer is by_peer] for by_peer in (False, True))
        costs_ = _pull(server, large, large.layers, with_cpu=True)
        own_cpu, peer_cpu = ([one.cpu for one in costs_ if one.by_peer is by_peer] for by_peer in (False, True))
        if not (own and peer and own_cpu and peer_cpu):
            raise BenchFailed("all blobs took the same way")
        return {
            "own_first_byte": median(own),
            "peer_first_byte": median(peer),
            "hop_added": median(peer) - median(own),
            "own_cpu": median(own_cpu),
            "peer_cpu": median(peer_cpu),
            "hop_cpu": median(peer_cpu) - median(own_cpu),
        }


@contextmanager
def _two(bench: Bench, behind: Upstream) -> Iterator[Server]:
    with started(bench, MIRROR, behind, Shape(workers=2)) as server:
        yield server


def _pull(server: Server, image: Image, blobs: Sequence[Blob], *, with_cpu: bool) -> list[_Pulled]:
    """Pulls each blob over a connection of its own, so that either worker may get it."""
    assert server.counted is not None
    fetch(server.port, image.by_tag)
    found = []
    for blob in blobs:
        asked = server.counted("mirror_peer_requests_total")
        if with_cpu:
            settle(server)
        before = machine.cpu_seconds(server.group)
        (reading,) = read(server.port, [blob])
        if with_cpu:
            settle(server)
        cpu = (machine.cpu_seconds(server.group) - before) / (blob.size / 1e9)
        by_peer = server.counted("mirror_peer_requests_total") > asked
        found.append(_Pulled(by_peer, reading.first_byte, cpu))
    return found

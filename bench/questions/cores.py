"""How many cores does one process keep busy with plain blobs? Sending and hashing hold no interpreter lock."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial

from bench import machine
from bench.figures import Answer, Case
from bench.image import BenchFailed, Image, fetch
from bench.readers import flow, read
from bench.rounds import Bench, or_failed, record, settle, started, warm
from bench.servers import MIRROR, Server
from bench.site import Site, upstream

_CONNECTIONS = 8
_COLD = 8
"""Blobs that are fetched at once."""
_COLUMNS = ("cores", "gb_per_second", "cpu_per_gb")


def ask(bench: Bench) -> Answer:
    """One process on all cores, which it shares with readers whose bytes the kernel drops, and with the upstream."""
    answer = Answer("cores", "One process on all cores", servers={MIRROR: "1 worker"})
    cold = answer.case(
        Case("cold", f"{_COLD} cold blobs at once: received, hashed, written and sent meanwhile", _COLUMNS)
    )
    sent = answer.case(Case("warm", f"A warm blob over {_CONNECTIONS} connections", _COLUMNS))
    site = Site(bench.home / "cores-site")
    image = site.add("library/cores", [bench.effort.blob])
    fresh = [
        site.add(f"library/cores-{number}", [bench.effort.herd_blob] * _COLD) for number in range(bench.effort.rounds)
    ]
    with (
        or_failed(answer, cold, MIRROR),
        upstream(bench.home / "cores-upstream", site) as behind,
        started(bench, MIRROR, behind) as server,
    ):
        warm(behind, image)(server)
        machine.unpin(server.group)
        for new in fresh:
            record(answer, cold, MIRROR, partial(_fill, server, new))
            record(answer, sent, MIRROR, partial(_send, bench, server, image))
    return answer


def _fill(server: Server, image: Image) -> Mapping[str, float]:
    """Until the last byte has come; what is synced to the disk afterwards is not waited for, and does not count."""
    fetch(server.port, image.by_tag)
    settle(server)
    before, began = machine.cpu_seconds(server.group), time.perf_counter()
    read(server.port, image.layers, discard=True)
    used, seconds = machine.cpu_seconds(server.group) - before, time.perf_counter() - began
    size = sum(blob.size for blob in image.layers) / 1e9
    return {"cores": used / seconds, "gb_per_second": size / seconds, "cpu_per_gb": used / size}


def _send(bench: Bench, server: Server, image: Image) -> Mapping[str, float]:
    clock = partial(machine.cpu_seconds, server.group)
    found = flow(server.port, image.layers[0], _CONNECTIONS, bench.effort.seconds, clock, discard=True)
    if not found.size:
        raise BenchFailed("no byte came")
    size = found.size / 1e9
    return {
        "cores": found.clock / found.seconds,
        "gb_per_second": size / found.seconds,
        "cpu_per_gb": found.clock / size,
    }

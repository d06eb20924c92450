"""What does a server add to a blob that it does not hold: to its first byte, to the whole of it, and in CPU time?"""

from __future__ import annotations

import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from bench import machine
from bench.figures import Answer, Case
from bench.image import BenchFailed, Image, fetch
from bench.link import link
from bench.load import percentile
from bench.readers import first_bytes, read
from bench.rounds import Bench, record, settle, standing
from bench.servers import Server
from bench.site import Site, Upstream, upstream

DIRECT, PIPELINE = "direct", "pipeline"
_SMALL = 256 << 10
_FAST = 200e6
_LONG = 50e6
_DELAY = 0.05
_COLUMNS = ("first_byte", "total", "gb_per_second", "cpu_per_gb", "speed")


def ask(bench: Bench) -> Answer:
    """Every cache, over lines of two kinds and over none."""
    answer = Answer("cold", "Cold blobs")
    size, half = (f"{size / (1 << 20):g} MiB" for size in (bench.effort.blob, bench.effort.blob // 2))
    fast = answer.case(Case("fast", f"Cold blob of {size}, upstream at 200 MB/s", _COLUMNS))
    long = answer.case(Case("long", f"Cold blob of {half}, upstream at 50 MB/s and 100 ms away", _COLUMNS))
    free = answer.case(Case("unthrottled", f"Cold blob of {size}, upstream as fast as it can", _COLUMNS))
    columns = ("first_byte_p50", "first_byte_p99", "added_p50", "added_p99")
    first = answer.case(Case("first-byte", f"First byte of {bench.effort.small} cold blobs of 256 KiB", columns))
    site = Site(bench.home / "cold-site")
    # Each case and round has blobs of its own.
    images = {
        case.name: [site.add(f"library/{case.name}-{number}", sizes) for number in range(bench.effort.rounds)]
        for case, sizes in (
            (fast, [bench.effort.blob]),
            (long, [bench.effort.blob // 2]),
            (free, [bench.effort.blob]),
            (first, [_SMALL] * bench.effort.small),
        )
    }
    with upstream(bench.home / "cold-upstream", site) as behind:
        with link(bench.home, behind, _FAST) as far:
            _compare(bench, answer, fast, far, images[fast.name])
        with link(bench.home, behind, _LONG, _DELAY) as far:
            _compare(bench, answer, long, far, images[long.name])
        _compare(bench, answer, free, behind, images[free.name], pipeline=True)
        _compare_first_bytes(bench, answer, first, behind, images[first.name])
    for case in (fast, long, free):
        _relate(answer, case)
    return answer


def _compare(
    bench: Bench, answer: Answer, case: Case, behind: Upstream, images: Sequence[Image], *, pipeline: bool = False
) -> None:
    answer.servers[DIRECT] = "direct"
    with standing(bench, answer, [case], bench.rivals("nginx"), behind) as servers:
        for image in images:
            record(answer, case, DIRECT, partial(_pull, behind.port, image, None))
            if pipeline:
                answer.servers[PIPELINE] = "curl, tee, sha256sum"
                record(answer, case, PIPELINE, partial(_by_tools, bench, behind, image))
            for server in servers:
                record(answer, case, server.name, partial(_pull, server.port, image, server))


def _pull(port: int, image: Image, server: Server | None) -> Mapping[str, float]:
    """The first pull of a blob, after its manifest."""
    fetch(port, image.by_tag)
    found: dict[str, float] = {}
    size = image.layers[0].size / 1e9

    def pull() -> None:
        (reading,) = read(port, image.layers)
        found.update(first_byte=reading.first_byte * 1e3, total=reading.total, gb_per_second=size / reading.total)

    if server is None:
        pull()
    else:
        found["cpu_per_gb"] = cpu_meanwhile(server, pull) / size
    return found


def cpu_meanwhile(server: Server, action: Callable[[], None]) -> float:
    """The CPU seconds that a server uses for this, until it has settled."""
    settle(server)
    before = machine.cpu_seconds(server.group)
    action()
    settle(server)
    return machine.cpu_seconds(server.group) - before


def _by_tools(bench: Bench, behind: Upstream, image: Image) -> Mapping[str, float]:
    """What anybody would do by hand, on the servers' core: fetch, keep and hash."""
    if shutil.which("curl") is None:
        raise BenchFailed("curl is not installed")
    blob, kept = image.layers[0], bench.home / "kept"
    command = f"curl -sS {behind.url}{blob.path} | tee {kept} | sha256sum"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    with machine.pinned(bench.cores.server):
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    total = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    kept.unlink()
    if done.stdout.split()[0] != blob.digest.partition(":")[2]:
        raise BenchFailed("curl got wrong bytes")
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    size = blob.size / 1e9
    return {"total": total, "gb_per_second": size / total, "cpu_per_gb": used / size}


def _compare_first_bytes(bench: Bench, answer: Answer, case: Case, behind: Upstream, images: Sequence[Image]) -> None:
    with standing(bench, answer, [case], bench.rivals("nginx"), behind) as servers:
        for image in images:
            direct = _first_bytes(behind.port, image)
            record(answer, case, DIRECT, partial(dict, direct))
            for server in servers:
                record(answer, case, server.name, partial(_added, server.port, image, direct))


def _first_bytes(port: int, image: Image) -> Mapping[str, float]:
    fetch(port, image.by_tag)
    found = first_bytes(port, image.layers)
    return {"first_byte_p50": percentile(found, 50) * 1e3, "first_byte_p99": percentile(found, 99) * 1e3}


def _added(port: int, image: Image, direct: Mapping[str, float]) -> Mapping[str, float]:
    found = _first_bytes(port, image)
    added = {f"added_{p}": found[f"first_byte_{p}"] - direct[f"first_byte_{p}"] for p in ("p50", "p99")}
    return {**found, **added}


def _relate(answer: Answer, case: Case) -> None:
    """Notes how fast each was beside the direct download of the same round."""
    rows = answer.rows[case.name]
    direct = rows[DIRECT].figures.get("total", [])
    for name, row in rows.items():
        if name != DIRECT and "total" in row.figures:
            row.figures["speed"] = [
                ours / its for ours, its in zip(direct, row.figures["total"], strict=False)
            ]  # fmt: skip

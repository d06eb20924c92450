"""`python -m bench.slow_disk`: what a slow disk costs those who do not need it. As root, on a real disk.

The mirror's disk is slowed down to 1 MiB/s by a control group, while a crowd wants blobs that are not in memory and
others that are not there yet. Meanwhile somebody asks for what is in memory: how long does the first byte take? In
turn with nobody else there (quiet), and with the same crowd on the disk as it is (busy).
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.image import ACCEPT, BenchFailed, fetch
from bench.throttle import Throttle, throttled
from tests.e2e.mirrors import MirrorProcess
from tests.e2e.processes import Process, eventually, free_port

RATIO = 3.0
FLOOR = 0.01
"""Seconds; below that the scheduler of a small machine says more than the disk."""
_RATE = 1 << 20
_UPSTREAM_RATE = 8 << 20
_REPOSITORY = "library/slow"
_WARM, _COLD = 0, 4
"""The image that is asked for all the time, and how many there are whose large layers are not in memory."""
_CLIENTS = 16
_NEW = 2
"""Images that a phase pulls for the first time."""
_SECONDS = 60.0


def run(home: Path, rounds: int, seconds: float, size: int) -> dict[str, object]:
    """Starts an upstream and a mirror under `home` and measures; the figures, by what they are."""
    images = 1 + _COLD + 2 * rounds * _NEW
    with _upstream(home, images, size) as upstream:
        mirror = MirrorProcess(home, free_port())
        mirror.start(
            {"docker.io": {"url": f"http://127.0.0.1:{upstream}"}},
            storage={"path": str(mirror.data), "max_size": "100GiB", "min_free": "0%", "scrub_rate": "0"},
        )
        with throttled(mirror.pid, mirror.data) as disk:
            try:
                return _measure(mirror, disk, rounds, seconds, images)
            finally:
                mirror.kill()


def _measure(mirror: MirrorProcess, disk: Throttle, rounds: int, seconds: float, images: int) -> dict[str, object]:
    port = int(mirror.address.rpartition(":")[2])
    layers = [_paths(port, number) for number in range(images)]
    for number in range(1 + _COLD):
        for path in layers[number]:
            fetch(port, path)
    eventually(lambda: mirror.counted("mirror_downloads_in_flight") == 0, seconds=30)
    new = iter([paths[1] for paths in layers[1 + _COLD :]])  # their largest layers
    cold = [paths[1] for paths in layers[1 : 1 + _COLD]]
    warm = [f"/v2/{_REPOSITORY}/manifests/{_WARM}", *layers[_WARM]]
    waits: dict[str, list[float]] = {"quiet": [], "busy": [], "slow": []}
    taken = dict.fromkeys(waits, 0)
    for _ in range(rounds):
        for kind, found in waits.items():
            wanted = [] if kind == "quiet" else [*cold, *(next(new) for _ in range(_NEW))]
            _forget(mirror.data, cold)
            if kind == "slow":
                disk.limit(_RATE)
            with _crowd(port, wanted) as counts:
                found += _ask(port, warm, seconds)
            disk.free()
            taken[kind] += sum(counts)
    return {
        "first_byte_ms": {
            kind: {"median": _ms(statistics.median(found)), "p99": _ms(_p99(found)), "requests": len(found)}
            for kind, found in waits.items()
        },
        "crowd_mib": {kind: round(count / (1 << 20)) for kind, count in taken.items()},
        "slow_to_quiet": round(_p99(waits["slow"]) / _p99(waits["quiet"]), 2),
        "slow_to_busy": round(_p99(waits["slow"]) / _p99(waits["busy"]), 2),
        "good": _p99(waits["slow"]) <= max(RATIO * _p99(waits["quiet"]), FLOOR),
    }


def _ask(port: int, paths: Sequence[str], seconds: float) -> list[float]:
    """One client after the other for each path in turn: seconds until the first byte of the body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_SECONDS)
    found: list[float] = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.perf_counter()
        connection.request("GET", paths[len(found) % len(paths)], headers={"Accept": ACCEPT, "Range": "bytes=0-1023"})
        answer = connection.getresponse()
        answer.read(1)
        found.append(time.perf_counter() - began)
        if answer.headers["X-Cache"] != "hit":
            raise BenchFailed(f"{paths[(len(found) - 1) % len(paths)]} was not in the cache")
        answer.read()
    connection.close()
    return found


@contextmanager
def _crowd(port: int, paths: Sequence[str]) -> Iterator[list[int]]:
    """Clients who want these blobs, again and again, until the end; gives what each of them has got, in bytes."""
    counts = [0] * _CLIENTS
    over = threading.Event()

    def want(number: int) -> None:
        while not over.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_SECONDS)
            connection.request("GET", paths[number % len(paths)])
            answer = connection.getresponse()
            while not over.is_set() and (piece := answer.read(64 << 10)):
                counts[number] += len(piece)
                over.wait(0.02)  # their own time shall not be what is measured
            connection.close()

    clients = [threading.Thread(target=want, args=(number,)) for number in range(_CLIENTS if paths else 0)]
    for client in clients:
        client.start()
    try:
        yield counts
    finally:
        over.set()
        for client in clients:
            client.join()


def _forget(data: Path, paths: Sequence[str]) -> None:
    """Drops the blobs' bytes from memory."""
    for path in paths:
        digits = path.rpartition(":")[2]
        fd = os.open(data / "blobs" / "sha256" / digits[:2] / digits, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def _paths(port: int, number: int) -> list[str]:
    """The blobs of an image: its configuration, its large layer, two others."""
    _, content = fetch(port, f"/v2/{_REPOSITORY}/manifests/{number}")
    named = json.loads(content)
    return [f"/v2/{_REPOSITORY}/blobs/{one['digest']}" for one in (named["config"], *named["layers"])]


def _p99(found: Sequence[float]) -> float:
    return statistics.quantiles(found, n=100)[98]


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)


@contextmanager
def _upstream(home: Path, images: int, size: int) -> Iterator[int]:
    """A registry that sends at a moderate rate, so that it is the disk that is slow."""
    log, port = home / "upstream.log", free_port()
    named = [f"--image={_REPOSITORY}:{number}" for number in range(images)]
    argv = [
        sys.executable,
        "-m",
        "tests.upstream",
        f"--port={port}",
        f"--layer-size={size}",
        f"--rate={_UPSTREAM_RATE}",
    ]
    process = Process([*argv, *named], log=log, env=dict(os.environ))
    try:
        process.wait_until(lambda: " serves " in log.read_text(), seconds=_SECONDS)
        yield port
    finally:
        process.stop()


def main(arguments: list[str] | None = None) -> int:
    """Measures and prints; the exit code is 0 where the slow disk kept to itself."""
    parser = argparse.ArgumentParser(prog="python -m bench.slow_disk", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="each quiet, busy and slow (default: 5)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each of them (default: 4)")
    parser.add_argument("--size", type=int, default=32, metavar="MIB", help="of a cold blob (default: 32)")
    parser.add_argument("--directory", type=Path, help="where the cache is made, on a real disk")
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="mirror-slow-disk-", dir=options.directory) as home:
            found = run(Path(home), options.rounds, options.seconds, options.size << 20)
    except (BenchFailed, OSError, RuntimeError) as error:
        print(f"slow disk: {error}", file=sys.stderr)
        return 1
    print(json.dumps(found, indent=2))
    return 0 if found["good"] else 1


if __name__ == "__main__":
    sys.exit(main())

"""What does a slow disk cost those who do not need it? As root, on a real disk; a row without figures says why not.

The mirror's disk is slowed down by a control group, while a crowd wants blobs that the kernel does not hold in memory
and others that are not there yet. Meanwhile somebody asks for what is in memory: how long does the first byte take? In
turn with nobody else there (quiet), and with the same crowd on the disk as it is (busy).
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from bench import machine
from bench.figures import Answer, Case
from bench.image import ACCEPT, BenchFailed, fetch
from bench.load import percentile
from bench.rounds import Bench, or_failed, record
from bench.servers import MIRROR
from bench.throttle import Throttle, throttled
from tests.e2e.mirrors import MirrorProcess
from tests.e2e.processes import Process, eventually, free_port

QUIET, BUSY = "quiet", "busy"
_KINDS = (MIRROR, QUIET, BUSY)
_RATE = 1 << 20
_UPSTREAM_RATE = 8 << 20
_REPOSITORY = "library/slow"
_WARM, _COLD = 0, 4
"""The image that is asked for all the time, and how many there are whose large layers are not in memory."""
_CLIENTS = 16
_NEW = 2
"""Images that a phase pulls for the first time."""
_SECONDS = 60.0
_COLUMNS = ("manifest_p50", "manifest_p99", "blob_p50", "blob_p99", "asked", "crowd")


def ask(bench: Bench) -> Answer:
    """The same requests in turn, with nobody else and beside a crowd, on the disk as it is and on a slow one."""
    answer = Answer("disk", "A slow disk")
    answer.servers = {
        MIRROR: f"a crowd, the disk at {_RATE >> 20} MiB/s",
        QUIET: "nobody else",
        BUSY: "a crowd, the disk as it is",
    }
    title = f"First byte of what is in memory, while {_CLIENTS} clients want what is not, or what is not there yet"
    case = answer.case(Case("first-byte", title, _COLUMNS, ("manifest_p99", "blob_p99"), subject="meanwhile"))
    home = bench.home / "disk"
    home.mkdir()
    images = 1 + _COLD + 2 * bench.effort.rounds * _NEW
    with or_failed(answer, case, MIRROR), _registry(home, images, bench.effort.disk_blob) as port:
        mirror = MirrorProcess(home, free_port())
        with machine.pinned(bench.cores.server):
            mirror.start(
                {"docker.io": {"url": f"http://127.0.0.1:{port}"}},
                storage={"path": str(mirror.data), "max_size": "100GiB", "min_free": "0%", "scrub_rate": "0"},
            )
        try:
            with throttled(mirror.pid, mirror.data) as disk:
                try:
                    _Phases(mirror, disk, images, bench.effort.disk_seconds).run(bench.effort.rounds, answer, case)
                finally:
                    mirror.kill()
        except BenchFailed:
            mirror.kill()
            raise
    return answer


class _Phases:
    """What is asked for, and by whom."""

    def __init__(self, mirror: MirrorProcess, disk: Throttle, images: int, seconds: float) -> None:
        self._mirror = mirror
        self._disk = disk
        self._seconds = seconds
        self._port = int(mirror.address.rpartition(":")[2])
        layers = [_paths(self._port, number) for number in range(images)]
        for number in range(1 + _COLD):
            for path in layers[number]:
                fetch(self._port, path)
        eventually(lambda: mirror.counted("mirror_downloads_in_flight") == 0, seconds=30)
        self._new = iter([paths[1] for paths in layers[1 + _COLD :]])  # their largest layers
        self._cold = [paths[1] for paths in layers[1 : 1 + _COLD]]
        self._warm = {"manifest": [f"/v2/{_REPOSITORY}/manifests/{_WARM}"], "blob": layers[_WARM]}

    def run(self, rounds: int, answer: Answer, case: Case) -> None:
        """Every kind in turn, round by round."""
        for _ in range(rounds):
            for kind in _KINDS:
                record(answer, case, kind, partial(self._phase, kind))

    def _phase(self, kind: str) -> Mapping[str, float]:
        wanted = [] if kind == QUIET else [*self._cold, *(next(self._new) for _ in range(_NEW))]
        _forget(self._mirror.data, self._cold)
        if kind == MIRROR:
            self._disk.limit(_RATE)
        try:
            with _crowd(self._port, wanted) as counts:
                found = _ask(self._port, self._warm, self._seconds)
        finally:
            self._disk.free()
        return {
            **{
                f"{what}_p{percent}": percentile(waits, percent) * 1e3
                for what, waits in found.items()
                for percent in (50, 99)
            },
            "asked": sum(map(len, found.values())),
            "crowd": sum(counts) / (1 << 20),
        }


def _ask(port: int, paths: Mapping[str, Sequence[str]], seconds: float) -> Mapping[str, list[float]]:
    """One request after the other, of each kind in turn: seconds until the first byte of the body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_SECONDS)
    found: dict[str, list[float]] = {kind: [] for kind in paths}
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for kind, waits in found.items():
            path = paths[kind][len(waits) % len(paths[kind])]
            began = time.perf_counter()
            connection.request("GET", path, headers={"Accept": ACCEPT, "Range": "bytes=0-1023"})
            answer = connection.getresponse()
            answer.read(1)
            waits.append(time.perf_counter() - began)
            if answer.headers["X-Cache"] != "hit":
                raise BenchFailed(f"{path} was not in the cache")
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


@contextmanager
def _registry(home: Path, images: int, size: int) -> Iterator[int]:
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

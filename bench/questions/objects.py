"""Does a full cache cost more? A mirror that holds N blobs beside one that holds a single image."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

import msgspec

from bench import machine
from bench.figures import Answer, Case
from bench.image import ACCEPT, BenchFailed, Image, fetch
from bench.load import percentile, request
from bench.questions.manifests import CONNECTIONS
from bench.rounds import Bench, or_failed, record
from bench.servers import MIRROR
from bench.site import Site, Upstream, upstream
from mirror.store.database import encode_key, open_in
from mirror.store.epochs import EpochRecord, epoch_key
from mirror.store.sealed import seal
from mirror.store.shapes import LinkRecord
from tests.e2e.mirrors import MirrorProcess
from tests.e2e.processes import eventually, free_port

_BLOB_BYTES = 100_000
"""Of each filler, as its file's length: no block is written for them."""
_LAYER_BYTES = 1 << 20
_BATCH = 10_000
_LIFETIME = 30 * 86400.0
_COUNT_SECONDS = 300.0
_EMPTY = "mirror-empty"
_FILLER = "library/filler"
_SWEEP_SECONDS = 180.0
_LOOK_SECONDS = 0.5
_TURN_SECONDS = 1.0
_PAIRS = 5
"""Turns of each of the two for each round, one after the other: what hits one, hits the other one, too."""
_SWEPT_BYTES = 1 << 30
_MAX_SIZE = 1 << 40


class _Subject:
    """One of the two mirrors: its data, and whatever process has it at the moment."""

    def __init__(self, bench: Bench, name: str, behind: Upstream, image: Image) -> None:
        home = bench.home / name
        home.mkdir()
        self.name = name
        self.data = home / "data"
        self.objects = 0
        self._bench = bench
        self._behind = behind
        self._image = image
        self._port = free_port()
        self._process = MirrorProcess(home, self._port)

    def fill(self, objects: int) -> None:
        """Pulls the image, so that there is something to hit, then adds blobs and links to a stopped mirror."""
        with self._running() as port:
            for path in (self._image.by_tag, *(blob.path for blob in self._image.blobs)):
                fetch(port, path)
        digests = _digests(objects)
        _add_blobs(self.data, digests)
        _add_links(self.data, digests)
        self.objects = objects + len(self._image.blobs)
        if digests:
            with self._running() as port:
                _check_held(port, f"/v2/{_FILLER}/blobs/sha256:{digests[-1]}")

    def early(self) -> Mapping[str, float]:
        """Starts it and asks at once, whatever else it is doing."""
        with self._running() as port:
            found = request(self._bench.home, port, self._image.by_tag, CONNECTIONS, self._bench.effort.seconds)
            return {"early_p99": found.p99 * 1e3}

    def measure(self) -> Mapping[str, float]:
        """Starts it, waits until it has counted what it holds, and has it answer."""
        began = time.perf_counter()
        with self._running() as port:
            ready = time.perf_counter() - began
            if fetch(port, self._image.by_tag)[0].headers["X-Cache"] != "hit":
                raise BenchFailed("a mirror forgot its image when it was started anew")
            first_hit = time.perf_counter() - began
            self._wait_until_counted()
            counted = time.perf_counter() - began
            cpu = machine.cpu_seconds(self._process.pid)
            memory = machine.memory_bytes(self._process.pid) / 1e6
            return {"ready": ready, "first_hit": first_hit, "counted": counted, "cpu_counted": cpu, "memory": memory}

    def hits(self, port: int) -> Mapping[str, float]:
        """What one hit of each kind costs the running one, in CPU microseconds."""
        return {f"{kind}_hit": self._hit(port, path) for kind, path in self._paths().items()}

    @contextmanager
    def counted(self) -> Iterator[int]:
        """Starts it, and waits until it has counted what it holds; gives its port."""
        with self._running() as port:
            self._wait_until_counted()
            yield port

    def sweep(self, port: int) -> Mapping[str, float]:
        """Gives the running one a budget that is too small; what a client sees who asks for one hit after the other
        meanwhile, and then for as long again, while there is nothing to sweep.
        """
        before = self._evicted()
        fillers = (self.objects - len(self._image.blobs)) * _BLOB_BYTES - int(before)
        wanted = min(_SWEPT_BYTES, fillers // 2)
        idle = machine.memory_bytes(self._process.pid)
        began = time.perf_counter()
        self._limit(fillers - wanted)
        waits = list(self._ask(port, lambda: self._evicted() - before >= wanted, _SWEEP_SECONDS))
        seconds = time.perf_counter() - began
        freed = self._evicted() - before
        if freed < wanted:
            raise BenchFailed(f"{freed:,.0f} of {wanted:,} bytes were freed in {seconds:.0f} s")
        quiet = list(self._ask(port, lambda: False, seconds))
        return {
            "freed": freed / 1e9,
            "sweep_seconds": seconds,
            "p99": percentile(waits, 99) * 1e3,
            "worst": max(waits) * 1e3,
            "quiet_p99": percentile(quiet, 99) * 1e3,
            "quiet_worst": max(quiet) * 1e3,
            "idle_memory": idle / 1e6,
            "peak_memory": machine.peak_bytes(self._process.pid) / 1e6,
        }

    def _ask(self, port: int, over: Callable[[], bool], most: float) -> Iterator[float]:
        """The seconds that each of many hits takes, until it is `over`, for `most` seconds."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_SWEEP_SECONDS)
        began = looked = time.perf_counter()
        while True:
            asked = time.perf_counter()
            connection.request("GET", self._image.by_digest, headers={"Accept": ACCEPT})
            answer = connection.getresponse()
            answer.read()
            now = time.perf_counter()
            if answer.headers["X-Cache"] != "hit":
                raise BenchFailed(f"a sweep took what was in use: {answer.status} {answer.headers['X-Cache']}")
            yield now - asked
            if now - looked > _LOOK_SECONDS:
                looked = now
                if now - began > most or over():
                    connection.close()
                    return

    def _evicted(self) -> float:
        return self._process.counted("mirror_evicted_bytes_total")

    def _paths(self) -> Mapping[str, str]:
        return {"manifest": self._image.by_digest, "blob": self._image.config.path}

    def _hit(self, port: int, path: str) -> float:
        """CPU microseconds of one."""
        before = machine.cpu_seconds(self._process.pid)
        found = request(self._bench.home, port, path, CONNECTIONS, min(_TURN_SECONDS, self._bench.effort.seconds))
        return (machine.cpu_seconds(self._process.pid) - before) / found.count * 1e6

    def _wait_until_counted(self) -> None:
        if not eventually(
            lambda: self._process.counted("mirror_cache_objects", kind="blob") >= self.objects, seconds=_COUNT_SECONDS
        ):
            raise BenchFailed(f"{self.objects} blobs were not counted in {_COUNT_SECONDS:g} s")

    @contextmanager
    def _running(self) -> Iterator[int]:
        """Starts it, and stops it at the end; gives its port."""
        with machine.pinned(self._bench.cores.server):
            self._process.start(self._upstreams(), **self._settings(_MAX_SIZE))
        try:
            yield self._port
        finally:
            self._process.stop()

    def _limit(self, max_size: int) -> None:
        """Has it take another budget while it runs."""
        self._process.configure(self._upstreams(), **self._settings(max_size))
        os.kill(self._process.pid, signal.SIGHUP)

    def _upstreams(self) -> Mapping[str, Mapping[str, str]]:
        return {"docker.io": {"url": self._behind.url}}

    def _settings(self, max_size: int) -> Mapping[str, Any]:
        storage = {
            "path": str(self.data),
            "max_size": str(max_size),
            "low_watermark": 0.999,
            "min_free": "0%",
            "scrub_rate": "0",  # what the fillers hold is not what their names say
        }
        return {"tag_ttl": "1d", "storage": storage}  # filling a large cache takes longer than a tag stays fresh


def ask(bench: Bench) -> Answer:
    """The two mirrors in turn, each started anew in each round; then both at once, asked by turns of a second."""
    answer = Answer("objects", "A full cache")
    starts, hits = ("ready", "first_hit", "counted", "cpu_counted", "early_p99", "memory"), ("manifest_hit", "blob_hit")
    begin = answer.case(Case("starts", "A start with a full cache beside one with an empty one", starts, ("memory",)))
    hit = answer.case(Case("hits", "CPU per hit with a full cache and with an empty one", hits, hits))
    columns = ("freed", "sweep_seconds", "p99", "worst", "quiet_p99", "quiet_worst", "idle_memory", "peak_memory")
    title = "A hit after the other while a sweep frees 1 GiB of the full cache, and for as long again without one"
    swept = answer.case(Case("sweep", title, columns))
    site = Site(bench.home / "objects-site")
    image = site.add("library/objects", [_LAYER_BYTES])
    with upstream(bench.home / "objects-upstream", site) as behind:
        full, empty = _Subject(bench, MIRROR, behind, image), _Subject(bench, _EMPTY, behind, image)
        try:
            for subject, objects in ((empty, 0), (full, bench.effort.objects)):
                bench.console.print(f"filling a cache with {objects:,} blobs …")
                subject.fill(objects)
                answer.servers[subject.name] = f"{subject.objects:,} blobs"
            for number in range(bench.effort.rounds):
                for subject in (full, empty) if number % 2 else (empty, full):
                    record(answer, begin, subject.name, subject.early)
                    record(answer, begin, subject.name, subject.measure)
            with or_failed(answer, swept, full.name), full.counted() as port:
                with or_failed(answer, hit, full.name), empty.counted() as other:
                    turns = ((full, port), (empty, other))
                    pairs = max(1, round(_PAIRS * min(1.0, bench.effort.seconds)))
                    for number in range(pairs * bench.effort.rounds):
                        for subject, its in turns if number % 2 else turns[::-1]:
                            record(answer, hit, subject.name, partial(subject.hits, its))
                for _ in range(bench.effort.rounds):
                    record(answer, swept, full.name, partial(full.sweep, port))
        finally:
            shutil.rmtree(full.data, ignore_errors=True)
    return answer


def _check_held(port: int, path: str) -> None:
    """Raises BenchFailed where a filler is not what a client could pull."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_SWEEP_SECONDS)
    connection.request("HEAD", path)
    answer = connection.getresponse()
    connection.close()
    if answer.status != HTTPStatus.OK or answer.headers["X-Cache"] != "hit":
        raise BenchFailed(f"what the cache was filled with is not a hit: {answer.status} {answer.headers['X-Cache']}")


def _add_blobs(data: Path, digests: Sequence[str]) -> None:
    top = data / "blobs" / "sha256"
    for prefix in sorted({digest[:2] for digest in digests}):
        (top / prefix).mkdir(mode=0o700, parents=True, exist_ok=True)
    where = str(top)  # a Path for each of a million would take longer than the files
    for digest in digests:
        fd = os.open(f"{where}/{digest[:2]}/{digest}", os.O_WRONLY | os.O_CREAT, 0o600)
        os.truncate(fd, _BLOB_BYTES)
        os.close(fd)


def _add_links(data: Path, digests: Sequence[str]) -> None:
    """A link record for each blob, and the epoch that they belong to, as pulls would have left them."""
    now, epoch = time.time(), 1
    value = msgspec.msgpack.encode(LinkRecord(_BLOB_BYTES, "", True, now, now, epoch))
    with open_in(data / "records") as book:
        key = encode_key(epoch_key(("docker.io", _FILLER)))
        book.set(key, seal(key, msgspec.msgpack.encode(EpochRecord(epoch))), expire=_LIFETIME)
        for start in range(0, len(digests), _BATCH):
            with book.transact():
                for digest in digests[start : start + _BATCH]:
                    key = encode_key(("link-blob", "docker.io", _FILLER, f"sha256:{digest}"))
                    book.set(key, seal(key, value), expire=_LIFETIME)


def _digests(count: int) -> list[str]:
    """Sorted, so that neither the directories nor the records' index are filled in leaps."""
    return sorted(hashlib.sha256(number.to_bytes(8, "big")).hexdigest() for number in range(count))

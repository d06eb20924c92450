"""Does a full cache cost more? A mirror that holds N blobs beside one that holds a single image."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import diskcache
import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from bench import machine
from bench.image import BenchFailed, Image, blob_path, fetch, read_image
from bench.load import can_request, request
from bench.questions import CONNECTIONS, Effort
from bench.servers import Upstream, upstream
from mirror.store.database import encode_key
from mirror.store.shapes import LinkRecord
from tests.e2e.mirrors import MirrorProcess
from tests.e2e.processes import eventually, free_port

_BLOB_BYTES = 1000
"""Of each filler, as its file's length: no block is written for them."""
_LAYER_BYTES = 1 << 20
_BATCH = 10_000
_LIFETIME = 30 * 86400.0
_COUNT_SECONDS = 600.0
_STARTS = 3


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds from the start of the process until it accepts connections, until its first hit, until it has counted
    its blobs; and the CPU seconds used by then.
    """

    ready: float
    first_hit: float
    counted: float
    cpu: float


@dataclass(frozen=True, slots=True)
class Figures:
    """What one of the two mirrors does; CPU in seconds per hit, memory in bytes."""

    objects: int
    starts: tuple[Start, ...]
    early_p99: float
    """Seconds of a manifest hit, 99th percentile, right after a start: while a full cache still counts its blobs."""
    hits: dict[str, tuple[float, ...]]
    memory: int


class _Subject:
    """One of the two mirrors: its data, and whatever process has it at the moment."""

    def __init__(self, home: Path, behind: Upstream, core: int) -> None:
        home.mkdir()
        self.data = home / "data"
        self.objects = 0
        self.starts: list[Start] = []
        self.hits: dict[str, list[float]] = {}
        self.early_p99 = 0.0
        self._behind = behind
        self._core = core
        self._port = free_port()
        self.process = MirrorProcess(home, self._port)

    @contextmanager
    def running(self) -> Iterator[int]:
        """Starts it, and stops it at the end; gives its port."""
        # Filling a large cache takes longer than a tag stays fresh.
        with machine.pinned(self._core):
            self.process.start({"docker.io": {"url": self._behind.url}}, tag_ttl="1d")
        try:
            yield self._port
        finally:
            self.process.stop()

    def fill(self, objects: int) -> None:
        """Pulls the image, so that there is something to hit, then adds blobs and links to a stopped mirror."""
        image = self._behind.image
        with self.running() as port:
            for path in (image.by_tag, *map(blob_path, image.blobs)):
                fetch(port, path)
        digests = _digests(objects)
        _add_blobs(self.data, digests)
        _add_links(self.data, digests)
        self.objects = objects + len(image.blobs)

    @contextmanager
    def started(self) -> Iterator[int]:
        """Starts it and notes how long that takes."""
        image, began = self._behind.image, time.perf_counter()
        with self.running() as port:
            ready = time.perf_counter() - began
            if fetch(port, image.by_tag)[0].headers["X-Cache"] != "hit":
                raise BenchFailed("a mirror forgot its image when it was started anew")
            first_hit = time.perf_counter() - began
            if not eventually(self._has_counted, seconds=_COUNT_SECONDS):
                raise BenchFailed(f"{self.objects} blobs were not counted in {_COUNT_SECONDS:g} s")
            counted = time.perf_counter() - began
            self.starts.append(Start(ready, first_hit, counted, machine.cpu_seconds(self.process.pid)))
            yield port

    def hit_early(self, home: Path, image: Image, seconds: float) -> None:
        """Starts it and asks at once, whatever else it is doing."""
        with self.running() as port:
            self.early_p99 = request(home, port, image.by_tag, CONNECTIONS, seconds).p99

    def hit(self, home: Path, image: Image, port: int, seconds: float) -> None:
        """Measures what a hit of each kind costs now."""
        for kind, path in (("manifest", image.by_digest), ("blob", blob_path(image.blobs[0]))):
            before = machine.cpu_seconds(self.process.pid)
            got = request(home, port, path, CONNECTIONS, seconds)
            cost = (machine.cpu_seconds(self.process.pid) - before) / got.count
            self.hits.setdefault(kind, []).append(cost)

    def figures(self) -> Figures:
        """What came out; while it runs."""
        hits = {kind: tuple(costs) for kind, costs in self.hits.items()}
        return Figures(self.objects, tuple(self.starts), self.early_p99, hits, machine.resident_bytes(self.process.pid))

    def _has_counted(self) -> bool:
        return self.process.counted("mirror_cache_objects", kind="blob") >= self.objects


def run(console: Console, home: Path, objects: int, effort: Effort, cores: machine.Cores, into: Path | None) -> int:
    """Measures and prints; returns the exit code. Raises BenchFailed."""
    if not can_request():
        raise BenchFailed("wrk is not installed")
    with upstream(home, _LAYER_BYTES, read_image) as behind:
        empty, full = (_Subject(home / name, behind, cores.server) for name in ("empty", "full"))
        console.print(f"filling a cache with {objects:,} blobs …")
        empty.fill(0)
        full.fill(objects)
        try:
            found = _compare(home, behind.image, empty, full, effort)
        finally:
            shutil.rmtree(full.data)
    _show(console, *found)
    if into:
        about = {"machine": machine.describe(), "load_average": os.getloadavg()}
        into.write_text(json.dumps({**about, "empty": asdict(found[0]), "full": asdict(found[1])}, indent=2) + "\n")
    return 0


def _compare(home: Path, image: Image, empty: _Subject, full: _Subject, effort: Effort) -> tuple[Figures, Figures]:
    for _ in range(_STARTS - 1):
        for subject in (empty, full):
            with subject.started():
                pass
    for subject in (empty, full):
        subject.hit_early(home, image, effort.seconds)
    with empty.started() as first, full.started() as second:
        for _ in range(effort.rounds):
            empty.hit(home, image, first, effort.seconds)
            full.hit(home, image, second, effort.seconds)
        return empty.figures(), full.figures()


def _add_blobs(data: Path, digests: Sequence[str]) -> None:
    for digest in digests:
        folder = data / "blobs" / "sha256" / digest[:2]
        try:
            fd = os.open(folder / digest, os.O_WRONLY | os.O_CREAT, 0o600)
        except FileNotFoundError:
            folder.mkdir(mode=0o700, parents=True)
            fd = os.open(folder / digest, os.O_WRONLY | os.O_CREAT, 0o600)
        os.truncate(fd, _BLOB_BYTES)
        os.close(fd)


def _add_links(data: Path, digests: Sequence[str]) -> None:
    """A link record for each blob, as a pull would have left it."""
    now = time.time()
    value = msgspec.msgpack.encode(LinkRecord(_BLOB_BYTES, "", True, now, now, 0))
    book = diskcache.Cache(str(data / "records"), eviction_policy="none", cull_limit=0, size_limit=1 << 62)
    with book:
        for start in range(0, len(digests), _BATCH):
            with book.transact():
                for digest in digests[start : start + _BATCH]:
                    key = ("link", "docker.io", "library/filler", f"sha256:{digest}")
                    book.set(encode_key(key), value, expire=_LIFETIME)


def _digests(count: int) -> list[str]:
    """Sorted, so that neither the directories nor the records' index are filled in leaps."""
    return sorted(hashlib.sha256(number.to_bytes(8, "big")).hexdigest() for number in range(count))


def _show(console: Console, empty: Figures, full: Figures) -> None:
    table = Table(title="A full cache beside an empty one", box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("")
    for name in (f"{empty.objects:,} blobs", f"{full.objects:,} blobs", "full ÷ empty"):
        table.add_column(name, justify="right")
    for title, what in (
        ("ready, s after start", "ready"),
        ("first hit, s after start", "first_hit"),
        ("all blobs counted, s after start", "counted"),
        ("CPU s until then", "cpu"),
    ):
        _row(table, title, *([getattr(start, what) for start in figures.starts] for figures in (empty, full)))
    _row(table, "p99 ms of manifests meanwhile", [empty.early_p99 * 1e3], [full.early_p99 * 1e3])
    for kind in full.hits:
        costs = ([cost * 1e6 for cost in figures.hits[kind]] for figures in (empty, full))
        _row(table, f"CPU µs per {kind} hit", *costs)
    _row(table, "memory, MB", [empty.memory / 1e6], [full.memory / 1e6])
    console.print(table)


def _row(table: Table, title: str, empty: list[float], full: list[float]) -> None:
    ratio = median(ours / its for its, ours in zip(empty, full, strict=True))
    table.add_row(title, f"{median(empty):.2f}", f"{median(full):.2f}", f"{ratio:.2f}")

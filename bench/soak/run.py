"""The long run itself: upstream, mirror and clients as processes, looked at every few seconds, and ended in order."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import watch
from bench.image import BenchFailed
from bench.soak.tally import Tally
from tests.e2e.mirrors import MirrorProcess
from tests.e2e.processes import Process, eventually, free_port, tail

MAX_SIZE = 128 << 20
"""The mirror's whole budget: less than half of what clients ask for at any time."""
TREND_SECONDS = 600.0
"""A run that is shorter is all warming up: it has no trend to judge."""
_CLIENTS = 24
_STRANGERS = 40_000
"""Clients at the start of a longer run that ask for what there is not, each for something else: every bounded memory of
names is full then, and nothing may grow any more."""
_STEP = 2.0
_SETTLE_SECONDS = 45.0
_TIMEOUTS = {
    "connect": "2s", "try": "1s", "first_byte": "4s", "cold_head": "2s", "stale_after": "1s",
    "stall": "2s", "min_rate": "64KiB/s", "min_rate_window": "3s", "no_progress": "10s", "client": "10s",
}  # fmt: skip
"""Shorter than the defaults, so that the upstream's troubles are over sooner and there are more of them."""
_TTLS = {"negative_ttl": "1h", "link_ttl": "20s"}


@dataclass(frozen=True, slots=True)
class Sample:
    """The mirror at one moment, `seconds` after the clients began. Memory and disk in bytes."""

    seconds: float
    resident: int
    own: int
    files: int
    threads: int
    disk: int

    @classmethod
    def take(cls, began: float, mirror: MirrorProcess) -> Sample:
        """Looks. Raises OSError where the process is gone."""
        memory = watch.memory(mirror.pid)
        return cls(
            time.monotonic() - began,
            memory.resident,
            memory.own,
            watch.open_files(mirror.pid),
            watch.threads(mirror.pid),
            watch.stored_bytes(mirror.data),
        )


@dataclass(frozen=True, slots=True)
class Run:
    """What a run has brought: samples before, during and after; what clients saw; what is left on the disk."""

    seconds: float
    before: Sample
    during: tuple[Sample, ...]
    after: Sample
    tally: Tally
    evictions: int
    mismatches: int
    """Bodies of the upstream that had not the digest asked for: faults that the mirror has met."""
    held: int
    """Blobs on the disk at the end."""
    rotten: int
    """Those of them that have not the bytes of their name."""
    tracebacks: int
    """In the mirror's log."""


def run(home: Path, seconds: float, seed: int, progress: Callable[[str], None]) -> Run:
    """Lets the clients at it for so many seconds. Raises BenchFailed where a process ends that should not."""
    file = home / "tally.json"
    with _upstream(home, seed) as port:
        mirror = MirrorProcess(home, free_port())
        mirror.start(
            {"docker.io": {"url": f"http://127.0.0.1:{port}", **_TTLS}},
            storage={"path": str(mirror.data), "max_size": str(MAX_SIZE), "min_free": "0%"},
            timeouts=_TIMEOUTS,
            tag_ttl="2s",
        )
        try:
            before = Sample.take(time.monotonic(), mirror)
            began = time.monotonic()
            strangers = _STRANGERS if seconds >= TREND_SECONDS else 0
            with _clients(home, mirror, strangers, seed, file) as clients:
                during = tuple(_watched(began, seconds, mirror, clients, file, progress))
            evictions, mismatches = (
                round(mirror.counted(name)) for name in ("mirror_evictions_total", "mirror_digest_mismatches_total")
            )
            eventually(lambda: mirror.counted("mirror_downloads_in_flight") == 0, seconds=_SETTLE_SECONDS)
        except OSError as error:
            raise BenchFailed(f"the mirror is gone: {error}\n{tail(mirror.log)}") from error
        except BaseException:
            mirror.kill()
            raise
    # The upstream is stopped, and with it the connections to it that were kept.
    try:
        eventually(lambda: watch.open_files(mirror.pid) <= before.files, seconds=_SETTLE_SECONDS)
        after = Sample.take(began, mirror)
    finally:
        mirror.stop()
    held, rotten = _hashed(mirror.data)
    tracebacks = mirror.log.read_text(errors="replace").count("Traceback")
    return Run(seconds, before, during, after, Tally.load(file), evictions, mismatches, held, rotten, tracebacks)


def _watched(
    began: float, seconds: float, mirror: MirrorProcess, clients: Process, file: Path, progress: Callable[[str], None]
) -> Iterator[Sample]:
    told = began
    while (now := time.monotonic()) < began + seconds:
        time.sleep(min(_STEP, began + seconds - now))
        if clients.exit_code is not None:
            raise BenchFailed(f"the clients ended early:\n{tail(clients.log)}")
        sample = Sample.take(began, mirror)
        yield sample
        if now >= told + 60:
            told = now
            tally = Tally.load(file)
            progress(
                f"{sample.seconds / 60:.0f} min: {tally.total:,} requests, {sample.resident >> 20} MiB, "
                f"{sample.files} files, {sample.threads} threads, {sample.disk >> 20} MiB of disk"
            )


@contextmanager
def _upstream(home: Path, seed: int) -> Iterator[int]:
    log, port = home / "upstream.log", free_port()
    argv = [sys.executable, "-m", "bench.soak.upstream", f"--port={port}", f"--seed={seed}"]
    process = Process(argv, log=log, env=dict(os.environ))
    try:
        process.wait_until(lambda: " serves " in log.read_text())
        yield port
        if process.exit_code is not None:
            raise BenchFailed(f"the upstream ended early:\n{tail(log)}")
    finally:
        process.stop()


@contextmanager
def _clients(home: Path, mirror: MirrorProcess, strangers: int, seed: int, file: Path) -> Iterator[Process]:
    argv = [sys.executable, "-m", "bench.soak.clients", f"--url={mirror.url}", f"--seed={seed}"]
    argv += [f"--count={_CLIENTS}", f"--strangers={strangers}", f"--file={file}"]
    process = Process(argv, log=home / "clients.log", env=dict(os.environ))
    try:
        process.wait_until(file.exists)
        yield process
    finally:
        if (code := process.stop()) and sys.exception() is None:
            raise BenchFailed(f"the clients ended with {code}:\n{tail(process.log)}")


def _hashed(data: Path) -> tuple[int, int]:
    """How many blobs there are, and how many of them are not what their names say."""
    held = rotten = 0
    for path in (data / "blobs").glob("*/*/*"):
        with path.open("rb") as file:
            found = hashlib.file_digest(file, path.parts[-3]).hexdigest()
        held += 1
        rotten += found != path.name
    return held, rotten

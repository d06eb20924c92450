"""The demonstration's two programs: a small upstream registry, and the mirror in front of it."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.e2e.mirrors import MirrorProcess
from tests.e2e.processes import Process, eventually, free_port, tail

CONTENT = ("manifest", "blob")
"""Kinds of requests to an upstream that ask for content; the rest is the upstream's own business (pings, tokens)."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the upstream has been asked for content, in requests, and has sent, in bytes."""

    requests: int
    bytes: int

    def since(self, before: Asked) -> Asked:
        """What came on top of `before`."""
        return Asked(self.requests - before.requests, self.bytes - before.bytes)


@dataclass(frozen=True, slots=True)
class Shape:
    """How large the images' first layer is, in bytes as text, and how far away and fast their registry is."""

    images: tuple[tuple[str, str], ...]
    layer_size: str
    rate: str
    latency: float


class Stage:
    """Both programs, with all their files under `home`. A context manager: its end stops both by their pids."""

    def __init__(self, home: Path, shape: Shape) -> None:
        self._home = home
        self._shape = shape
        self._upstream: Process | None = None
        self._mirror: MirrorProcess | None = None
        self.port = 0
        """Where the mirror serves."""

    @property
    def distance(self) -> str:
        """How far away the upstream is, for people."""
        return f"{self._shape.latency * 1000:g} ms and {self._shape.rate}"

    def __enter__(self) -> Self:
        try:
            url = self._start_upstream()
            self._start_mirror(url)
        except BaseException:
            self.close(abort=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(abort=error is not None)

    def close(self, *, abort: bool = False) -> None:
        """Stops both; with `abort` the mirror need not be able to stop by itself yet. Idempotent."""
        mirror, self._mirror = self._mirror, None
        try:
            if mirror is not None:
                mirror.kill() if abort else mirror.stop()
        finally:
            self.stop_upstream()

    def stop_upstream(self) -> None:
        """The outage: nobody answers any more where the upstream was."""
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.stop()

    def asked(self) -> Asked:
        """What the upstream has been asked so far, by the mirror's metrics."""
        return Asked(
            sum(int(self.counted("mirror_upstream_requests_total", kind=kind)) for kind in CONTENT),
            sum(int(self.counted("mirror_upstream_bytes_total", kind=kind)) for kind in CONTENT),
        )

    def counted(self, metric: str, **labels: str) -> float:
        """A sum from the mirror's /metrics."""
        assert self._mirror is not None, "not started"
        return self._mirror.counted(metric, **labels)

    def amplification(self) -> float:
        """Origin amplification: upstream blob bytes, without bypasses, per byte of blobs newly held."""
        fetched = self.counted("mirror_upstream_bytes_total", kind="blob")
        return (fetched - self.counted("mirror_bypass_bytes_total")) / self.counted("mirror_stored_bytes_total")

    def settle(self) -> None:
        """Waits until every blob that arrived is on the disk. Raises TimeoutError."""
        if not eventually(lambda: self.counted("mirror_downloads_in_flight") == 0):
            raise TimeoutError("the mirror does not finish its downloads")

    def last_words(self) -> str:
        """The last lines of the mirror's log."""
        return "\n".join(tail(self._home / "mirror.log").splitlines()[-5:])

    def _start_upstream(self) -> str:
        """Starts the registry and returns its URL, which begins the line that it prints when it serves."""
        shape, log = self._shape, self._home / "upstream.log"
        images = [f"--image={repository}:{tag}" for repository, tag in shape.images]
        options = [f"--layer-size={shape.layer_size}", f"--rate={shape.rate}", f"--latency={shape.latency}"]
        argv = [sys.executable, "-m", "tests.upstream", *images, *options]
        self._upstream = Process(argv, log=log, env=dict(os.environ))
        self._upstream.wait_until(lambda: " serves " in log.read_text())
        return log.read_text().split()[0]

    def _start_mirror(self, upstream: str) -> None:
        self.port = free_port()
        self._mirror = MirrorProcess(self._home, self.port)
        # No grace: whoever interrupts the demonstration does not want to wait for the pulls.
        self._mirror.start({"docker.io": {"url": upstream}}, shutdown_grace="0s")

"""How long does containerd take for a real image, with the cache empty, with the cache full, and without a cache?"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from bench import machine
from bench.figures import Answer, Case
from bench.image import BenchFailed
from bench.real_image import real_image
from bench.rounds import Bench, record, settle, started
from bench.servers import TITLES, installed
from bench.site import Site, upstream
from tests.e2e.clients import Containerd, snippet
from tests.e2e.clients.containerd import Daemon
from tests.e2e.programs import run

DIRECT = "direct"
_REPOSITORY = "library/real"
_COLUMNS = ("cold", "warm", "cold_to_direct", "cpu_cold", "cpu_warm")
_RATIOS = ("cold", "warm")
_PULL_SECONDS = 180.0
_SNAPSHOTTER = "overlayfs"


def ask(bench: Bench) -> Answer:
    """Every cache, started anew in each round; containerd forgets the image before each pull."""
    answer = Answer("image", "A real image, pulled by containerd")
    site = Site(bench.home / "image-site")
    image = real_image(site, _REPOSITORY, bench.effort.image)
    size = sum(blob.size for blob in image.blobs)
    title = f"An image of {len(image.layers)} layers, {size / 1e6:.0f} MB compressed"
    case = answer.case(Case("image", title, _COLUMNS, _RATIOS))
    answer.servers[DIRECT] = "direct"
    with upstream(bench.home / "image-upstream", site) as behind, _client(bench) as client:
        client.pull(behind.port)  # what is done once, such as to load the programs, is nobody's
        for _ in range(bench.effort.rounds):
            record(answer, case, DIRECT, lambda: {"cold": client.pull(behind.port)})
            for name in bench.rivals("nginx"):
                answer.servers.setdefault(name, TITLES[name])

                def twice(name: str = name) -> Mapping[str, float]:
                    with started(bench, name, behind) as server:
                        answer.servers[name] = server.what
                        settle(server)
                        before = machine.cpu_seconds(server.group)
                        cold = client.pull(server.port)
                        settle(server)
                        between = machine.cpu_seconds(server.group)
                        warm = client.pull(server.port)
                        after = machine.cpu_seconds(server.group)
                    return {"cold": cold, "warm": warm, "cpu_cold": between - before, "cpu_warm": after - between}

                record(answer, case, name, twice)
    rows = answer.rows[case.name]
    direct = rows[DIRECT].figures.get("cold", [])
    for name, row in rows.items():
        if name != DIRECT and "cold" in row.figures:
            row.figures["cold_to_direct"] = [
                its / ours for its, ours in zip(row.figures["cold"], direct, strict=False)
            ]  # fmt: skip
    return answer


class _Client:
    """A containerd, and a directory with a `hosts.toml` for each server."""

    def __init__(self, bench: Bench, daemon: Daemon) -> None:
        self._bench = bench
        self._daemon = daemon
        self._containerd = Containerd(daemon, snapshotter=_SNAPSHOTTER)

    def pull(self, port: int) -> float:
        """Pulls the image from a server, having forgotten it; the seconds."""
        self._containerd.empty()
        hosts = self._bench.home / f"hosts-{port}"
        if not hosts.exists():
            snippet("containerd/hosts.toml", f"127.0.0.1:{port}", hosts / "docker.io" / "hosts.toml")
        arguments = ("--snapshotter", _SNAPSHOTTER, "--hosts-dir", hosts, f"docker.io/{_REPOSITORY}:1")
        began = time.perf_counter()
        run(
            "ctr", "--address", self._daemon.socket, "images", "pull", *arguments,
            home=self._daemon.home, seconds=_PULL_SECONDS,
        )  # fmt: skip
        return time.perf_counter() - began


@contextmanager
def _client(bench: Bench) -> Iterator[_Client]:
    if os.geteuid() != 0 or not (installed("containerd") and installed("ctr") and installed("runc")):
        raise BenchFailed("needs root, containerd, ctr and runc")
    home = bench.home / "containerd"
    home.mkdir()
    daemon = Daemon(home, "127.0.0.1:1", version=1)
    try:
        yield _Client(bench, daemon)
    finally:
        daemon.stop()

"""All clients by name, each started when the first test wants it and stopped at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.e2e.clients.client import Client
from tests.e2e.clients.containerd import Containerd, Crictl, Daemon
from tests.e2e.clients.containers import Buildah, Podman, Skopeo
from tests.e2e.clients.docker import Docker, DockerOnContainerd


class Fleet:
    """Clients that share one mirror (host:port). `new_home` makes a directory for each, with a short path: sockets'
    paths are bounded."""

    def __init__(self, new_home: Callable[[], Path], mirror: str) -> None:
        self._new_home = new_home
        self._mirror = mirror
        self._clients: dict[str, Client] = {}
        self._daemons: dict[tuple[int, int], Daemon] = {}
        self._ends = ExitStack()

    def client(self, name: str) -> Client:
        """The one client of that name, a key of `CLIENTS`. Skips the test where it cannot run."""
        if name not in self._clients:
            self._clients[name] = made = CLIENTS[name].start(self)
            self._ends.callback(made.stop)
        return self._clients[name]

    def containerd(self, version: int, *, fetch_buffer: int = 0) -> Daemon:
        """The containerd of that version, which ctr and crictl share."""
        key = version, fetch_buffer
        if key not in self._daemons:
            self._daemons[key] = made = Daemon(*self.place(), version=version, fetch_buffer=fetch_buffer)
            self._ends.callback(made.stop)
        return self._daemons[key]

    def place(self) -> tuple[Path, str]:
        """A new client's home, and the mirror."""
        return self._new_home(), self._mirror

    def stop(self) -> None:
        """Stops everything, the latest first, also where one of the stops fails."""
        self._ends.close()


@dataclass(frozen=True, slots=True)
class Choice:
    """A client, how it is started, and in what it differs from others."""

    start: Callable[[Fleet], Client]
    client: str
    store: str
    """What it keeps images on."""
    generation: Literal["old", "new"] = "old"
    """Old is what Debian 12 has."""


CLIENTS: Mapping[str, Choice] = {
    "dockerd": Choice(lambda fleet: Docker(*fleet.place()), "dockerd", "vfs"),
    "dockerd-overlay2": Choice(lambda fleet: Docker(*fleet.place(), driver="overlay2"), "dockerd", "overlay"),
    "dockerd-containerd-store": Choice(lambda fleet: DockerOnContainerd(*fleet.place()), "dockerd", "overlay", "new"),
    "containerd": Choice(lambda fleet: Containerd(fleet.containerd(1)), "ctr", "native"),
    "containerd-cri": Choice(lambda fleet: Crictl(fleet.containerd(1)), "crictl", "overlay"),
    "containerd2": Choice(
        lambda fleet: Containerd(fleet.containerd(2), snapshotter="overlayfs"), "ctr", "overlay", "new"
    ),
    "containerd2-cri": Choice(lambda fleet: Crictl(fleet.containerd(2)), "crictl", "overlay", "new"),
    "podman": Choice(lambda fleet: Podman(*fleet.place()), "podman", "vfs"),
    "podman-overlay": Choice(lambda fleet: Podman(*fleet.place(), driver="overlay"), "podman", "overlay"),
    "podman5": Choice(lambda fleet: Podman(*fleet.place(), driver="overlay", trixie=True), "podman", "overlay", "new"),
    "buildah": Choice(lambda fleet: Buildah(*fleet.place()), "buildah", "vfs"),
    "buildah-overlay": Choice(lambda fleet: Buildah(*fleet.place(), driver="overlay"), "buildah", "overlay"),
    "skopeo": Choice(lambda fleet: Skopeo(*fleet.place()), "skopeo", "directory"),
    # The same library as CRI-O's, told what CRI-O is told.
    "crio": Choice(
        lambda fleet: Skopeo(*fleet.place(), example="crio/registries.conf", trixie=True), "skopeo", "directory", "new"
    ),
}
"""Every client, in each of its forms."""

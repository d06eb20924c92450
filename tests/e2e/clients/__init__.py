"""Real clients, each configured by the file that our users are shown in `examples/clients/`.

A client is a class of the small protocol `Client`: it pulls through the mirror, proves what it pulled, forgets it and
ends. Those with a daemon are slow to start, so that tests share one of each.
"""

from tests.e2e.clients.client import DEFAULT_ADDRESS, Client, snippet
from tests.e2e.clients.containerd import Containerd, Crictl
from tests.e2e.clients.containers import Buildah, Podman, Skopeo
from tests.e2e.clients.docker import Docker, DockerOnContainerd
from tests.e2e.clients.fleet import CLIENTS, Fleet

__all__ = [
    "CLIENTS",
    "DEFAULT_ADDRESS",
    "Buildah",
    "Client",
    "Containerd",
    "Crictl",
    "Docker",
    "DockerOnContainerd",
    "Fleet",
    "Podman",
    "Skopeo",
    "snippet",
]

"""Registries that a cluster finds under the names of real ones; each tells what it was asked, and by whom."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

from tests.e2e.troubled import TroubledUpstream
from tests.kubernetes.authority import Authority
from tests.kubernetes.namespaces import Namespaces
from tests.upstream import Basic, FakeRegistry

USER, PASSWORD = "puller", "planted-s3cret"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a registry is: the name in images, the host that serves it, and that one's address."""

    name: str
    host: str
    address: str


# No network leads out of the cluster; in there these are addresses like any other. The mirror goes to public ones alone
# unless it is told otherwise, and a company's own registry has none.
PLACES = (
    Place("docker.io", "registry-1.docker.io", "52.0.0.1"),
    Place("quay.io", "quay.io", "52.0.0.2"),
    Place("registry.corp", "registry.corp", "10.99.0.1"),
)
PRIVATE = PLACES[2]
HOSTS = {place.host: place.address for place in PLACES}


class Registries:
    """A context manager: all of them serve, inside of `namespaces`. The private one wants `USER` and `PASSWORD`."""

    def __init__(self, authority: Authority, namespaces: Namespaces) -> None:
        self._ends = ExitStack()
        self._registries = {
            place.name: TroubledUpstream(
                FakeRegistry(
                    port=443,
                    address=place.address,
                    name=place.host,
                    tls=authority.server(),
                    auth=Basic({USER: PASSWORD}) if place is PRIVATE else None,
                ),
                namespaces.enter_network,
            )
            for place in PLACES
        }

    def __enter__(self) -> Self:
        with ExitStack() as ends:
            for registry in self._registries.values():
                ends.enter_context(registry)
            self._ends = ends.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    def __getitem__(self, name: str) -> TroubledUpstream:
        return self._registries[name]

"""What size a blob has by the manifests that name it: good enough to begin with, never to promise."""

from __future__ import annotations

from mirror.memory import Bounded
from mirror.oci.digest import Digest
from mirror.routing import Target

_MOST = 100_000


class Hints:
    """Sizes in bytes, by the repository whose manifest told them; in memory alone."""

    def __init__(self) -> None:
        self._sizes: Bounded[tuple[str, str, Digest], int] = Bounded(_MOST)

    def get(self, target: Target, digest: Digest) -> int | None:
        """What a manifest that was served from this repository says."""
        return self._sizes.get(_key(target, digest))

    def put(self, target: Target, digest: Digest, size: int) -> None:
        """A manifest says so."""
        self._sizes.set(_key(target, digest), size)

    def offer(self, target: Target, digest: Digest, size: int) -> None:
        """Another worker knows of one that says so; ours counts for more."""
        if self.get(target, digest) is None:
            self.put(target, digest, size)

    def forget(self, target: Target, digest: Digest) -> None:
        """It turned out wrong."""
        self._sizes.pop(_key(target, digest))


def _key(target: Target, digest: Digest) -> tuple[str, str, Digest]:
    return (target.upstream.host, target.repository, digest)

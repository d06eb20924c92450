"""An upstream that keeps its blobs elsewhere, as most large ones do: each is a redirect to a signed URL of a CDN.

It is the fake registry of the other tests, whose CDN refuses what an object store would refuse: a URL that was
rewritten or is for another method, and one that comes with a password.
"""

from __future__ import annotations

from contextlib import ExitStack

from tests.e2e.images import Image
from tests.e2e.registries import Asked, Upstream
from tests.e2e.troubled import TroubledUpstream
from tests.upstream import ANY, Seen, redirect


class RedirectingRegistry:
    """Holds one image. What was asked of the registry and of its CDN counts as asked of it."""

    log = None

    def __init__(self, image: Image, repository: str, tag: str) -> None:
        with ExitStack() as ends:
            self._fake = ends.enter_context(TroubledUpstream())
            self._fake.hold(image, repository, tag)
            self._fake.do(lambda fake: fake.fault(ANY, redirect(), kind="blob", origin="registry"))
            self._ends = ends.pop_all()

    def asked(self) -> list[Asked]:
        """Everything so far, in order."""
        return [_line(seen) for seen in self._fake.do(lambda fake: fake.select())]

    def stop(self) -> None:
        """Ends both servers."""
        self._ends.close()

    def upstream(self) -> Upstream:
        """The mirror's view of it."""
        return Upstream(self, self._fake.settings)


def _line(seen: Seen) -> Asked:
    # The CDN's path is its own; the blob that it gave is one of the registry's.
    path = f"/v2/{seen.repository}/blobs/{seen.digest}" if seen.origin == "cdn" else seen.path
    return Asked(seen.method, path, seen.status or 0, seen.bytes_sent, seen.headers.get("User-Agent", ""))

"""When blobs were used last, in memory until it is written as the times of their files."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

from mirror.oci.digest import Digest

_MOST = 200_000
"""Uses that wait to be written; of more than that the oldest matter least."""


class Uses:
    """`times` are seconds since the epoch by digest, the one noted last at the end."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.times: dict[Digest, float] = {}
        self._clock = clock

    def __len__(self) -> int:
        """How many are noted."""
        return len(self.times)

    def touch(self, digest: Digest) -> None:
        """Notes a use now."""
        self._note(digest, self._clock())

    def note(self, uses: Iterable[tuple[Digest, float]]) -> None:
        """Notes what another process has told of; a later use counts."""
        for digest, used_at in uses:
            self._note(digest, max(used_at, self.times.get(digest, 0.0)))

    def take(self, most: int) -> list[tuple[Digest, float]]:
        """At most so many, the oldest first, for another process to write; they are not ours then."""
        taken = list(itertools.islice(self.times.items(), most))
        for digest, _ in taken:
            del self.times[digest]
        return taken

    def written(self, uses: dict[Digest, float]) -> None:
        """These stand on the disk; what was used again since does not."""
        for digest, used_at in uses.items():
            if self.times.get(digest) == used_at:
                del self.times[digest]

    def _note(self, digest: Digest, used_at: float) -> None:
        self.times.pop(digest, None)
        self.times[digest] = used_at
        if len(self.times) > _MOST:
            del self.times[next(iter(self.times))]

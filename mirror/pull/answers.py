"""What a pull gives: the thing, and where it came from."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from mirror.download import Body
from mirror.oci.byte_range import ByteRange
from mirror.oci.digest import Digest
from mirror.store.generations import Watch
from mirror.transport import Deadline


class Source(StrEnum):
    """Where an answer came from: X-Cache, and the label `result` of the metrics."""

    HIT = "hit"
    MISS = "miss"
    JOINED = "joined"
    STALE = "stale"
    REVALIDATED = "revalidated"
    BYPASS = "bypass"


@dataclass(frozen=True, slots=True)
class ManifestAnswer:
    """A manifest: `content` is its exact bytes, None where only its headers were asked for and are known."""

    digest: Digest
    size: int
    media_type: str
    content: bytes | None
    source: Source


@dataclass(frozen=True, slots=True)
class Lasting:
    """How long an answer is what would be found out anew: from `since` to `until`, in seconds since the epoch, while
    `watch` holds.
    """

    since: float
    until: float
    watch: Watch

    def holds(self, now: float) -> bool:
        """Whether it does. Before `since` the clock was set back: nobody knows then how old anything is."""
        return self.since <= now < self.until and self.watch.holds()


@dataclass(frozen=True, slots=True)
class BlobAnswer:
    """A blob of `size` bytes, or `parts` of it, if there are any. Whoever gets it closes `body` (None for a HEAD).

    `patience`: how long the headers may wait for the first byte; None where they need not, since it is known to come.
    `content`: the whole blob, where it is small and at hand.
    """

    digest: Digest
    size: int
    parts: tuple[ByteRange, ...]
    body: Body | None
    source: Source
    patience: Deadline | None = None
    content: bytes | None = None

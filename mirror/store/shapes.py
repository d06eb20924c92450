"""The shapes of the named records: what is remembered of what an upstream said, and when it said it."""

from __future__ import annotations

import msgspec


class TagRecord(msgspec.Struct, frozen=True, array_like=True):
    """What a tag meant at `checked_at` (seconds since the epoch).

    `before`: what it meant before, as long as we have not got the manifest that it means now; else empty.
    """

    digest: str
    checked_at: float
    epoch: int
    before: str = ""


class ListRecord(msgspec.Struct, frozen=True, array_like=True):
    """The upstream's list, or a stretch of it, at `checked_at`: tags in order, or descriptors as their exact JSON.

    `rest`: the cursor of the stretch that follows; empty where nothing does. `substitute`: it is what stands for a list
    where the upstream has none.
    """

    items: tuple[str, ...]
    rest: str
    checked_at: float
    epoch: int
    substitute: bool = False


class CursorRecord(msgspec.Struct, frozen=True, array_like=True):
    """The query by which the upstream itself said that its list goes on."""

    query: str


class LinkRecord(msgspec.Struct, frozen=True, array_like=True):
    """The upstream itself has said, last at `checked_at`, that this repository has this digest.

    `proven`: it has also shown the bytes; a claim alone gives nobody what we hold from another upstream. `epoch` is the
    repository's when it was asked: a later refusal of the repository ends the link. `media_type` is empty for blobs;
    `size` is in bytes.
    """

    size: int
    media_type: str
    proven: bool
    checked_at: float
    renewed_at: float
    epoch: int


class AbsenceRecord(msgspec.Struct, frozen=True, array_like=True):
    """The upstream answered at `checked_at` that there is no such thing, with this error code."""

    code: str
    message: str
    checked_at: float


class OriginRecord(msgspec.Struct, frozen=True, array_like=True):
    """The upstream host whose bytes were verified and stored under a digest."""

    host: str

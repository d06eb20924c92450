"""What workers ask each other, and what they answer."""

from __future__ import annotations

from typing import Literal

import msgspec

from mirror.oci import errors
from mirror.oci.errors import MirrorError, UpstreamUnavailable

_KINDS: dict[str, type[MirrorError]] = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, MirrorError)
}


class _Question(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """`host` and `repository` as the upstream names them; after `within` seconds no answer is of use."""

    host: str
    repository: str
    within: float = 600.0


class AskManifest(_Question, frozen=True, array_like=True, tag="manifest"):
    """What the reference means now; with `head` its bytes are not wanted. Answered by ManifestFound."""

    reference: str
    head: bool


class AskList(_Question, frozen=True, array_like=True, tag="list"):
    """A repository's tags, or the referrers of `subject`, from where `cursor` points. Answered by ListFound."""

    kind: Literal["tags", "referrers"]
    subject: str
    cursor: str


class AskClaim(_Question, frozen=True, array_like=True, tag="claim"):
    """Whether the repository has the blob, and how long it is. Answered by a LinkRecord."""

    digest: str


class AskProof(_Question, frozen=True, array_like=True, tag="proof"):
    """Whether the upstream has these bytes of the blob there. Answered by a LinkRecord."""

    digest: str
    size: int
    offset: int
    data: bytes


class AskRenewal(_Question, frozen=True, array_like=True, tag="renewal"):
    """A link was used that is due to be asked for again. Answered by whether that has been done."""

    kind: Literal["manifest", "blob"]
    digest: str


class AskFill(_Question, frozen=True, array_like=True, tag="fill"):
    """To have a blob fetched, and be told how far it is; `others` are further repositories that want it.

    Answered by news: Queued, Spooling, Head, Grown and Complete or Frozen; or Held or Passing alone; Broken at any
    time. Whoever asks may tell of `Joined` and `KeepOn` meanwhile, and leaves by closing the connection.
    """

    digest: str
    others: list[str]
    background: bool
    hint: int | None


class AskBytes(_Question, frozen=True, array_like=True, tag="bytes"):
    """The blob, or bytes `start` to `end` of it, past the disk. Answered by the news StreamHead, and data."""

    digest: str
    start: int | None
    end: int | None


Question = AskManifest | AskList | AskClaim | AskProof | AskRenewal | AskFill | AskBytes


class ManifestFound(msgspec.Struct, frozen=True, array_like=True):
    """As pull.ManifestAnswer."""

    digest: str
    size: int
    media_type: str
    content: bytes | None
    source: str


class ListFound(msgspec.Struct, frozen=True, array_like=True):
    """As pull.lists.ListAnswer."""

    items: tuple[str, ...]
    rest: str
    source: str


class Spooling(msgspec.Struct, frozen=True, array_like=True, tag="spooling"):
    """The blob is on its way into the file `name` among the spools, which has this `inode`; `written` bytes are there.

    `shown`: the repository to which the bytes are an answer that still counts. `joined`: others had it fetched before.
    """

    name: str
    inode: int
    size: int
    written: int
    shown: str | None
    joined: bool


class Queued(msgspec.Struct, frozen=True, array_like=True, tag="queued"):
    """Whether the blob waits for its turn."""

    waits: bool


class Head(msgspec.Struct, frozen=True, array_like=True, tag="head"):
    """The first bytes, which are not in the file yet."""

    data: bytes


class Grown(msgspec.Struct, frozen=True, array_like=True, tag="grown"):
    """So many bytes are there now."""

    written: int


class Complete(msgspec.Struct, frozen=True, array_like=True, tag="complete"):
    """All `size` bytes are there, and right."""

    size: int


class Frozen(msgspec.Struct, frozen=True, array_like=True, tag="frozen"):
    """No more than these will be written; they are not verified."""

    written: int


class Passing(msgspec.Struct, frozen=True, array_like=True, tag="passing"):
    """The blob goes past the disk: its bytes have to be asked for."""


class Held(msgspec.Struct, frozen=True, array_like=True, tag="held"):
    """The blob is here, and may be given through the repository."""

    inode: int


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """A MirrorError."""

    kind: str
    message: str
    detail: str | None = None
    reason: str = ""
    retry_after: float | None = None

    @classmethod
    def of(cls, error: MirrorError) -> Failure:
        """What crosses of an error: of one that others do not know, its nearest ancestor that they know."""
        kind = next(kind.__name__ for kind in type(error).__mro__ if _KINDS.get(kind.__name__) is kind)
        if isinstance(error, UpstreamUnavailable):
            return cls(kind, error.message, error.detail, error.reason, error.retry_after)
        return cls(kind, error.message, error.detail)

    @property
    def error(self) -> MirrorError:
        """The same error again."""
        kind = _KINDS.get(self.kind, UpstreamUnavailable)
        error = kind.__new__(kind)  # each has another signature, and all that matters of it is here
        MirrorError.__init__(error, self.message, detail=self.detail)
        if isinstance(error, UpstreamUnavailable):
            error.reason, error.retry_after = self.reason, self.retry_after
        return error


class Broken(msgspec.Struct, frozen=True, array_like=True, tag="broken"):
    """It failed: what each repository may hear of that. `again`: another attempt follows; ask for it."""

    failures: dict[str, Failure]
    again: bool


News = Queued | Spooling | Head | Grown | Complete | Frozen | Passing | Held | Broken


class StreamHead(msgspec.Struct, frozen=True, array_like=True):
    """As transport.BlobStream. `relayed`: whoever sends it has counted the bytes."""

    start: int
    size: int | None
    partial: bool
    content_encoding: str | None
    relayed: bool


class Joined(msgspec.Struct, frozen=True, array_like=True, tag="joined"):
    """One more repository wants the blob."""

    repository: str


class KeepOn(msgspec.Struct, frozen=True, array_like=True, tag="keep_on"):
    """It is to be finished whoever leaves."""


Told = Joined | KeepOn

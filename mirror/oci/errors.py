"""Everything that can go wrong, as one tree; `api/responses.py` alone turns it into statuses.

    MirrorError
    ├── InvalidRequest            the client's words are off
    │   ├── NameInvalid           400 NAME_INVALID
    │   ├── DigestInvalid         400 DIGEST_INVALID
    │   ├── RangeInvalid          400: a Range we do not serve
    │   ├── RangeNotSatisfiable   416: no byte is in the range
    │   └── Unsupported           404/405 UNSUPPORTED
    ├── Unknown                   the upstream said that there is no such thing
    │   ├── NameUnknown           404 NAME_UNKNOWN
    │   ├── TagsUnknown           404 NAME_UNKNOWN: no list of tags, which says nothing of the repository
    │   ├── ManifestUnknown       404 MANIFEST_UNKNOWN
    │   └── BlobUnknown           404 BLOB_UNKNOWN
    ├── UpstreamRefused           the upstream said no, or we may not ask it: 403 DENIED
    ├── UpstreamUnavailable       no answer: 503 UNAVAILABLE
    │   ├── UpstreamTimeout       504 UNAVAILABLE
    │   ├── UpstreamThrottled     429 TOOMANYREQUESTS
    │   ├── CredentialRejected    our own credential was refused: 503 UNAVAILABLE
    │   ├── UpstreamCorrupt       wrong bytes, twice: 502 UNAVAILABLE
    │   └── Unprovable            a word that is not enough to give what we hold: it is fetched instead
    └── StorageError              our own disk; never reaches a client, we pass through instead

"No" (Unknown, UpstreamRefused) is an answer; UpstreamUnavailable is none. Only the second may be papered over with a
stale copy.
"""

from __future__ import annotations


class MirrorError(Exception):
    """Base of every error we raise; `code` is the error code of the distribution specification."""

    code = "UNKNOWN"

    def __init__(self, message: str, *, detail: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail


class InvalidRequest(MirrorError):
    """The request itself is wrong; no upstream was asked."""

    code = "UNSUPPORTED"


class NameInvalid(InvalidRequest):
    """A repository name outside the specification's grammar."""

    code = "NAME_INVALID"


class DigestInvalid(InvalidRequest):
    """A digest outside the specification's grammar, or of an algorithm we do not verify."""

    code = "DIGEST_INVALID"


class RangeInvalid(InvalidRequest):
    """A Range header that is well formed but not served."""


class RangeNotSatisfiable(InvalidRequest):
    """A range that starts at or past the end, or is backwards; `size` is the length in bytes for Content-Range."""

    code = "SIZE_INVALID"

    def __init__(self, size: int) -> None:
        super().__init__(f"none of the {size} bytes that there are is in the range")
        self.size = size


class Unsupported(InvalidRequest):
    """A method or an endpoint that a pull-through cache does not have; `allow` names the methods that exist."""

    def __init__(self, message: str, *, allow: str | None = None) -> None:
        super().__init__(message)
        self.allow = allow


class Unknown(MirrorError):
    """The upstream answered that it has no such thing."""


class NameUnknown(Unknown):
    """No such repository at the upstream."""

    code = "NAME_UNKNOWN"


class TagsUnknown(Unknown):
    """No list of tags under this name; whether there is such a repository was not said."""

    code = "NAME_UNKNOWN"


class ManifestUnknown(Unknown):
    """No such tag or manifest in the repository."""

    code = "MANIFEST_UNKNOWN"


class BlobUnknown(Unknown):
    """No such blob in the repository."""

    code = "BLOB_UNKNOWN"


class UpstreamRefused(MirrorError):
    """The upstream refused a fresh token or credential, or configuration does not let us ask it."""

    code = "DENIED"


class UpstreamUnavailable(MirrorError):
    """The upstream gave no usable answer; `retry_after` in seconds, where it is known."""

    code = "UNAVAILABLE"

    def __init__(self, message: str, *, reason: str = "unreachable", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        """A short constant for metrics: unreachable, reset, tls, status, throttled, timeout, credential, corrupt, …"""
        self.retry_after = retry_after


class UpstreamTimeout(UpstreamUnavailable):
    """The upstream did not answer in time."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="timeout")


class UpstreamThrottled(UpstreamUnavailable):
    """The upstream asked us to slow down (429), or we still keep the pause it asked for."""

    code = "TOOMANYREQUESTS"

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message, reason="throttled", retry_after=retry_after)


class CredentialRejected(UpstreamUnavailable):
    """The upstream refused our own credential: an operator's problem, never a reason to say that content is absent."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="credential")


class UpstreamCorrupt(UpstreamUnavailable):
    """The upstream sent bytes that do not have the digest it was asked for."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="corrupt")


class Unprovable(UpstreamUnavailable):
    """The upstream says that it has the blob, but its word on a part or its length is not enough: fetch it whole."""


class StorageError(MirrorError):
    """Our disk failed or is full. Callers degrade to pass-through; a client never sees this."""

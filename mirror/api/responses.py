"""Answers: the one table from errors to statuses, and the headers of manifests and blobs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from http import HTTPStatus

import msgspec
from aiohttp import web

from mirror.api.multipart import Multipart, Section
from mirror.oci.byte_range import ByteRange, RangeSet
from mirror.oci.digest import Digest
from mirror.oci.errors import (
    InvalidRequest,
    MirrorError,
    RangeNotSatisfiable,
    StorageError,
    Unknown,
    Unsupported,
    UpstreamCorrupt,
    UpstreamRefused,
    UpstreamThrottled,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from mirror.pull import BlobAnswer, ManifestAnswer
from mirror.transport import VIA

_STATUSES: tuple[tuple[type[MirrorError], int], ...] = (
    # Most particular first: the first that fits counts.
    (RangeNotSatisfiable, 416),
    (Unsupported, 404),
    (InvalidRequest, 400),
    (Unknown, 404),
    (UpstreamRefused, 403),
    (UpstreamThrottled, 429),
    (UpstreamTimeout, 504),
    (UpstreamCorrupt, 502),
    (UpstreamUnavailable, 503),
    (StorageError, 503),
)
_RETRY_AFTER_SECONDS = 5.0
"""What clients are told where the upstream named no time."""
_RETRIED = (429, 503)
_JSON = "application/json"
SERVER = "mirror"
"""The Server header; aiohttp's own would tell versions."""
_BLOB_TYPE = "application/octet-stream"


def error_response(error: MirrorError) -> web.Response:
    """The specification's envelope with the status and headers of the error."""
    status = 405 if isinstance(error, Unsupported) and error.allow else _status(error)
    response = _envelope(status, error.code, error.message, error.detail)
    if status in _RETRIED:
        known = error.retry_after if isinstance(error, UpstreamUnavailable) else None
        response.headers["Retry-After"] = str(math.ceil(_RETRY_AFTER_SECONDS if known is None else max(1.0, known)))
    if isinstance(error, UpstreamUnavailable):
        response.headers["Via"] = VIA  # what another mirror makes of it: not to be held against us
    if isinstance(error, RangeNotSatisfiable):
        response.headers["Content-Range"] = f"bytes */{error.size}"
    if isinstance(error, Unsupported) and error.allow:
        response.headers["Allow"] = error.allow
    return response


def unexpected_response() -> web.Response:
    """What a client sees of a fault of our own; the log has the rest."""
    return _envelope(500, "UNKNOWN", "the mirror failed; its log says why")


def malformed_response(status: int, reason: str) -> web.Response:
    """For what is not HTTP as we read it."""
    return _envelope(status, "UNSUPPORTED", reason)


def refusal(status: int, code: str, message: str) -> bytes:
    """The same as it goes over the wire, for a connection on which nothing else will be answered."""
    response = _envelope(status, code, message)
    assert isinstance(response.body, bytes)
    retry = f"Retry-After: {_RETRY_AFTER_SECONDS:.0f}\r\n" if status in _RETRIED else ""
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: {_JSON}\r\n{retry}"
        f"Content-Length: {len(response.body)}\r\nConnection: close\r\nServer: {SERVER}\r\n\r\n"
    )
    return head.encode() + response.body


def version_response() -> web.Response:
    """`GET /v2/`: we speak the API, whatever the upstreams do."""
    return web.Response(body=b"{}", content_type=_JSON)


def manifest_response(answer: ManifestAnswer, ranges: RangeSet | None, *, not_modified: bool) -> web.Response:
    """A manifest or parts of it; for a HEAD the framework leaves the body out.

    Raises RangeNotSatisfiable, RangeInvalid.
    """
    headers = _headers(answer.digest, answer.media_type, answer.source)
    if not_modified:
        return web.Response(status=304, headers=headers)
    if answer.content is None:
        headers["Content-Length"] = str(answer.size)
        return web.Response(headers=headers)
    parts = () if ranges is None else ranges.resolve(answer.size)
    return _whole(headers, answer.content, parts, answer.media_type)


def blob_response(answer: BlobAnswer, *, not_modified: bool) -> tuple[web.StreamResponse, Iterable[Section]]:
    """The headers of a blob, and what its body is made of, for the sender."""
    headers = _headers(answer.digest, _BLOB_TYPE, answer.source)
    if not_modified:
        return web.Response(status=304, headers=headers), ()
    if answer.content is not None:
        return _whole(headers, answer.content, answer.parts, _BLOB_TYPE), ()
    if len(answer.parts) > 1:
        multipart = Multipart(answer.parts, answer.size, _BLOB_TYPE)
        headers["Content-Type"] = multipart.content_type
        headers["Content-Length"] = str(multipart.length)
        return web.StreamResponse(status=206, headers=headers), multipart.sections()
    if answer.parts:
        headers["Content-Length"] = str(answer.parts[0].length)
        headers["Content-Range"] = answer.parts[0].content_range(answer.size)
        return web.StreamResponse(status=206, headers=headers), answer.parts
    headers["Content-Length"] = str(answer.size)
    sections = (ByteRange(0, answer.size - 1),) if answer.size else ()
    return web.StreamResponse(headers=headers), sections


def etag(digest: Digest) -> str:
    """The strong entity tag of content with this digest (RFC 9110 §8.8.3)."""
    return f'"{digest}"'


def _whole(headers: dict[str, str], content: bytes, parts: tuple[ByteRange, ...], media_type: str) -> web.Response:
    """All of what is at hand, or parts of it, if there are any."""
    if not parts:
        return web.Response(body=content, headers=headers)
    if len(parts) > 1:
        multipart = Multipart(parts, len(content), media_type)
        headers["Content-Type"] = multipart.content_type
        return web.Response(status=206, body=multipart.body(content), headers=headers)
    headers["Content-Range"] = parts[0].content_range(len(content))
    return web.Response(status=206, body=content[parts[0].start : parts[0].end + 1], headers=headers)


def _headers(digest: Digest, media_type: str, source: str) -> dict[str, str]:
    return {
        "Content-Type": media_type,
        "Docker-Content-Digest": str(digest),
        "ETag": etag(digest),
        "Accept-Ranges": "bytes",
        "X-Cache": source,
    }


def _envelope(status: int, code: str, message: str, detail: str | None = None) -> web.Response:
    entry = {"code": code, "message": message, "detail": detail}
    return web.Response(status=status, body=msgspec.json.encode({"errors": [entry]}), content_type=_JSON)


def _status(error: MirrorError) -> int:
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), 500)

"""From errors and answers to statuses, headers and bodies: the one table."""

from __future__ import annotations

import json
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from mirror.api.responses import (
    blob_response,
    error_response,
    etag,
    malformed_response,
    manifest_response,
    unexpected_response,
    version_response,
)
from mirror.oci import errors
from mirror.oci.byte_range import ByteRange, RangeSet, RangeSpec
from mirror.oci.digest import Digest
from mirror.oci.errors import MirrorError, RangeNotSatisfiable, Unsupported, UpstreamThrottled, UpstreamUnavailable
from mirror.oci.manifest import OCI_MANIFEST
from mirror.pull import BlobAnswer, ManifestAnswer, Source

CONTENT = b'{"schemaVersion": 2}'
DIGEST = Digest.of(CONTENT)
MANIFEST = ManifestAnswer(DIGEST, len(CONTENT), OCI_MANIFEST, CONTENT, Source.HIT)
BLOB = BlobAnswer(DIGEST, 1000, (), None, Source.JOINED)

TABLE: list[tuple[MirrorError, int, str]] = [
    (errors.NameInvalid("x"), 400, "NAME_INVALID"),
    (errors.DigestInvalid("x"), 400, "DIGEST_INVALID"),
    (errors.RangeInvalid("x"), 400, "UNSUPPORTED"),
    (errors.RangeNotSatisfiable(5), 416, "SIZE_INVALID"),
    (errors.Unsupported("x"), 404, "UNSUPPORTED"),
    (errors.Unsupported("x", allow="GET, HEAD"), 405, "UNSUPPORTED"),
    (errors.NameUnknown("x"), 404, "NAME_UNKNOWN"),
    (errors.TagsUnknown("x"), 404, "NAME_UNKNOWN"),
    (errors.ManifestUnknown("x"), 404, "MANIFEST_UNKNOWN"),
    (errors.BlobUnknown("x"), 404, "BLOB_UNKNOWN"),
    (errors.UpstreamRefused("x"), 403, "DENIED"),
    (errors.CredentialRejected("x"), 503, "UNAVAILABLE"),
    (errors.UpstreamThrottled("x", retry_after=7), 429, "TOOMANYREQUESTS"),
    (errors.UpstreamTimeout("x"), 504, "UNAVAILABLE"),
    (errors.UpstreamCorrupt("x"), 502, "UNAVAILABLE"),
    (errors.UpstreamUnavailable("x"), 503, "UNAVAILABLE"),
    (errors.Unprovable("x"), 503, "UNAVAILABLE"),
    (errors.StorageError("x"), 503, "UNKNOWN"),
]


def entry(response: web.StreamResponse) -> dict[str, Any]:
    """The one error of an envelope."""
    assert isinstance(response, web.Response)
    assert isinstance(response.body, bytes)
    body = json.loads(response.body)
    assert list(body) == ["errors"]
    (only,) = body["errors"]
    assert list(only) == ["code", "message", "detail"]
    return dict(only)


@pytest.mark.parametrize(("error", "status", "code"), TABLE, ids=lambda value: type(value).__name__)
def test_each_error_has_its_status_and_code(error: MirrorError, status: int, code: str) -> None:
    """The table of the design, in the specification's envelope, as JSON and nothing else."""
    response = error_response(error)

    assert response.status == status
    assert response.headers["Content-Type"] == "application/json"
    assert entry(response) == {"code": code, "message": error.message, "detail": None}
    assert ("Retry-After" in response.headers) == (status in (429, 503))
    assert ("Allow" in response.headers) == (status == 405)
    assert ("Content-Range" in response.headers) == (status == 416)
    assert response.headers.get("Via") == ("1.1 mirror" if isinstance(error, errors.UpstreamUnavailable) else None)
    assert "WWW-Authenticate" not in response.headers


def test_no_error_is_missing_from_the_table() -> None:
    """Whoever adds an error says here what clients see of it."""
    leaves = {
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, MirrorError)
    } - {MirrorError, errors.InvalidRequest, errors.Unknown}  # fmt: skip

    assert {type(error) for error, _, _ in TABLE} == leaves


@pytest.mark.parametrize(("seconds", "header"), [(0.0, "1"), (0.2, "1"), (1.0, "1"), (7.2, "8"), (3600.0, "3600")])
def test_a_known_pause_is_passed_on(seconds: float, header: str) -> None:
    """Whole seconds, rounded up, and never 0: that would mean at once."""
    assert error_response(UpstreamThrottled("x", retry_after=seconds)).headers["Retry-After"] == header
    assert error_response(UpstreamUnavailable("x", retry_after=seconds)).headers["Retry-After"] == header


def test_an_unknown_pause_is_a_few_seconds() -> None:
    """A client that is told nothing repeats at once."""
    assert int(error_response(UpstreamUnavailable("x")).headers["Retry-After"]) >= 1


def test_an_unsatisfiable_range_tells_the_size() -> None:
    """RFC 9110 §15.5.17."""
    assert error_response(RangeNotSatisfiable(1234)).headers["Content-Range"] == "bytes */1234"


def test_a_refused_write_names_what_is_allowed() -> None:
    """RFC 9110 §15.5.6."""
    assert error_response(Unsupported("x", allow="GET, HEAD")).headers["Allow"] == "GET, HEAD"


@given(st.text(), st.text())
def test_any_message_fits_into_the_envelope(message: str, detail: str) -> None:
    """Messages quote what clients and upstreams sent."""
    written = entry(error_response(MirrorError(message, detail=detail)))

    assert (written["message"], written["detail"]) == (message, detail)


def test_our_own_faults_and_malformed_requests_speak_the_same_language() -> None:
    """No page, no traceback, whatever happens."""
    for response, status in ((unexpected_response(), 500), (malformed_response(400, "Bad status line"), 400)):
        assert response.status == status
        assert response.headers["Content-Type"] == "application/json"
        assert entry(response)["message"]


def test_the_version_answer_is_an_empty_object() -> None:
    """Some clients parse it."""
    assert version_response().body == b"{}"


def test_a_manifest_has_its_headers() -> None:
    """Exactly those that clients compare; the type without parameters."""
    response = manifest_response(MANIFEST, None, not_modified=False)

    assert isinstance(response, web.Response)
    assert response.status == 200
    assert response.body == CONTENT
    assert dict(response.headers) == {
        "Content-Type": OCI_MANIFEST,
        "Docker-Content-Digest": str(DIGEST),
        "ETag": etag(DIGEST),
        "Accept-Ranges": "bytes",
        "X-Cache": "hit",
    }


def test_a_manifest_without_bytes_tells_its_length() -> None:
    """A HEAD that the upstream answered, without a GET."""
    told = ManifestAnswer(DIGEST, 4321, OCI_MANIFEST, None, Source.MISS)

    assert manifest_response(told, None, not_modified=False).headers["Content-Length"] == "4321"


def test_a_part_of_a_manifest_is_a_206() -> None:
    """containerd with concurrent fetches asks for ranges of manifests too."""
    response = manifest_response(MANIFEST, RangeSet((RangeSpec(2, 4),)), not_modified=False)

    assert response.status == 206
    assert response.body == CONTENT[2:5]
    assert response.headers["Content-Range"] == f"bytes 2-4/{len(CONTENT)}"
    with pytest.raises(RangeNotSatisfiable):
        manifest_response(MANIFEST, RangeSet((RangeSpec(len(CONTENT), None),)), not_modified=False)


def test_a_part_of_a_blob_is_a_206() -> None:
    """Its length is that of the part, its range names the whole."""
    part = BlobAnswer(DIGEST, 1000, (ByteRange(10, 19),), None, Source.BYPASS)
    (whole, all_of_it), (some, asked) = (blob_response(one, not_modified=False) for one in (BLOB, part))

    assert (whole.status, whole.headers["Content-Length"]) == (200, "1000")
    assert "Content-Range" not in whole.headers
    assert (some.status, some.headers["Content-Length"]) == (206, "10")
    assert some.headers["Content-Range"] == "bytes 10-19/1000"
    assert some.headers["X-Cache"] == "bypass"
    assert list(all_of_it) == [ByteRange(0, 999)]
    assert list(asked) == [ByteRange(10, 19)]


def test_not_modified_has_no_body_and_no_length() -> None:
    """RFC 9110 §15.4.5: the validator, and nothing that describes a body that is not there."""
    answers = (manifest_response(MANIFEST, None, not_modified=True), blob_response(BLOB, not_modified=True)[0])
    for response in answers:
        assert isinstance(response, web.Response)
        assert (response.status, response.body) == (304, None)
        assert response.headers["ETag"] == etag(DIGEST)
        assert "Content-Length" not in response.headers

"""Error bodies are read where they are the specification's, and hurt nobody where they are not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.oci.envelope import error_codes


@pytest.mark.parametrize(
    ("body", "codes"),
    [
        (b'{"errors":[{"code":"NAME_UNKNOWN","message":"x","detail":{"a":1}}]}', {"NAME_UNKNOWN"}),
        (b'{"errors":[{"code":"DENIED"},{"code":"UNAUTHORIZED"}]}', {"DENIED", "UNAUTHORIZED"}),
        (b'{"errors":[]}', set()),
        (b'{"errors":[{"message":"no code"}]}', set()),
        (b'{"details":"denied"}', set()),
        (b'{"errors":"denied"}', set()),
        (b"<html>not found</html>", set()),
        (b"", set()),
    ],
)
def test_codes_are_read_from_the_envelope(body: bytes, codes: set[str]) -> None:
    """Registries also send other JSON, pages and nothing at all."""
    assert error_codes(body) == codes


@given(st.binary())
def test_no_body_breaks_the_reading(body: bytes) -> None:
    """Bytes from outside raise nothing."""
    error_codes(body)

"""Bodies that are small and mean much: everything that reads an upstream's JSON lives through them, and soon."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import msgspec
import pytest

from mirror.auth.tokens import decode_token
from mirror.oci.envelope import error_codes
from mirror.oci.manifest import parse_manifest
from mirror.oci.referrers import parse_index
from mirror.oci.tag_list import parse_tags

SIZE = 4 << 20
ZEROS = b"0" * 64
BOMBS = {
    "arrays": b"[" * SIZE,
    "objects": b'{"a":' * (SIZE // 5),
    "arrays that nobody wants": b'{"x":' + b"[" * (SIZE // 2) + b"]" * (SIZE // 2) + b"}",
    "arrays of tags": b'{"tags":' + b"[" * (SIZE // 2) + b"]" * (SIZE // 2) + b"}",
    "objects in an index": b'{"manifests":[' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"]}",
    "an integer": b'{"schemaVersion":' + b"9" * SIZE + b"}",
    "a size": b'{"layers":[{"digest":"sha256:' + ZEROS + b'","size":' + b"9" * SIZE + b"}]}",
    "an integer among tags": b'{"tags":[' + b"9" * SIZE + b"]}",
    "a fraction": b'{"tags":[1.' + b"9" * SIZE + b"]}",
    "an exponent": b'{"tags":[1e999999999]}',
    "a lifetime": b'{"token":"x","expires_in":' + b"9" * SIZE + b"}",
    "escapes": b'{"tags":["' + b"\\u0000" * (SIZE // 6) + b'"]}',
    "entries": b'{"tags":[' + b"1," * SIZE + b"1]}",
    "descriptors": b'{"manifests":[' + b"0," * SIZE + b"0]}",
    "errors": b'{"errors":[' + b"{}," * (SIZE // 64) + b"{}]}",
}
READERS: list[Callable[[bytes], object]] = [parse_manifest, parse_tags, parse_index, error_codes, decode_token]


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_read_soon(name: str) -> None:
    """As nothing, or as what is in it: within the time of a test, where quadratic reading would take minutes."""
    for read in READERS:
        with suppress(msgspec.DecodeError, RecursionError):  # what decode_token itself may raise
            read(BOMBS[name])


def test_a_list_of_no_end_is_no_list() -> None:
    """More entries than any registry has, or than an index of digests has room for, are not looked at one by one."""
    assert parse_tags(b'{"tags":[' + b'"a",' * 500_000 + b'"b"]}') is None
    assert parse_index(b'{"manifests":[' + b"0," * 20_000 + b"0]}") is None

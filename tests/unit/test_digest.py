"""Digests are read as the specification writes them, and nothing else passes for one."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.oci.digest import Digest
from mirror.oci.errors import DigestInvalid

EMPTY = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
HEX = st.text("0123456789abcdef", min_size=64, max_size=128)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_digest_is_the_hash_of_its_bytes(algorithm: str) -> None:
    """Both algorithms of the specification can be made, told apart and verified."""
    digest = Digest.of(b"content", algorithm)

    assert str(digest) == f"{algorithm}:{hashlib.new(algorithm, b'content').hexdigest()}"
    assert digest.matches(b"content")
    assert not digest.matches(b"content ")


def test_a_running_hash_ends_at_the_same_digest() -> None:
    """What a download hashes piece by piece, also from a copy of the hash, is what the whole would have given."""
    digest = Digest.of(b"onetwothree", "sha512")
    hasher = digest.hasher()
    hasher.update(b"one")
    copy = hasher.copy()
    copy.update(memoryview(b"twothree"))

    assert copy.hexdigest() == digest.hex
    assert hasher.hexdigest() != digest.hex


@given(st.binary(), st.sampled_from(["sha256", "sha512"]))
def test_what_is_written_can_be_read(data: bytes, algorithm: str) -> None:
    """The text of a digest means that digest, as a value and as a key."""
    digest = Digest.of(data, algorithm)

    assert Digest.parse(str(digest)) == digest
    assert hash(Digest.parse(str(digest))) == hash(digest)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256",
        "sha256:",
        ":" + "a" * 64,
        "sha256:" + "a" * 63,
        "sha256:" + "a" * 65,
        "sha256:" + "A" * 64,
        "sha256:" + "g" * 64,
        "sha512:" + "a" * 64,
        "SHA256:" + "a" * 64,
        "sha256:" + "a" * 64 + "\n",
        " sha256:" + "a" * 64,
        "sha256:" + "a" * 64 + ":",
        "sha256:" + "\N{FULLWIDTH DIGIT ONE}" * 64,
        "sha256:sha256:" + "a" * 57,
        "sha384:" + "a" * 96,
        "md5:" + "a" * 32,
        "sha256:../../../../etc/passwd",
        "sha256:totallywrong",
        "latest",
    ],
)
def test_what_is_no_digest_is_refused(text: str) -> None:
    """Wrong lengths, letters and algorithms are told apart from digests, also those of algorithms we cannot verify."""
    with pytest.raises(DigestInvalid):
        Digest.parse(text)


@given(st.one_of(st.text(), st.builds("{}:{}".format, st.sampled_from(["sha256", "sha512", "a+b", ""]), HEX)))
def test_any_text_is_a_digest_or_refused(text: str) -> None:
    """Nothing but our own error leaves, and what passes is its own canonical form."""
    try:
        digest = Digest.parse(text)
    except DigestInvalid:
        return
    assert str(digest) == text
    assert len(bytes.fromhex(digest.hex)) * 8 == int(digest.algorithm[3:])


def test_a_refusal_quotes_only_the_beginning() -> None:
    """Whatever a client sends, its error and our log line stay short."""
    for text in ("x" * 10_000, "sha256:" + "x" * 10_000, "x" * 10_000 + ":" + "a" * 10_000):
        with pytest.raises(DigestInvalid) as caught:
            Digest.parse(text)
        assert len(caught.value.message) < 500


def test_the_empty_digest_matches_no_bytes_at_all() -> None:
    """The well-known digest of nothing."""
    assert Digest.parse(EMPTY).matches(b"")

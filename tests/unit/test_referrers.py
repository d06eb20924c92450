"""Referrers: the tags that stand for them, the indexes that name them, and pages that clients can read."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.oci import referrers
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_INDEX
from mirror.oci.referrers import (
    fallback_tag,
    is_attached_tag,
    of_types,
    page_of,
    parse_index,
    render_index,
)

DIGEST = Digest.of(b"x")
HEX = DIGEST.hex
NAMED = str(DIGEST).encode()


def descriptor(number: int, artifact_type: str | None = None, padding: int = 0) -> str:
    """The JSON of a descriptor, in a way of its own."""
    value = {"mediaType": "m", "digest": str(Digest.of(b"%d" % number)), "size": number, "pad": "x" * padding}
    return json.dumps(value | ({} if artifact_type is None else {"artifactType": artifact_type}), indent=1)


def test_the_fallback_tag() -> None:
    """Algorithm and digits, of which at most 64: a tag has at most 128 characters."""
    assert fallback_tag(DIGEST) == f"sha256-{HEX}"
    assert fallback_tag(Digest.of(b"x", "sha512")) == f"sha512-{Digest.of(b'x', 'sha512').hex[:64]}"


@pytest.mark.parametrize("suffix", ["", ".sig", ".att", ".sbom"])
def test_tags_that_are_named_for_a_digest(suffix: str) -> None:
    """The index of referrers, and what cosign attaches."""
    assert is_attached_tag(f"sha256-{HEX}{suffix}")
    assert is_attached_tag(fallback_tag(Digest.of(b"x", "sha512")) + suffix)


@pytest.mark.parametrize(
    "tag",
    ["latest", "sha256-abc", f"sha256-{HEX[1:]}", f"sha256-{HEX}.tar", f"v1-sha256-{HEX}", f"sha256-{HEX.upper()}"],
)
def test_other_tags_are_not(tag: str) -> None:
    """Whatever looks a bit like them."""
    assert not is_attached_tag(tag)


def test_descriptors_stay_as_they_are() -> None:
    """Byte for byte, fields that nobody knows and the way they are written included."""
    texts = [descriptor(1, "a/b"), descriptor(2)]
    body = b'{ "schemaVersion": 2, "annotations": {}, "manifests": [ %s ] }' % " , ".join(texts).encode()

    assert parse_index(body) == texts
    rendered = render_index(texts)
    assert texts[0].encode() in rendered
    assert json.loads(rendered) == {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [*map(json.loads, texts)]}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"schemaVersion":2,"manifests":[]}', []),
        (b'{"schemaVersion":2,"manifests":null}', []),
        (b'{"manifests":[null,1,{"size":1},{"digest":3},{"digest":"sha256:x"},{"digest":"md5:%s"}]}' % (b"0" * 32), []),
        (b'{"manifests":[{"digest":"%s\\n"}, {"digest":"%s"}]}' % (NAMED, NAMED), [f'{{"digest":"{DIGEST}"}}']),
        (b'{"manifests":[{"digest":"sha512:%s"}]}' % (b"0" * 128), [f'{{"digest":"sha512:{"0" * 128}"}}']),
        (b'{"schemaVersion":2,"layers":[]}', None),
        (b'{"manifests":{}}', None),
        (b"[]", None),
        (b"<html>", None),
        (b"", None),
        (b'{"manifests":[{"digest":"\xff"}]}', None),
    ],
)
def test_what_is_an_index(body: bytes, expected: list[str] | None) -> None:
    """What has a list of manifests; what names no digest that can be verified is left out of it."""
    assert parse_index(body) == expected


def test_the_filter() -> None:
    """Those of the types asked for; what states no type is of none."""
    texts = [descriptor(1, "a/b"), descriptor(2), descriptor(3, "c/d"), descriptor(4, "a/b")]
    assert of_types(texts, ["a/b"]) == [texts[0], texts[3]]
    assert of_types(texts, ["a/b", "c/d"]) == [texts[0], texts[2], texts[3]]
    assert of_types(texts, ["none"]) == []


@given(st.lists(st.integers(0, 300), max_size=12), st.integers(200, 1200), st.integers(1, 12))
def test_pages_are_the_index(sizes: list[int], limit: int, digests: int) -> None:
    """Each is small enough for a client, unless a single descriptor is not; together they are all, in order.

    Several may describe the same digest, even in the same words.
    """
    texts = [descriptor(number % digests, padding=size) for number, size in enumerate(sizes)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(referrers, "PAGE_LIMIT", limit)
        gathered: list[str] = []
        last = None
        while True:
            page, last = page_of(texts, last)
            assert len(page) == 1 or len(render_index(page)) <= limit
            gathered += page
            if last is None:
                break
    assert gathered == texts


def test_a_page_is_as_full_as_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a byte."""
    texts = [descriptor(number) for number in range(3)]
    monkeypatch.setattr(referrers, "PAGE_LIMIT", len(render_index(texts)) + 1)
    assert page_of(texts, None) == (texts, None)
    monkeypatch.setattr(referrers, "PAGE_LIMIT", len(render_index(texts)) - 1)
    assert page_of(texts, None)[0] == texts[:2]


def test_a_place_that_is_gone_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another descriptor stands there, or none, all are given: rather twice than not at all."""
    monkeypatch.setattr(referrers, "PAGE_LIMIT", 1)
    texts = [descriptor(number) for number in range(3)]
    _, place = page_of(texts[:2], None)

    assert page_of(texts, place)[0] == texts[1:2]
    for changed in (texts[1:], texts[:0:-1], texts[1:2]):
        assert page_of(changed, place)[0] == changed[:1]
    for nonsense in ("", "1", "1-", "-1", "gone", "0-x", "9" * 5000, "\u0663-x"):
        assert page_of(texts, nonsense)[0] == texts[:1]

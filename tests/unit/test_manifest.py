"""Manifests are read for what they name and what they are, never changed, and never believed to be well formed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.oci.digest import Digest
from mirror.oci.manifest import (
    ACCEPT,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    media_type_of,
    parse_manifest,
    says_a_type,
)

CONFIG, LAYER, CHILD = Digest.of(b"config"), Digest.of(b"layer", "sha512"), Digest.of(b"child")


def descriptor(digest: Digest | str, size: int) -> dict[str, Any]:
    """A descriptor as manifests have them."""
    return {"mediaType": "application/x", "digest": str(digest), "size": size, "annotations": {"a": "b"}}


def encoded(**fields: Any) -> bytes:
    """A manifest's bytes."""
    return json.dumps({"schemaVersion": 2, **fields}, indent=3).encode()


def test_an_image_names_its_blobs() -> None:
    """Config and layers, with their sizes; an artifact's `blobs` are named likewise."""
    image = parse_manifest(encoded(config=descriptor(CONFIG, 1), layers=[descriptor(LAYER, 2), descriptor(LAYER, 2)]))
    artifact = parse_manifest(encoded(blobs=[descriptor(LAYER, 2)]))

    assert image is not None
    assert list(image.named_blobs()) == [(CONFIG, 1), (LAYER, 2), (LAYER, 2)]
    assert list(image.named_manifests()) == []
    assert artifact is not None
    assert list(artifact.named_blobs()) == [(LAYER, 2)]


def test_an_index_names_its_children() -> None:
    """Manifests are not blobs."""
    index = parse_manifest(encoded(manifests=[descriptor(CHILD, 5)]))

    assert index is not None
    assert list(index.named_manifests()) == [(CHILD, 5)]
    assert list(index.named_blobs()) == []


def test_digests_that_nobody_can_verify_are_passed_over() -> None:
    """A foreign or broken digest in a manifest hides none of the others."""
    image = parse_manifest(
        encoded(layers=[descriptor("sha384:" + "a" * 96, 1), descriptor("../x", 1), descriptor(LAYER, 2)])
    )

    assert image is not None
    assert list(image.named_blobs()) == [(LAYER, 2)]


def test_null_is_an_empty_list() -> None:
    """Go writes a nil slice as null; such a manifest is one all the same."""
    image = parse_manifest(encoded(config=descriptor(CONFIG, 1), layers=None, manifests=None, subject=None))

    assert image is not None
    assert list(image.named_blobs()) == [(CONFIG, 1)]
    assert list(image.named_manifests()) == []
    assert media_type_of(image, None) == OCI_MANIFEST


@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"[]", b"1", b"{", b"<html>", b"\xff\xfe", b'{"layers":[{}]}', b'{"config":1}', b"[" * 100_000],
    ids=repr,
)
def test_what_is_no_manifest_is_none(body: bytes) -> None:
    """Nothing raises, not even what is nested too deep to read."""
    assert parse_manifest(body[:100_000]) is None


FIELDS = st.sampled_from(["schemaVersion", "mediaType", "config", "layers", "manifests", "digest", "size"])
VALUES = st.sampled_from(
    [None, True, -1, 1.5, 10**30, "", "sha256:x", [], [None], {}, {"digest": 1}, descriptor("x", 1)]
)


@given(st.one_of(st.binary(), st.dictionaries(FIELDS, VALUES).map(lambda fields: json.dumps(fields).encode())))
def test_no_body_breaks_the_reading(body: bytes) -> None:
    """Bytes from outside raise nothing, and what is read can be used."""
    manifest = parse_manifest(body)
    if manifest is not None:
        assert [*manifest.named_blobs(), *manifest.named_manifests()] == []
        assert "/" in media_type_of(manifest, None)


@pytest.mark.parametrize(
    ("fields", "header", "served"),
    [
        ({"mediaType": DOCKER_MANIFEST}, OCI_MANIFEST, DOCKER_MANIFEST),
        ({"mediaType": DOCKER_LIST}, None, DOCKER_LIST),
        ({"mediaType": "application/vnd.x+json"}, "application/json", "application/vnd.x+json"),
        ({}, DOCKER_MANIFEST, DOCKER_MANIFEST),
        ({}, f"{DOCKER_MANIFEST}; charset=utf-8", DOCKER_MANIFEST),
        ({}, "APPLICATION/VND.OCI.IMAGE.INDEX.V1+JSON", OCI_INDEX),
        ({}, "application/json", OCI_MANIFEST),
        ({}, "text/plain; charset=utf-8", OCI_MANIFEST),
        ({}, None, OCI_MANIFEST),
        ({}, "application/vnd.Acme.Rocket+JSON", "application/vnd.Acme.Rocket+JSON"),
        ({"manifests": []}, "application/octet-stream", OCI_INDEX),
        ({"manifests": [descriptor(CHILD, 1)]}, None, OCI_INDEX),
    ],
)
def test_the_media_type_is_the_bodys_own_word_first(fields: dict[str, Any], header: str | None, served: str) -> None:
    """Then the upstream's header, unless it says nothing; then what the structure tells. Never with parameters."""
    assert media_type_of(parse_manifest(encoded(**fields)), header) == served


@pytest.mark.parametrize(
    ("header", "served"),
    [
        ("application/vnd.cncf.x", "application/vnd.cncf.x"),
        ("application/vnd.cncf.x; version=1", "application/vnd.cncf.x"),
        (None, "application/octet-stream"),
        ("", "application/octet-stream"),
        ("nonsense", "application/octet-stream"),
        ("a/b/c", "application/octet-stream"),
    ],
)
def test_bytes_of_no_known_shape_keep_the_upstreams_type(header: str | None, served: str) -> None:
    """Anything may be a manifest; without a usable header it is just bytes."""
    assert media_type_of(None, header) == served


@pytest.mark.parametrize(
    "word",
    ["text/html\r\nSet-Cookie: a=b", "a/\x00", "plain", "a/b/c", "ä/b", "a b/c", "/", " ", "x/" + "y" * 300],
)
def test_what_is_no_media_type_never_becomes_a_header(word: str) -> None:
    """A manifest's author can write anything into it; as a header it would break the answer, or split it."""
    assert media_type_of(parse_manifest(encoded(mediaType=word)), None) == OCI_MANIFEST
    assert media_type_of(parse_manifest(encoded(mediaType=word)), DOCKER_MANIFEST) == DOCKER_MANIFEST
    assert media_type_of(None, word) == "application/octet-stream"


def test_parameters_in_the_bodys_own_word_are_dropped() -> None:
    """The specification wants a bare type in Content-Type."""
    assert media_type_of(parse_manifest(encoded(mediaType=f"{OCI_INDEX}; charset=utf-8")), None) == OCI_INDEX


@pytest.mark.parametrize("header", [None, "", "nonsense", "text/plain; charset=utf-8", "Application/JSON", "*/*"])
def test_some_media_types_say_nothing(header: str | None) -> None:
    """They fit any manifest, so that only its bytes can tell what it is."""
    assert not says_a_type(header)
    assert says_a_type(f"{OCI_INDEX}; charset=utf-8")


def test_an_upstream_is_asked_for_everything_but_schema_1() -> None:
    """One digest per tag, whatever the client can read."""
    for kind in (OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST, "*/*"):
        assert kind in ACCEPT
    assert "v1+prettyjws" not in ACCEPT

"""Names and tags by the specification's grammar."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.oci.digest import Digest
from mirror.oci.errors import DigestInvalid, ManifestUnknown, MirrorError, NameInvalid
from mirror.oci.reference import Tag, parse_reference, parse_repository

LOWER = string.ascii_lowercase + string.digits
WORD = st.text(LOWER, min_size=1, max_size=5)
SEPARATOR = st.sampled_from([".", "_", "__", "-", "---", "/"])
NAME = st.builds(lambda first, rest: first + "".join(map("".join, rest)), WORD, st.lists(st.tuples(SEPARATOR, WORD)))
TAG = st.builds(
    "".join,
    st.tuples(st.sampled_from(string.ascii_letters + "0_"), st.text(string.ascii_letters + "019._-", max_size=127)),
)


@pytest.mark.parametrize(
    "name", ["a", "library/ubuntu", "a/b/c/d/e", "a.b_c__d-e---f/0", "0", "x" * 255, "a" * 100 + "/" + "b" * 154]
)
def test_repository_names_are_taken_as_they_are(name: str) -> None:
    """Every form that the grammar allows, up to 255 characters."""
    assert parse_repository(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "a/",
        "/a",
        "a//b",
        "A",
        "a/B",
        ".",
        "..",
        "a/../b",
        "./a",
        "-a",
        "a-",
        "a..b",
        "a___b",
        "a._b",
        "_a",
        "a b",
        "a\n",
        "\x00",
        "a\x00b",
        "a:b",
        "a@b",
        "a%2fb",
        "ä",
        "\N{SUPERSCRIPT TWO}",
        "x" * 256,
    ],
)
def test_what_is_no_name_is_refused(name: str) -> None:
    """Nothing that could climb out of a directory, split a key or surprise an upstream is a name."""
    with pytest.raises(NameInvalid):
        parse_repository(name)


@given(NAME.filter(lambda name: len(name) <= 255))
def test_names_made_by_the_grammar_are_names(name: str) -> None:
    """Words joined by the specification's separators are never refused."""
    assert parse_repository(name) == name


@given(TAG)
def test_tags_made_by_the_grammar_are_tags(text: str) -> None:
    """The specification's characters make nothing that we refuse; a tag is written as it was read."""
    reference = parse_reference(text)

    assert reference == Tag(text)
    assert str(reference) == text


@pytest.mark.parametrize("text", ["", ".INVALID_MANIFEST_NAME", "-a", "a b", "a/b", "a\n", "\x00", "ä", "x" * 129])
def test_an_impossible_tag_cannot_exist(text: str) -> None:
    """It is unknown (404) rather than invalid (400): the conformance suite asks for such a one."""
    with pytest.raises(ManifestUnknown):
        parse_reference(text)


@pytest.mark.parametrize("text", ["sha256:totallywrong", "sha256:", ":", "a:b", "latest@sha256:" + "a" * 64])
def test_what_has_a_colon_must_be_a_digest(text: str) -> None:
    """No tag has a colon, so this was meant as a digest: 400."""
    with pytest.raises(DigestInvalid):
        parse_reference(text)


def test_a_digest_is_a_reference() -> None:
    """Manifests are asked for by tag or by digest."""
    digest = Digest.of(b"manifest")

    assert parse_reference(str(digest)) == digest


@given(st.text())
def test_any_text_is_a_reference_or_refused(text: str) -> None:
    """Nothing but our own errors leaves, and what passes is what was written."""
    for parse in (parse_reference, parse_repository):
        try:
            parsed = parse(text)
        except MirrorError:
            continue
        assert str(parsed) == text


def test_a_refusal_quotes_only_the_beginning() -> None:
    """Whatever a client sends, its error and our log line stay short."""
    for parse in (parse_reference, parse_repository):
        with pytest.raises(MirrorError) as caught:
            parse("\x00" * 10_000)
        assert len(caught.value.message) < 1000

"""Lists of tags: what counts as one, and pages that are together the whole."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.oci.errors import InvalidRequest
from mirror.oci.tag_list import page_of, parse_count, parse_tags, render_tags

tags = st.sets(st.from_regex(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,8}", fullmatch=True)).map(sorted)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"name":"x","tags":["b","a"]}', ["b", "a"]),
        (b'{"name":"x","tags":null}', []),
        (b'{"tags":[],"child":[],"manifest":{}}', []),
        (b'{"tags":["a",null,3,"sha256:00","","a b","\\u00e4","b"]}', ["a", "b"]),
        (b'{"name":"x"}', None),
        (b'{"tags":"a"}', None),
        (b'{"tags":{"a":1}}', None),
        (b'["a"]', None),
        (b'{"tags":["a"', None),
        (b"<html>", None),
        (b"", None),
        (b'{"tags":["\xff"]}', None),
        (b'{"tags":' + b"[" * 5000 + b"]" * 5000 + b"}", None),
    ],
)
def test_what_is_a_list_of_tags(body: bytes, expected: list[str] | None) -> None:
    """null is an empty one, and what is no tag is left out of it; pages for people and other JSON are none."""
    assert parse_tags(body) == expected


@pytest.mark.parametrize(("text", "count"), [(None, None), ("0", 0), ("007", 7), ("1000", 1000), ("9" * 20, 10**9)])
def test_counts(text: str | None, count: int | None) -> None:
    """`n` is a whole number; one that no list is as long as means all."""
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "-1", "+1", "1.0", "1e3", "x", "٣", " 1", "9" * 21])
def test_no_counts(text: str) -> None:
    """Everything else is the client's mistake, and the message says what was expected."""
    with pytest.raises(InvalidRequest, match="whole number"):
        parse_count(text)


@given(tags, st.integers(1, 10))
def test_the_pages_are_the_list(tags: list[str], count: int) -> None:
    """For any size of page: each is full but the last one, and together they are the whole list."""
    gathered: list[str] = []
    last = None
    while True:
        page, more = page_of(tags, count, last)
        gathered += page
        if not more:
            break
        assert len(page) == count
        last = page[-1]
    assert gathered == tags


@given(tags, st.text(), st.none() | st.integers(0, 10))
def test_last_is_exclusive_and_need_not_exist(tags: list[str], last: str, count: int | None) -> None:
    """A page begins with the first tag after `last`, by their bytes."""
    after = [tag for tag in tags if tag > last]
    page, more = page_of(tags, count, last)
    assert list(page) == (after if count is None else after[:count])
    assert more == (len(page) < len(after))


def test_the_body() -> None:
    """Nothing but the name and the tags."""
    assert json.loads(render_tags("a/b", ["x"])) == {"name": "a/b", "tags": ["x"]}

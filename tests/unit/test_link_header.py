"""Links to the next page: read as RFC 8288 has them, and never trusted with more than a query."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from mirror.oci.link_header import next_link, next_query


@pytest.mark.parametrize(
    ("value", "query"),
    [
        ('</v2/x/tags/list?last=b&n=2>; rel="next"', "last=b&n=2"),
        ("</v2/x/tags/list?last=b&n=2>; rel=next", "last=b&n=2"),
        ('<https://registry.test/v2/x/tags/list?n=2>;rel="next"', "n=2"),
        ("<?next_page=gAAAA%3D%3D> ; REL = next", "next_page=gAAAA%3D%3D"),
        ('</x?a=1>; rel="prev", </x?a=2>; rel="next"', "a=2"),
        ('</x?a=1,2;3>; title="a, b; c=\\"d\\" <e>"; rel="last next"', "a=1,2;3"),
        ('</x?a=1>; rel="next"; rel="prev"', "a=1"),
        ('</x?a=1>; rel="prev"; rel="next"', None),
        ('</x?a=1#part>; rel="next"', "a=1"),
        ("</x?a=1>; title*=UTF-8''x; rel=\"next\"", "a=1"),
        ('</x>; rel="next"', None),
        ('</x?>; rel="next"', None),
        ('<>; rel="next"', None),
        ("</x?a=1>", None),
        ('</x?a=1>; rel="nextish"', None),
        ('/x?a=1; rel="next"', None),
        ("", None),
    ],
)
def test_the_query_of_the_next_page(value: str, query: str | None) -> None:
    """Quoted or not, among others, with commas and semicolons in it: the first link of relation next counts."""
    assert next_query([value]) == query


def test_several_headers_are_read_together() -> None:
    """A list may be spread over several header lines."""
    assert next_query(['</x?a=1>; rel="first"', '</x?a=2>; rel="next"']) == "a=2"


@pytest.mark.parametrize("query", ["a=" + 4096 * "x", "a=ä", "a=b c", "a=\x7f"])
def test_what_cannot_be_asked_is_told(query: str) -> None:
    """A list that goes on where we cannot follow is not taken for one that ends."""
    with pytest.raises(ValueError, match="next page"):
        next_query([f'</x?{query}>; rel="next"'])


@given(
    st.lists(st.text(alphabet=st.characters(max_codepoint=255, exclude_characters="\r\n")) | st.text('<>;,="?&relnxt '))
)
def test_nothing_else_comes_of_it(values: list[str]) -> None:
    """Whatever an upstream sends gives a query that can stand in a request line, nothing, or one known error."""
    try:
        query = next_query(values)
    except ValueError:
        return
    assert query is None or (query.isascii() and query.isprintable() and not {" ", "#"} & set(query))


@given(st.lists(st.tuples(st.text(min_size=1), st.text()), min_size=1), st.sampled_from(["x", "a.b/x", "host:5000/a"]))
def test_our_own_links_are_understood(parameters: list[tuple[str, str]], name: str) -> None:
    """What we give to clients leads to the same path with the same parameters, whatever stands in them."""
    parameters = [(_plain(key), _plain(value)) for key, value in parameters]
    link = next_link(f"/mirror/v2/{name}/tags/list", parameters)

    query = next_query([link])

    assert query is not None
    assert link == f'</mirror/v2/{name}/tags/list?{query}>; rel="next"'
    assert list(URL(f"/?{query}", encoded=True).query.items()) == parameters


def _plain(text: str) -> str:
    """Without halves of surrogate pairs, which no client can send; with something in it."""
    return text.encode(errors="replace").decode() or "?"

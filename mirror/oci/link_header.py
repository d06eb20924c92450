"""The Link header (RFC 8288), which leads from one page of a list to the next; read from anybody, so never trusted."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from urllib.parse import quote, urlencode

_QUERY_LIMIT = 4096
"""Characters; pagination tokens have a few hundred."""
_TARGET = re.compile(r"[\s,]*<([^<>]*)>")
_PARAMETER = re.compile(r"""\s*;\s*(?:([A-Za-z0-9!#$&+.^_`|~*-]+)\s*(?:=\s*("(?:[^"\\]|\\.)*"|[^\s;,"]*))?)?""")
_QUERY = re.compile(r"[\x21\x22\x24-\x7e]*")
"""What can stand in a request target after the question mark: printable, and no `#`."""


def next_query(values: Iterable[str]) -> str | None:
    """The query of the page that follows, as it stands in a response's Link headers; None where there is none.

    The query alone: where it would lead, host and path, is not for others to say; a link without one leads nowhere.
    Raises ValueError for what cannot be asked: over 4,096 characters, or not printable.
    """
    for value in values:
        for target, relations in _links(value):
            if "next" in relations:
                query = target.partition("#")[0].partition("?")[2]
                if len(query) > _QUERY_LIMIT or not _QUERY.fullmatch(query):
                    raise ValueError("the link to the next page is too long, or not printable")
                return query or None
    return None


def next_link(path: str, parameters: Sequence[tuple[str, str]]) -> str:
    """The header's value for the page that follows, relative to our own host; `path` is decoded, as are the values."""
    return f'<{quote(path, safe="/:")}?{urlencode(parameters, quote_via=quote)}>; rel="next"'


def _links(value: str) -> Iterator[tuple[str, frozenset[str]]]:
    """The targets of one header, each with its relation types; ends where the header stops making sense."""
    position = 0
    while (target := _TARGET.match(value, position)) is not None:
        position = target.end()
        relations: frozenset[str] | None = None
        while (parameter := _PARAMETER.match(value, position)) is not None:
            position = parameter.end()
            if (parameter[1] or "").lower() == "rel" and relations is None:  # only the first counts (§3.3)
                relations = frozenset((parameter[2] or "").strip('"').lower().split())
        yield target[1], relations or frozenset()

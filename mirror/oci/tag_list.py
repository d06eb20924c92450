"""Lists of tags: read from an upstream, cut into pages for a client."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import msgspec

from mirror.oci.errors import InvalidRequest
from mirror.oci.reference import is_tag

_MOST_ENTRIES = 500_000
"""Of one page: five times what the longest known ones have. To look at each of more would stop everybody's requests."""
_MOST = 10**9
"""What a larger `n` means as well: everything."""


class _Body(msgspec.Struct):
    tags: list[Any] | None


_decode = msgspec.json.Decoder(_Body).decode


def parse_tags(body: bytes) -> list[str] | None:
    """The tags of one page, as they come; None where the bytes are no list of tags.

    `null` is an empty list, as programs in Go write it; entries that are no tags (null, digests) are left out.
    """
    try:
        tags = _decode(body).tags or []
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if len(tags) > _MOST_ENTRIES:
        return None
    return [tag for tag in tags if isinstance(tag, str) and is_tag(tag)]


def render_tags(name: str, tags: Sequence[str]) -> bytes:
    """The body of an answer."""
    return msgspec.json.encode({"name": name, "tags": tags})


def parse_count(text: str | None) -> int | None:
    """The parameter `n`: at most how many; None where it is not given. Raises InvalidRequest."""
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 20:
        raise InvalidRequest(f"n is how many tags to list, a whole number from 0 on, not {text[:40]!r}")
    return min(int(text), _MOST)


def page_of(tags: Sequence[str], count: int | None, last: str | None) -> tuple[Sequence[str], bool]:
    """At most `count` of the sorted `tags`, those after `last` (exclusive; it need not exist); whether some follow."""
    start = bisect_right(tags, last) if last is not None else 0
    end = len(tags) if count is None else min(start + count, len(tags))
    return tags[start:end], end < len(tags)

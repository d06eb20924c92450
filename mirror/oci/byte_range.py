"""Byte ranges: the Range and Content-Range headers of RFC 9110 §14."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mirror.oci.errors import RangeInvalid, RangeNotSatisfiable

_SPEC = re.compile(r"(\d*)-(\d*)", re.ASCII)
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", re.ASCII | re.IGNORECASE)
_DIGITS = 19
_FAR = 10**_DIGITS
"""Stands for every number with more digits: past the end of anything."""


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Bytes `start` to `end`, both included, of something whose length is known; never empty."""

    start: int
    end: int

    @property
    def length(self) -> int:
        """How many bytes it holds."""
        return self.end - self.start + 1

    @property
    def header(self) -> str:
        """The closed range as a Range header. Some registries refuse open ones."""
        return f"bytes={self.start}-{self.end}"

    def content_range(self, size: int) -> str:
        """The Content-Range header of a 206 with this range of `size` bytes."""
        return f"bytes {self.start}-{self.end}/{size}"


@dataclass(frozen=True, slots=True)
class RangeSpec:
    """One range as a client asked for it, before the length is known: `first-last`, `first-` or `-suffix`."""

    first: int | None
    last: int | None

    @property
    def needs_size(self) -> bool:
        """Whether only the length tells where it starts (a suffix)."""
        return self.first is None

    def resolve(self, size: int) -> ByteRange:
        """The bytes it means of `size`; the end is clamped. Raises RangeNotSatisfiable."""
        if self.first is None:
            assert self.last is not None
            if self.last == 0 or size == 0:
                raise RangeNotSatisfiable(size)
            return ByteRange(max(0, size - self.last), size - 1)
        if self.first >= size:
            raise RangeNotSatisfiable(size)
        return ByteRange(self.first, size - 1 if self.last is None else min(self.last, size - 1))


@dataclass(frozen=True, slots=True)
class ContentRange:
    """What a 206 says that it carries: bytes `start` to `end` of `size` (None where the sender wrote `*`)."""

    start: int
    end: int
    size: int | None


def parse_range(header: str | None) -> RangeSpec | None:
    """Reads a Range header with one range.

    Returns None where RFC 9110 has the header ignored: absent, another unit, malformed, or last before first.
    Raises RangeInvalid for several ranges.
    """
    if header is None:
        return None
    unit, equals, value = header.partition("=")
    if not equals or unit.strip().lower() != "bytes":
        return None
    specs = [part.strip() for part in value.split(",") if part.strip()]
    parsed = [_parse_spec(spec) for spec in specs]
    if not parsed or None in parsed:
        return None
    if len(parsed) > 1:
        raise RangeInvalid("several ranges in one request are not served; ask for one at a time")
    return parsed[0]


def parse_content_range(header: str | None) -> ContentRange | None:
    """Reads the Content-Range of a 206; None where it is absent, malformed or contradicts itself."""
    match = _CONTENT_RANGE.fullmatch(header.strip()) if header else None
    if match is None:
        return None
    start, end = int(match[1]), int(match[2])
    size = None if match[3] == "*" else int(match[3])
    if end < start or (size is not None and end >= size):
        return None
    return ContentRange(start, end, size)


def _parse_spec(text: str) -> RangeSpec | None:
    match = _SPEC.fullmatch(text)
    if match is None or text == "-":
        return None
    first, last = _number(match[1]), _number(match[2])
    if first is not None and last is not None and last < first:
        return None
    return RangeSpec(first, last)


def _number(digits: str) -> int | None:
    if not digits:
        return None
    digits = digits.lstrip("0") or "0"
    return int(digits) if len(digits) <= _DIGITS else _FAR

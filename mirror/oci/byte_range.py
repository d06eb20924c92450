"""Byte ranges: the Range and Content-Range headers of RFC 9110 §14."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mirror.oci.errors import RangeInvalid, RangeNotSatisfiable

_SPEC = re.compile(r"(\d*)-(\d*)", re.ASCII)
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", re.ASCII | re.IGNORECASE)
_WHITESPACE = " \t"
_DIGITS = 19
_FAR = 10**_DIGITS
"""Stands for every number with more digits: past the end of anything."""
MOST_RANGES = 1024
"""Of one request. containers/image asks for as many, and for fewer after a 400."""


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
    def is_backwards(self) -> bool:
        """Whether it ends before it starts, and so means nothing."""
        return self.first is not None and self.last is not None and self.last < self.first

    def within(self, size: int) -> ByteRange | None:
        """The bytes it means of `size`; the end is clamped. None where there are none."""
        if self.first is None:
            assert self.last is not None
            return ByteRange(max(0, size - self.last), size - 1) if self.last and size else None
        if self.first >= size or self.is_backwards:
            return None
        return ByteRange(self.first, size - 1 if self.last is None else min(self.last, size - 1))


@dataclass(frozen=True, slots=True)
class RangeSet:
    """What one request asks for, in its own order: never sorted, never merged, since clients count the parts."""

    specs: tuple[RangeSpec, ...]

    @property
    def is_rest(self) -> bool:
        """Whether it asks for everything from some byte on: to go on after a break, or to take a blob by turns."""
        return len(self.specs) == 1 and self.specs[0].first is not None and self.specs[0].last is None

    def resolve(self, size: int) -> tuple[ByteRange, ...]:
        """The bytes they mean of `size`, without those past its end.

        Raises RangeNotSatisfiable where all are, RangeInvalid where several ask for more than there is: they overlap.
        """
        parts = tuple(part for part in (spec.within(size) for spec in self.specs) if part is not None)
        if not parts:
            raise RangeNotSatisfiable(size)
        if sum(part.length for part in parts) > size:
            raise RangeInvalid(f"the ranges together ask for more than the {size} bytes that there are")
        return parts


@dataclass(frozen=True, slots=True)
class ContentRange:
    """What a 206 says that it carries: bytes `start` to `end` of `size` (None where the sender wrote `*`)."""

    start: int
    end: int
    size: int | None


def parse_ranges(header: str | None) -> RangeSet | None:
    """Reads a Range header.

    Returns None where the header is ignored: absent, another unit, malformed, or with a backwards range among several.
    RFC 9110 lets us ignore or refuse a backwards range. Alone it is read, and then refused: so does Distribution, and
    the conformance suite takes the whole for a lack of ranges. Raises RangeInvalid for more than MOST_RANGES.
    """
    if header is None:
        return None
    unit, equals, value = header.partition("=")
    if not equals or unit.strip().lower() != "bytes":
        return None
    texts = [text for part in value.split(",") if (text := part.strip(_WHITESPACE))]
    specs = tuple(spec for spec in map(_parse_spec, texts) if spec is not None)
    if not specs or len(specs) < len(texts):
        return None
    if len(specs) > 1 and any(spec.is_backwards for spec in specs):
        return None
    if len(specs) > MOST_RANGES:
        raise RangeInvalid(f"{len(specs)} ranges in one request; at most {MOST_RANGES} are served")
    return RangeSet(specs)


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
    return RangeSpec(_number(match[1]), _number(match[2]))


def _number(digits: str) -> int | None:
    if not digits:
        return None
    digits = digits.lstrip("0") or "0"
    return int(digits) if len(digits) <= _DIGITS else _FAR

"""Range and Content-Range as RFC 9110 §14 has them."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mirror.oci.byte_range import (
    MOST_RANGES,
    ByteRange,
    ContentRange,
    RangeSet,
    RangeSpec,
    parse_content_range,
    parse_ranges,
)
from mirror.oci.errors import MirrorError, RangeInvalid, RangeNotSatisfiable

SIZES = st.integers(0, 1 << 62)


@pytest.mark.parametrize(
    ("header", "spec"),
    [
        ("bytes=0-0", RangeSpec(0, 0)),
        ("bytes=5-9", RangeSpec(5, 9)),
        ("bytes=5-", RangeSpec(5, None)),
        ("bytes=-5", RangeSpec(None, 5)),
        ("bytes=-0", RangeSpec(None, 0)),
        ("Bytes=5-9", RangeSpec(5, 9)),
        ("bytes= 5-9 ", RangeSpec(5, 9)),
        ("bytes=9-5", RangeSpec(9, 5)),
        ("bytes=5-9,", RangeSpec(5, 9)),
        ("bytes=,5-9", RangeSpec(5, 9)),
        ("bytes=000000000000000000000005-0000000000000000000000009", RangeSpec(5, 9)),
    ],
)
def test_one_range_is_read(header: str, spec: RangeSpec) -> None:
    """Closed, open and suffix, with the white space and empty list elements that the RFC allows."""
    assert parse_ranges(header) == RangeSet((spec,))


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=a-b",
        "bytes=5",
        "bytes=0-1,9-5",
        "bytes=5-9-",
        "bytes=+5-9",
        "bytes=5 - 9",
        "bytes=0x5-9",
        "bytes=\N{ARABIC-INDIC DIGIT FIVE}-",
        "bytes=0-1,x",
        "items=0-5",
        "0-5",
        "bytes 0-5/10",
    ],
)
def test_what_is_no_range_is_ignored(header: str | None) -> None:
    """Other units, malformed ones and several of which one ends before it starts get the whole, not an error."""
    assert parse_ranges(header) is None


def test_several_ranges_keep_their_order() -> None:
    """As they were asked for: unsorted, repeated, overlapping, with white space and empty elements between them."""
    ranges = parse_ranges("bytes=8-9, 0-3,,\t2-2 ,-1,15-")
    specs = (RangeSpec(8, 9), RangeSpec(0, 3), RangeSpec(2, 2), RangeSpec(None, 1), RangeSpec(15, None))
    parts = (ByteRange(8, 9), ByteRange(0, 3), ByteRange(2, 2), ByteRange(23, 23), ByteRange(15, 23))

    assert ranges == RangeSet(specs)
    assert ranges.resolve(24) == parts


def test_so_many_ranges_are_read_and_no_more() -> None:
    """Clients ask for fewer after the error."""
    most = ",".join(f"{2 * number}-{2 * number}" for number in range(MOST_RANGES))

    ranges = parse_ranges(f"bytes={most}")
    assert ranges is not None
    assert len(ranges.resolve(5000)) == MOST_RANGES
    with pytest.raises(RangeInvalid):
        parse_ranges(f"bytes={most},4000-4000")


def test_parts_past_the_end_are_left_out() -> None:
    """As long as one is inside; its end may still be beyond."""
    ranges = RangeSet((RangeSpec(10, 12), RangeSpec(8, 90), RangeSpec(None, 0), RangeSpec(0, 0)))

    assert ranges.resolve(10) == (ByteRange(8, 9), ByteRange(0, 0))
    with pytest.raises(RangeNotSatisfiable) as caught:
        RangeSet((RangeSpec(10, None), RangeSpec(11, 12))).resolve(10)
    assert caught.value.size == 10


@pytest.mark.parametrize("header", ["bytes=0-,0-", "bytes=0-9,9-9", "bytes=-6,0-4", "bytes=0-3,0-3,0-3"])
def test_ranges_do_not_add_up_to_more_than_there_is(header: str) -> None:
    """A short request could cost any number of copies otherwise; overlaps alone are no offence."""
    ranges = parse_ranges(header)
    assert ranges is not None

    with pytest.raises(RangeInvalid):
        ranges.resolve(10)
    if header != "bytes=0-,0-":
        assert len(ranges.resolve(12)) == len(ranges.specs)


@pytest.mark.parametrize(
    ("header", "rest"), [("5-", True), ("0-", True), ("5-9", False), ("-5", False), ("5-,0-1", False)]
)
def test_the_rest_is_told_from_a_part(header: str, rest: bool) -> None:
    """Only who leaves the end open wants everything up to it."""
    ranges = parse_ranges(f"bytes={header}")

    assert ranges is not None
    assert ranges.is_rest is rest


@pytest.mark.parametrize(
    ("spec", "size", "part"),
    [
        (RangeSpec(0, 0), 10, ByteRange(0, 0)),
        (RangeSpec(3, 5), 10, ByteRange(3, 5)),
        (RangeSpec(3, 500), 10, ByteRange(3, 9)),
        (RangeSpec(9, None), 10, ByteRange(9, 9)),
        (RangeSpec(None, 3), 10, ByteRange(7, 9)),
        (RangeSpec(None, 300), 10, ByteRange(0, 9)),
    ],
)
def test_a_range_means_bytes(spec: RangeSpec, size: int, part: ByteRange) -> None:
    """Ends past the end are clamped; a suffix longer than the thing is the thing."""
    assert spec.within(size) == part


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        (RangeSpec(10, None), 10),
        (RangeSpec(10, 12), 10),
        (RangeSpec(None, 0), 10),
        (RangeSpec(9, 5), 10),
        (RangeSpec(0, 0), 0),
        (RangeSpec(None, 5), 0),
    ],
)
def test_a_range_without_bytes_cannot_be_satisfied(spec: RangeSpec, size: int) -> None:
    """Past the end, backwards, or of nothing. The error knows the size, for `bytes */size`."""
    assert spec.within(size) is None
    with pytest.raises(RangeNotSatisfiable) as caught:
        RangeSet((spec,)).resolve(size)

    assert caught.value.size == size


@pytest.mark.parametrize("digits", [19, 20, 100, 8000])
def test_numbers_of_any_length_are_numbers(digits: int) -> None:
    """An end past every end is clamped as any other, and a start out there is past the end: never an error of ours."""
    far = "9" * digits

    for header in (f"bytes=0-{far}", f"bytes=-{far}"):
        ranges = parse_ranges(header)
        assert ranges is not None
        assert ranges.resolve(10) == (ByteRange(0, 9),)
    beyond = parse_ranges(f"bytes={far}-")
    assert beyond is not None
    with pytest.raises(RangeNotSatisfiable):
        beyond.resolve(10)


@given(st.integers(0, 1 << 62), st.integers(0, 1 << 62), st.integers(1, 1 << 62))
def test_a_closed_range_means_the_same_to_everyone(first: int, length: int, size: int) -> None:
    """Header, value and Content-Range agree with one another and with Python's slices."""
    assume(first < size)
    asked = ByteRange(first, first + length)

    ranges = parse_ranges(asked.header)
    assert ranges is not None
    (part,) = ranges.resolve(size)

    assert (part.start, part.end) == (first, min(first + length, size - 1))
    assert parse_content_range(part.content_range(size)) == ContentRange(part.start, part.end, size)
    assert part.length == len(range(size)[first : first + length + 1])


@given(st.one_of(st.text(), st.text("0123456789-, \t").map("bytes={}".format)), SIZES)
def test_any_header_is_ranges_or_ignored_or_refused(header: str, size: int) -> None:
    """Nothing but our own errors leaves, and every range that does is inside."""
    try:
        ranges = parse_ranges(header)
        parts = ranges.resolve(size) if ranges is not None else ()
    except MirrorError:
        return
    assert all(0 <= part.start <= part.end < size for part in parts)
    assert sum(part.length for part in parts) <= size


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), min_size=1, max_size=20), st.integers(1, 99))
def test_parts_are_those_that_were_asked_for(pairs: list[tuple[int, int]], size: int) -> None:
    """One for each that begins inside, in order, each the bytes that a slice would give."""
    wanted = [(min(pair), max(pair)) for pair in pairs]
    ranges = parse_ranges("bytes=" + ",".join(f"{first}-{last}" for first, last in wanted))
    assert ranges is not None
    expected = [range(size)[first : last + 1] for first, last in wanted if first < size]

    if not expected:
        with pytest.raises(RangeNotSatisfiable):
            ranges.resolve(size)
    elif sum(map(len, expected)) > size:
        with pytest.raises(RangeInvalid):
            ranges.resolve(size)
    else:
        assert [range(part.start, part.end + 1) for part in ranges.resolve(size)] == expected


@pytest.mark.parametrize(
    ("header", "parsed"),
    [
        ("bytes 0-9/10", ContentRange(0, 9, 10)),
        ("Bytes 5-6/*", ContentRange(5, 6, None)),
        (" bytes 5-6/7 ", ContentRange(5, 6, 7)),
        (None, None),
        ("", None),
        ("bytes */10", None),
        ("bytes 5-4/10", None),
        ("bytes 5-10/10", None),
        ("bytes 5-9/10, bytes 0-1/10", None),
        ("bytes=5-9/10", None),
        ("items 5-9/10", None),
        ("bytes -9/10", None),
        ("bytes 0-99999999999999999999/*", None),
    ],
)
def test_content_range_is_believed_where_it_makes_sense(header: str | None, parsed: ContentRange | None) -> None:
    """What contradicts itself says nothing."""
    assert parse_content_range(header) == parsed


@given(st.one_of(st.text(), st.text("0123456789-/* ").map("bytes {}".format)))
def test_any_content_range_is_consistent_or_nothing(header: str) -> None:
    """No header from outside raises, or names a range that is empty or sticks out."""
    parsed = parse_content_range(header)
    if parsed is not None:
        assert 0 <= parsed.start <= parsed.end
        assert parsed.size is None or parsed.end < parsed.size

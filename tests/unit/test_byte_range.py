"""Range and Content-Range as RFC 9110 §14 has them."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mirror.oci.byte_range import ByteRange, ContentRange, RangeSpec, parse_content_range, parse_range
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
        ("bytes=5-9,", RangeSpec(5, 9)),
        ("bytes=,5-9", RangeSpec(5, 9)),
        ("bytes=000000000000000000000005-0000000000000000000000009", RangeSpec(5, 9)),
    ],
)
def test_one_range_is_read(header: str, spec: RangeSpec) -> None:
    """Closed, open and suffix, with the white space and empty list elements that the RFC allows."""
    assert parse_range(header) == spec


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
        "bytes=9-5",
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
    """Other units, malformed ones and those that end before they start get the whole, not an error."""
    assert parse_range(header) is None


@pytest.mark.parametrize("header", ["bytes=0-1,3-4", "bytes=0-,-5", "bytes=0-1, 0-1, 0-1"])
def test_several_ranges_are_refused(header: str) -> None:
    """They are well formed, so ignoring them or merging them would be wrong; 400 makes clients ask one by one."""
    with pytest.raises(RangeInvalid):
        parse_range(header)


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
    assert spec.resolve(size) == part


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        (RangeSpec(10, None), 10),
        (RangeSpec(10, 12), 10),
        (RangeSpec(None, 0), 10),
        (RangeSpec(0, 0), 0),
        (RangeSpec(None, 5), 0),
    ],
)
def test_a_start_past_the_end_cannot_be_satisfied(spec: RangeSpec, size: int) -> None:
    """The error knows the size, for `bytes */size`."""
    with pytest.raises(RangeNotSatisfiable) as caught:
        spec.resolve(size)

    assert caught.value.size == size


@pytest.mark.parametrize("digits", [19, 20, 100, 8000])
def test_numbers_of_any_length_are_numbers(digits: int) -> None:
    """An end past every end is clamped as any other, and a start out there is past the end: never an error of ours."""
    far = "9" * digits

    spec = parse_range(f"bytes=0-{far}")
    assert spec is not None
    assert spec.resolve(10) == ByteRange(0, 9)
    suffix = parse_range(f"bytes=-{far}")
    assert suffix is not None
    assert suffix.resolve(10) == ByteRange(0, 9)
    beyond = parse_range(f"bytes={far}-")
    assert beyond is not None
    with pytest.raises(RangeNotSatisfiable):
        beyond.resolve(10)


@given(st.integers(0, 1 << 62), st.integers(0, 1 << 62), st.integers(1, 1 << 62))
def test_a_closed_range_means_the_same_to_everyone(first: int, length: int, size: int) -> None:
    """Header, value and Content-Range agree with one another and with Python's slices."""
    assume(first < size)
    asked = ByteRange(first, first + length)

    spec = parse_range(asked.header)
    assert spec is not None
    part = spec.resolve(size)

    assert (part.start, part.end) == (first, min(first + length, size - 1))
    assert parse_content_range(part.content_range(size)) == ContentRange(part.start, part.end, size)
    assert part.length == len(range(size)[first : first + length + 1])


@given(st.one_of(st.text(), st.text("0123456789-, ").map("bytes={}".format)), SIZES)
def test_any_header_is_a_range_or_ignored_or_refused(header: str, size: int) -> None:
    """Nothing but our own errors leaves, and every range that does is inside."""
    try:
        spec = parse_range(header)
        part = spec.resolve(size) if spec is not None else None
    except MirrorError:
        return
    if part is not None:
        assert 0 <= part.start <= part.end < size
        assert spec is not None
        assert spec.needs_size == (spec.first is None)


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

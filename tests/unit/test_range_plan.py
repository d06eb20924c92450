"""Which stretches of a blob are asked for, to have some parts of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mirror.download.ranges import plan
from mirror.oci.byte_range import ByteRange

KIB = 1 << 10
SIZE = 1 << 30


@st.composite
def parts_of(draw: st.DrawFn) -> tuple[list[ByteRange], int]:
    """Parts of something, in any order, that are together no more than it; and its size."""
    size = draw(st.integers(1, 1 << 24))
    parts, left = [], size
    for start in draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=60)):
        length = min(draw(st.integers(1, 1 << 20)), size - start, left)
        if length:
            parts.append(ByteRange(start, start + length - 1))
            left -= length
    return parts, size


@given(parts_of())
def test_every_part_lies_in_a_stretch_in_its_order(given_: tuple[list[ByteRange], int]) -> None:
    """Walking through both, each part is found without going back; together they are no more than the whole."""
    parts, size = given_
    spans = plan(parts, size)

    assert sum(span.length for span in spans) <= size
    left = iter(spans)
    span = next(left)
    for part in parts:
        while not (span.start <= part.start and part.end <= span.end):
            span = next(left)


@given(parts_of())
def test_rising_parts_need_few_stretches(given_: tuple[list[ByteRange], int]) -> None:
    """However they are spread."""
    parts, size = given_
    rising: list[ByteRange] = []
    for part in sorted(parts, key=lambda one: one.start):
        if not rising or part.start > rising[-1].end:
            rising.append(part)

    assert len(plan(rising, size)) <= 32


def test_neighbours_are_asked_for_together() -> None:
    """Up to 64 KiB between them; a part further away, or one before, is asked for by itself."""
    near, far, before = ByteRange(10 + 64 * KIB, 99 * KIB), ByteRange(1 << 20, 1 << 21), ByteRange(0, 3)

    assert plan([ByteRange(5, 9), near, far, before], SIZE) == [ByteRange(5, near.end), far, before]
    assert plan([ByteRange(5, 8), near], SIZE) == [ByteRange(5, 8), near]


def test_nobody_makes_us_fetch_more_than_there_is() -> None:
    """Up and down over the blob with small parts: what lies between them is left out then."""
    parts = [ByteRange(place, place) for _ in range(20) for place in range(0, 1 << 20, 50 * KIB)]

    spans = plan(parts, 1 << 20)

    assert spans == parts

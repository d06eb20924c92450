"""multipart/byteranges as RFC 9110 §14.6 has it, read back by a parser that is not ours."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from mirror.api.multipart import Multipart
from mirror.oci.byte_range import ByteRange
from tests.parts import read_parts

TYPE = "application/vnd.oci.image.layer.v1.tar+zstd"


@st.composite
def contents(draw: st.DrawFn) -> tuple[bytes, list[ByteRange]]:
    """Some bytes, line ends and dashes among them, and parts of them in any order."""
    alphabet = st.sampled_from([b"\r\n", b"--", b"\0", b"\xff", b"a", b"\n", b"\r\n--", b": "])
    content = b"".join(draw(st.lists(alphabet, min_size=1, max_size=40)))
    places = st.tuples(st.integers(0, len(content) - 1), st.integers(0, len(content) - 1))
    pairs = draw(st.lists(places, min_size=2, max_size=20))
    return content, [ByteRange(min(pair), max(pair)) for pair in pairs]


@given(contents())
def test_each_range_is_a_part_of_its_own(given_: tuple[bytes, list[ByteRange]]) -> None:
    """Whatever the bytes are: one part for each, in order, with its type, its place and exactly its bytes."""
    content, parts = given_
    multipart = Multipart(parts, len(content), TYPE)

    body = multipart.body(content)

    assert len(body) == multipart.length
    assert read_parts(multipart.content_type, body) == [
        (
            {"Content-Type": TYPE, "Content-Range": part.content_range(len(content))},
            content[part.start : part.end + 1],
        )
        for part in parts
    ]


@given(contents())
def test_the_length_is_known_before_a_byte_is_there(given_: tuple[bytes, list[ByteRange]]) -> None:
    """The sections are the body, and can be walked through more than once."""
    content, parts = given_
    multipart = Multipart(parts, len(content), TYPE)

    for _ in range(2):
        sections = list(multipart.sections())
        assert [one for one in sections if isinstance(one, ByteRange)] == parts
        assert sum(len(one) if isinstance(one, bytes) else one.length for one in sections) == multipart.length


def test_nobody_knows_the_boundary_in_advance() -> None:
    """It is another one each time, long enough not to occur by chance, and needs no quotes."""
    types = [Multipart([ByteRange(0, 0), ByteRange(2, 2)], 5, TYPE).content_type for _ in range(100)]

    assert len(set(types)) == 100
    assert all(re.fullmatch("multipart/byteranges; boundary=[0-9a-f]{32}", one) for one in types)


def test_no_byte_is_added_to_a_part() -> None:
    """The exact framing: a line end before each delimiter belongs to the delimiter."""
    multipart = Multipart([ByteRange(2, 3), ByteRange(0, 0)], 5, "a/b")
    boundary = multipart.content_type.partition("=")[2]

    assert (
        multipart.body(b"01234")
        == (
            f"--{boundary}\r\nContent-Type: a/b\r\nContent-Range: bytes 2-3/5\r\n\r\n23"
            f"\r\n--{boundary}\r\nContent-Type: a/b\r\nContent-Range: bytes 0-0/5\r\n\r\n0"
            f"\r\n--{boundary}--\r\n"
        ).encode()
    )

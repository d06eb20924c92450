"""Reads multipart/byteranges back, by the standard library: what a client makes of our answers."""

from __future__ import annotations

from collections.abc import Iterable
from email.message import Message
from email.parser import BytesParser
from email.policy import HTTP

from tests.harness import Reply

Part = tuple[dict[str, str], bytes]


def read_parts(content_type: str, body: bytes) -> list[Part]:
    """Headers and bytes of each part. Raises AssertionError where the body is not made of parts alone."""
    assert content_type.startswith("multipart/byteranges; boundary=")
    message = BytesParser(policy=HTTP).parsebytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body)
    assert not message.defects
    assert not message.preamble
    assert not message.epilogue
    return [(dict(part.items()), _payload(part)) for part in message.iter_parts()]


def split_parts(content_type: str, body: bytes) -> list[Part]:
    """The same for very many parts, whose bytes do not hold the boundary: the parser takes seconds for those."""
    boundary = content_type.partition("boundary=")[2].encode()
    start, *parts, end = (b"\r\n" + body).split(b"\r\n--" + boundary)
    assert (start, end) == (b"", b"--\r\n")
    heads = [part.partition(b"\r\n\r\n")[::2] for part in parts]
    return [(dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:]), data) for head, data in heads]


def parts_of(reply: Reply) -> list[Part]:
    """Those of an answer, which must be a 206 of exactly its length."""
    assert reply.status == 206, reply
    assert int(reply.headers["Content-Length"]) == len(reply.body)
    return read_parts(reply.headers["Content-Type"], reply.body)


def expected(pairs: Iterable[tuple[int, int]], content: bytes, media_type: str) -> list[Part]:
    """What `parts_of` is to be for parts from the first to the last byte, both included."""
    return [
        (
            {"Content-Type": media_type, "Content-Range": f"bytes {first}-{last}/{len(content)}"},
            content[first : last + 1],
        )
        for first, last in pairs
    ]


def _payload(part: Message) -> bytes:
    payload = part.get_payload(decode=True)
    assert isinstance(payload, bytes)
    return payload

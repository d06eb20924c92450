"""Several ranges in one body: `multipart/byteranges` (RFC 9110 §14.6), framed before the first byte of it is there."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence

from mirror.oci.byte_range import ByteRange

Section = bytes | ByteRange
"""A piece of an answer's body: bytes of the framing, or a range of the content."""


class Multipart:
    """The parts of `size` bytes of `media_type`, in the order of `parts`: each as it is, none merged, none left out.

    The boundary is drawn anew for each answer, from 128 bits: no content can have it in advance.
    """

    def __init__(self, parts: Sequence[ByteRange], size: int, media_type: str) -> None:
        self._parts = parts
        self._size = size
        self._media_type = media_type
        self._boundary = secrets.token_hex(16)

    @property
    def content_type(self) -> str:
        """The Content-Type of the whole answer."""
        return f"multipart/byteranges; boundary={self._boundary}"

    @property
    def length(self) -> int:
        """Bytes of the whole body: its Content-Length."""
        return sum(len(one) if isinstance(one, bytes) else one.length for one in self.sections())

    def sections(self) -> Iterator[Section]:
        """The body, piece by piece."""
        delimiter = f"--{self._boundary}\r\n"
        for part in self._parts:
            yield (
                f"{delimiter}Content-Type: {self._media_type}\r\n"
                f"Content-Range: {part.content_range(self._size)}\r\n\r\n"
            ).encode("latin-1")
            yield part
            delimiter = f"\r\n--{self._boundary}\r\n"
        yield f"\r\n--{self._boundary}--\r\n".encode("latin-1")

    def body(self, content: bytes) -> bytes:
        """All of it, for content that is at hand."""
        view = memoryview(content)
        return b"".join(one if isinstance(one, bytes) else view[one.start : one.end + 1] for one in self.sections())

"""A blob on its way: what an answer's headers say of its body, and the body held to that."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Self

from mirror.oci.errors import UpstreamUnavailable
from mirror.transport.response import Response


class BlobStream:
    """A blob on its way: headers are there, the body follows. Close it, or use it as an async context manager.

    start: offset in the blob of the first byte that `chunks` gives
    size: bytes of the whole blob; None if the upstream did not say, or said it of encoded bytes
    partial: whether it is the range that was asked for (206); a whole body starts at 0
    relayed: whether another worker of ours sends it, and has counted the bytes
    content_encoding: (lower case) is there in spite of our asking for none; None where the bytes are as they are
    """

    def __init__(self, response: Response, *, start: int, size: int | None, length: int | None, partial: bool) -> None:
        self.start = start
        self.size = size
        self.partial = partial
        self.content_encoding = response.content_encoding
        self.relayed = False
        self._response = response
        self._length = length

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body as it arrives, in pieces that are not empty; can be consumed once. Close it if it is not exhausted.

        Ends normally only when the promised length has come, or, where none was promised, at a clean end. Raises
        UpstreamUnavailable: reason reset (broken, short or too long), stall or slow.
        """
        arrived = 0
        async with aclosing(self._response.chunks()) as chunks:
            async for chunk in chunks:
                arrived += len(chunk)
                if self._length is not None and arrived > self._length:
                    raise UpstreamUnavailable(f"{self._response.asked}: more bytes than promised", reason="reset")
                yield chunk
        if self._length is not None and arrived < self._length:
            raise UpstreamUnavailable(f"{self._response.asked}: the body ended early", reason="reset")

    async def close(self) -> None:
        """Gives the connection back, or closes it if the body is not exhausted. May be called again."""
        self._response.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

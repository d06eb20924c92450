"""Answers: status and headers, and a body that is bounded in size, in silence and in slowness."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Self

import aiohttp
from prometheus_client import Counter
from yarl import URL

from mirror.config import Timeouts
from mirror.oci.errors import UpstreamUnavailable
from mirror.transport.failures import CAUGHT, translate
from mirror.transport.rate import MinimumRate

VIA = "1.1 mirror"
"""In the Via header (RFC 9110 §7.6.3) of an error that a mirror passes on: the trouble is with whom it asked."""
_DRAINED = 64 << 10


class Response:
    """An answer. Whoever gets one with `streaming` true must exhaust or close it; any other is already closed.

    `body` holds a body that was read whole: of an error (at most 64 KiB, as far as it came), or as the request asked.
    `redirected`: it came from a redirect's target, not from the address that was asked.
    """

    def __init__(
        self, response: aiohttp.ClientResponse, asked: str, timeouts: Timeouts, received: Counter, *, redirected: bool
    ) -> None:
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers
        self.url: URL = response.url
        self.redirected = redirected
        self.asked = asked
        self.body = b""
        self._response = response
        self._timeouts = timeouts
        self._broken: UpstreamUnavailable | None = None
        self._received = received if 200 <= self.status < 300 else None  # refusals are no content

    def header_values(self, name: str) -> list[str]:
        """Every value of a header that may come several times."""
        return self._response.headers.getall(name, [])

    @property
    def content_length(self) -> int | None:
        """Bytes that Content-Length promises; None where it is absent or no number."""
        text = self.headers.get("Content-Length", "")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None

    @property
    def content_encoding(self) -> str | None:
        """Content-Encoding, lower case; None where the bytes are said to be as they are."""
        value = self.headers.get("Content-Encoding", "").strip().lower()
        return value if value not in ("", "identity") else None

    @property
    def passed_on(self) -> bool:
        """Whether another mirror says this of somebody whom it asked: it has nothing against being asked itself."""
        return any(VIA in (part.strip() for part in value.split(",")) for value in self.header_values("Via"))

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body as it arrives, in pieces that are not empty; aiohttp checks it against Content-Length.

        Raises UpstreamUnavailable: reason reset (broken or short), stall (nothing for `timeouts.stall`) or slow (less
        than `min_rate` over `min_rate_window`; only time spent waiting for the upstream counts).
        """
        rate = MinimumRate(self._timeouts.min_rate, self._timeouts.min_rate_window)
        try:
            while True:
                began = time.monotonic()
                chunk = await self._next()
                if not chunk:
                    return
                if self._received is not None:
                    self._received.inc(len(chunk))
                if rate.too_slow(time.monotonic() - began, len(chunk)):
                    raise UpstreamUnavailable(f"{self.asked}: the body comes too slowly", reason="slow")
                yield chunk
        finally:
            self.close()

    async def read(self, limit: int) -> None:
        """Reads the whole body into `body`. Raises as `chunks`, and reason size for more than `limit` bytes."""
        promised = self.content_length
        if promised is not None and promised > limit and self._response.method != "HEAD":
            self.close()
            raise UpstreamUnavailable(f"{self.asked}: the answer has {promised} bytes, over {limit}", reason="size")
        parts = bytearray()
        async for chunk in self.chunks():
            parts += chunk
            if len(parts) > limit:
                self.close()
                raise UpstreamUnavailable(f"{self.asked}: the answer has over {limit} bytes", reason="size")
        self.body = bytes(parts)

    async def drain(self, within: float) -> None:
        """Reads a body that only explains the status, if it is small and comes soon (seconds); else closes.

        Then its connection can be used again.
        """
        try:
            async with asyncio.timeout(within):
                await self.read(_DRAINED)
        except (TimeoutError, UpstreamUnavailable):
            self.close()  # the status has said what matters

    def close(self) -> None:
        """Gives the connection back if the body was read, else closes it. May be called again."""
        self._response.release()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    async def _next(self) -> bytes:
        if self._broken is not None:
            raise self._broken
        try:
            async with asyncio.timeout(self._timeouts.stall):
                return await self._response.content.readany()
        except TimeoutError:
            raise UpstreamUnavailable(f"{self.asked}: the body stalled", reason="stall") from None
        except CAUGHT as error:
            self._broken = translate(error, self.asked)
        return self._arrived()

    def _arrived(self) -> bytes:
        """What came before the connection broke. aiohttp would keep it back (up to 512 KiB), and with it the progress
        that a resume builds on. Raises what broke it where there is nothing.
        """
        content = self._response.content
        content.set_exception(None)  # type: ignore[arg-type]  # the one way past it to the buffer
        rest = content.read_nowait()
        if not rest and self._broken is not None:
            raise self._broken
        return rest

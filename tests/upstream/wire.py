"""Puts an answer on the wire: framing, pauses, cuts, rates. Nothing is sent that the answer does not say."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from http import HTTPStatus

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from tests.upstream.answers import Answer, Cut, Ending, Framing, Pause
from tests.upstream.counters import Counters, Seen

_PIECE = 64 << 10
_PIECES_PER_SECOND = 20
_DELIVERY_LIMIT = 5.0


class RateLimit:
    """Hands out bytes at `rate` per second, to one answer or to several that share it."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._free_at = 0.0

    @property
    def piece(self) -> int:
        """How many bytes to send at once so that the flow looks even."""
        return max(1, min(_PIECE, int(self.rate / _PIECES_PER_SECOND)))

    async def take(self, size: int) -> None:
        """Waits until `size` bytes may leave."""
        now = asyncio.get_running_loop().time()
        start = max(now, self._free_at)
        self._free_at = start + size / self.rate
        if start > now:
            await asyncio.sleep(start - now)


class Sent(web.StreamResponse):
    """Tells aiohttp that the answer has left already, and whether the connection may be used again."""

    def __init__(self, status: int, *, keep_alive: bool) -> None:
        super().__init__(status=status)
        self._reusable = keep_alive

    @property
    def keep_alive(self) -> bool:
        """Whether another request may follow on this connection."""
        return self._reusable

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Does nothing: the headers have left."""
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """Does nothing: the body has left."""


async def send(request: web.BaseRequest, answer: Answer, seen: Seen, counters: Counters) -> Sent:
    """Sends the answer with its pauses and cuts. Raises ConnectionError or CancelledError where the client leaves."""
    wire = _Wire(request, answer, seen, counters)
    whole = await wire.play()
    keep = whole and request.keep_alive and not answer.close and answer.framing is not Framing.CLOSE
    return Sent(answer.status, keep_alive=keep)


def reset(transport: asyncio.Transport) -> None:
    """Closes a connection with RST."""
    sock: socket.socket | None = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


class _Wire:
    def __init__(self, request: web.BaseRequest, answer: Answer, seen: Seen, counters: Counters) -> None:
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client left")
        # Without a buffer of ours `drain` means that the kernel has it: what is counted was sent, and a reset that
        # follows does not swallow it. (asyncio's TLS transport takes 0 as always full, hence 1 there; the plain one
        # below it keeps its own buffer, which is out of reach.)
        transport.set_write_buffer_limits(high=0 if transport.get_extra_info("sslcontext") is None else 1)
        self._transport = transport
        self._writer = request.writer
        self._answer = answer
        self._seen = seen
        self._counters = counters
        self._bodyless = request.method == "HEAD" or answer.status in (204, 304)
        self._piece = min([_PIECE, *(limit.piece for limit in answer.limits)])

    async def play(self) -> bool:
        """Sends all of it; False if it was cut."""
        answer = self._answer
        size = answer.body.size
        for step in answer.steps:
            if step.at is None and await self._stop(step):
                return False
        await self._put(self._head() if answer.raw_head is None else answer.raw_head)
        self._seen.status = answer.status
        self._counters.note()
        if self._bodyless:
            return True
        position = 0
        later = [(min(size, at if at >= 0 else max(0, size + at)), step) for step in answer.steps
                 if (at := step.at) is not None]  # fmt: skip
        for at, step in sorted(later, key=lambda pair: pair[0]):
            await self._body(position, at)
            position = at
            if await self._stop(step):
                return False
        await self._body(position, size)
        if answer.framing is Framing.CHUNKED:
            await self._put(b"0\r\n\r\n")
        return True

    async def _stop(self, step: Pause | Cut) -> bool:
        if isinstance(step, Pause):
            await step.wait()
            return False
        if step.ending is Ending.RST:
            await self._delivered()
            reset(self._transport)
            return True
        if step.ending is Ending.COMPLETE and self._answer.framing is Framing.CHUNKED:
            await self._put(b"0\r\n\r\n")
        self._transport.close()
        return True

    async def _delivered(self) -> None:
        """Waits until the receiver's kernel has everything, since RST throws away what is still queued here."""
        sock: socket.socket = self._transport.get_extra_info("socket")
        deadline = asyncio.get_running_loop().time() + _DELIVERY_LIMIT
        while not self._transport.is_closing() and asyncio.get_running_loop().time() < deadline:
            if not struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))[0]:
                return
            await asyncio.sleep(0.001)

    def _head(self) -> bytes:
        answer = self._answer
        headers = answer.headers.copy()
        if answer.framing is Framing.LENGTH and answer.status != 304:
            headers["Content-Length"] = str(answer.body.size if answer.declared is None else answer.declared)
        if answer.framing is Framing.CHUNKED:
            headers["Transfer-Encoding"] = "chunked"
        if answer.framing is Framing.CLOSE or answer.close:
            headers["Connection"] = "close"
        lines = [f"HTTP/1.1 {answer.status} {_phrase(answer.status)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode()

    async def _body(self, start: int, end: int) -> None:
        while start < end:
            piece = self._answer.body.read(start, min(self._piece, end - start))
            for limit in self._answer.limits:
                await limit.take(len(piece))
            if self._answer.framing is Framing.CHUNKED:
                await self._put(b"%x\r\n%b\r\n" % (len(piece), piece))
            else:
                await self._put(piece)
            start += len(piece)
            self._seen.bytes_sent += len(piece)
            self._counters.note()
            if start < end:
                await asyncio.sleep(0)  # a fast receiver never fills the socket, and others want their turn

    async def _put(self, data: bytes) -> None:
        if self._transport.is_closing():
            raise ConnectionResetError("the client left")
        self._transport.write(data)
        await self._writer.drain()


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Whatever"

"""A conversation between two of our processes over a socket: questions with answers, and news that need none."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import structlog

Handler = Callable[[Any], Any]
"""Gets the payload; returns the answer, or something to await for it. For news the answer is thrown away."""

_LENGTH = 4
"""Bytes before each frame that tell its length."""
_LARGEST = 32 << 20
"""Bytes of one frame: the metrics of a process take a few MiB at most."""
_MOST_UNSENT = 2 * _LARGEST
_MOST_CALLS = 20_000
"""That one end may have under way at the other."""
_RECEIVED_AT_ONCE = 256 << 10
_WORKING_AFTER = 0.01
"""Seconds after which whoever answers says that it works on it."""
_ASK, _TELL, _ANSWER, _WORKING, _FAILED = range(5)
_decoder = msgspec.msgpack.Decoder(tuple[int, int, str, Any])
_log = structlog.get_logger()


class ChannelClosed(Exception):
    """The other end is gone, or we have closed ours."""


class Refused(Exception):
    """The other end could not do it: `name` is its error's class, the text what it said."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


class Channel:
    """One end of a stream socket between two processes of ours. Both ends may ask, and answer, at any time.

    Payloads are whatever msgpack knows. Frames arrive in the order in which they were sent, and handlers are called in
    that order, on the loop; what a handler returns to be awaited becomes a task. A frame comes first in the turn of the
    loop after the one that made the channel: handlers that are set at once miss nothing.

    A peer that reads nothing until `most_unsent` bytes wait for it loses us, and so does one that sends nonsense.
    """

    def __init__(self, sock: socket.socket, *, most_unsent: int = _MOST_UNSENT) -> None:
        """The socket is ours from now on. Needs a running loop."""
        self.closed = asyncio.Event()
        """Set once nothing goes through any more."""
        sock.setblocking(False)
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._most_unsent = most_unsent
        self._handlers: dict[str, Handler] = {}
        self._when_closed: list[Callable[[], object]] = []
        self._calls: dict[int, _Call] = {}
        self._last = 0
        self._unsent: deque[memoryview] = deque()
        self._unsent_bytes = 0
        self._answering: set[asyncio.Task[None]] = set()
        self._reader = asyncio.create_task(self._read(), name="channel")

    def on(self, name: str, handler: Handler) -> None:
        """Has `handler` answer what the other end asks or tells under this name."""
        self._handlers[name] = handler

    def when_closed(self, callback: Callable[[], object]) -> None:
        """Has `callback` called once, when the channel is closed by whichever end."""
        self._when_closed.append(callback)

    async def call(self, name: str, payload: Any, limit: float, *, silence: float | None = None) -> Any:
        """The other end's answer, within `limit` seconds, and with a sign of life within `silence` seconds.

        Raises TimeoutError, ChannelClosed, and Refused for an error of the other end. Who gives up is not heard: what
        the other end does for it all the same has to be taken back by other means.
        """
        if self.closed.is_set():
            raise ChannelClosed
        self._last += 1
        number, call = self._last, _Call(self._loop)
        self._calls[number] = call
        try:
            self._send(_ASK, number, name, payload)
            began = self._loop.time()
            if silence is not None and silence < limit and not await call.wait(call.heard, silence):
                raise TimeoutError
            if not await call.wait(call.answer, began + limit - self._loop.time()):
                raise TimeoutError
            return call.answer.result()
        finally:
            del self._calls[number]
            call.forget()

    def tell(self, name: str, payload: Any) -> None:
        """Lets the other end know; without a word where there is none any more."""
        if not self.closed.is_set():
            self._send(_TELL, 0, name, payload)

    async def close(self) -> None:
        """Ends it: calls under way fail, answers that are being worked out are given up. Idempotent."""
        self._lose()
        tasks = [task for task in (self._reader, *self._answering) if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # Out.

    def _send(self, kind: int, number: int, name: str, payload: Any) -> None:
        body = msgspec.msgpack.encode((kind, number, name, payload))
        if len(body) > _LARGEST:
            raise ValueError(f"{name}: {len(body)} bytes are too much for one frame")
        frame = memoryview(len(body).to_bytes(_LENGTH, "little") + body)
        if not self._unsent:
            try:
                frame = frame[self._sock.send(frame) :]
            except (BlockingIOError, InterruptedError):
                pass
            except OSError:
                self._lose()
                return
            if not frame:
                return
            self._loop.add_writer(self._sock.fileno(), self._flush)
        self._unsent.append(frame)
        self._unsent_bytes += len(frame)
        if self._unsent_bytes > self._most_unsent:
            _log.error("another process of ours takes nothing from us", unsent=self._unsent_bytes)
            self._lose()

    def _flush(self) -> None:
        while self._unsent:
            try:
                sent = self._sock.send(self._unsent[0])
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self._lose()
                return
            self._unsent_bytes -= sent
            self._unsent[0] = self._unsent[0][sent:]
            if not self._unsent[0]:
                self._unsent.popleft()
        self._loop.remove_writer(self._sock.fileno())

    # In.

    async def _read(self) -> None:
        received = bytearray()
        try:
            while data := await self._loop.sock_recv(self._sock, _RECEIVED_AT_ONCE):
                received += data
                self._take_frames(received)
        except OSError:
            pass
        except (msgspec.MsgspecError, ValueError) as error:
            _log.error("another process of ours sends what is none of ours", error=str(error))
        finally:
            self._lose()

    def _take_frames(self, received: bytearray) -> None:
        start = 0
        while len(received) - start >= _LENGTH and not self.closed.is_set():
            length = int.from_bytes(received[start : start + _LENGTH], "little")
            if length > _LARGEST:
                raise ValueError(f"a frame of {length} bytes")
            end = start + _LENGTH + length
            if len(received) < end:
                break
            self._take(*_decoder.decode(received[start + _LENGTH : end]))
            start = end
        del received[:start]

    def _take(self, kind: int, number: int, name: str, payload: Any) -> None:
        if kind in (_ASK, _TELL):
            self._handle(number if kind == _ASK else None, name, payload)
            return
        call = self._calls.get(number)
        if call is None:
            return  # whoever asked has given up
        call.hear()
        if kind == _ANSWER:
            call.succeed(payload)
        elif kind == _FAILED:
            call.fail(Refused(name, str(payload)))

    def _handle(self, number: int | None, name: str, payload: Any) -> None:
        handler = self._handlers.get(name)
        if handler is None:
            self._failed(number, name, LookupError(f"nobody here knows of {name}"))
            return
        if len(self._answering) >= _MOST_CALLS:
            self._failed(number, name, OverflowError("too much is being asked at once"))
            return
        try:
            answer = handler(payload)
        except Exception as error:
            self._failed(number, name, error)
            return
        if not isinstance(answer, Awaitable):
            self._answered(number, answer)
            return
        task = self._loop.create_task(self._work(number, name, answer), name=f"channel: {name}")
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _work(self, number: int | None, name: str, answer: Awaitable[Any]) -> None:
        working = self._loop.call_later(_WORKING_AFTER, self._working, number) if number is not None else None
        try:
            self._answered(number, await answer)
        except Exception as error:
            self._failed(number, name, error)
        finally:
            if working is not None:
                working.cancel()

    def _working(self, number: int) -> None:
        if not self.closed.is_set():
            self._send(_WORKING, number, "", None)

    def _answered(self, number: int | None, answer: Any) -> None:
        if number is not None and not self.closed.is_set():
            self._send(_ANSWER, number, "", answer)

    def _failed(self, number: int | None, name: str, error: Exception) -> None:
        if number is None:
            _log.error("news from another process of ours could not be used", name=name, error=repr(error))
        elif not self.closed.is_set():
            self._send(_FAILED, number, type(error).__name__, str(error))

    # The end.

    def _lose(self) -> None:
        if self.closed.is_set():
            return
        self.closed.set()
        self._loop.remove_writer(self._sock.fileno())
        self._unsent.clear()
        for call in self._calls.values():
            call.fail(ChannelClosed())
        for task in self._answering:
            if task is not asyncio.current_task():
                task.cancel()
        if asyncio.current_task() is not self._reader:
            self._reader.cancel()
        self._reader.add_done_callback(lambda _: self._sock.close())  # not under a reader: the number is used again
        for callback in self._when_closed:
            callback()


class _Call:
    """One question of ours."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.heard: asyncio.Future[None] = loop.create_future()
        self.answer: asyncio.Future[Any] = loop.create_future()

    async def wait(self, event: asyncio.Future[Any], seconds: float) -> bool:
        """Whether it came. What has come by the time that we look counts, however late our own loop is."""
        await asyncio.wait([event], timeout=max(0.0, seconds))
        return event.done()

    def hear(self) -> None:
        """The other end is alive."""
        if not self.heard.done():
            self.heard.set_result(None)

    def succeed(self, answer: Any) -> None:
        """It has answered."""
        if not self.answer.done():
            self.answer.set_result(answer)

    def fail(self, error: Exception) -> None:
        """There will be no answer."""
        self.hear()
        if not self.answer.done():
            self.answer.set_exception(error)

    def forget(self) -> None:
        """Nobody waits any more."""
        if self.answer.done() and not self.answer.cancelled():
            self.answer.exception()  # heard
        self.answer.cancel()
        self.heard.cancel()

"""Structured log lines that never make anyone wait: callers put them in a bounded queue, one thread writes them.

Loggers come from `structlog.get_logger()`; standard logging and warnings of libraries take the same way out.
"""

from __future__ import annotations

import fcntl
import io
import json
import logging
import os
import select
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from functools import lru_cache
from pathlib import PurePath
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TextIO

import msgspec
import structlog
from structlog.typing import EventDict, ExcInfo, Processor, WrappedLogger

QUEUE_LINES = 10_000
"""Lines that may wait to be written; more are dropped and counted."""

CLOSE_SECONDS = 2.0
"""How long `close` waits for a reader of the lines."""

_LINE_LIMIT = 32 << 10
_BATCH_LINES = 4096
_BATCH_SECONDS = 0.02
_FRAMES = 12
_CAUSES = 4


class Drops(Protocol):
    """Counts dropped lines; a Prometheus counter is one."""

    def inc(self, amount: float = 1) -> None: ...


class LineWriter:
    """One thread that writes lines to a stream, and a bounded queue in front of it.

    `put` never blocks. It is safe to be called from a finalizer, in the middle of another `put` of the same thread:
    asyncio logs from there.
    """

    def __init__(
        self, stream: TextIO, drops: Drops | None = None, *, limit: int = QUEUE_LINES, turns: int | None = None
    ) -> None:
        """`turns`: a descriptor of a file that is locked while lines are written, by each process that writes there."""
        self._stream = stream
        self._turns = turns
        self._descriptor = _duplicate(stream)
        self._drops = drops
        self._limit = limit
        # SimpleQueue has no bound of its own, but its put is reentrant, which that of Queue is not.
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        self._closing = threading.Event()
        # A daemon, so that a pipe that nobody reads cannot keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def put(self, line: str) -> None:
        """Queues a line (without its line end), or drops it where too many wait."""
        if self._closing.is_set() or self._lines.qsize() >= self._limit:
            self._dropped(1)
        else:
            self._lines.put(line)

    def close(self, timeout: float = CLOSE_SECONDS) -> None:
        """Writes what waits, for at most `timeout` seconds; later lines are dropped."""
        self._closing.set()
        self._lines.put(None)
        self._thread.join(timeout)

    def _dropped(self, count: int) -> None:
        if self._drops is not None:
            self._drops.inc(count)

    def _run(self) -> None:
        while (lines := self._next_lines()) is not None:
            try:
                self._write("".join(f"{line}\n" for line in lines))
            except (OSError, ValueError):
                # Nobody reads any more (EPIPE), or the stream was closed; there is no one to tell.
                self._dropped(len(lines))
            # Lines gather meanwhile: waking this thread for each costs more than writing it.
            self._closing.wait(_BATCH_SECONDS)
        if self._descriptor is not None:
            os.close(self._descriptor)

    def _next_lines(self) -> list[str] | None:
        """At least one line, and those that wait behind it; None at the end."""
        first = self._lines.get()
        if first is None:
            return None
        lines = [first]
        while len(lines) < _BATCH_LINES:
            try:
                line = self._lines.get_nowait()
            except Empty:
                break
            if line is None:
                self._lines.put(None)
                break
            lines.append(line)
        return lines

    def _write(self, text: str) -> None:
        if self._descriptor is None:
            self._stream.write(text)
            self._stream.flush()
            return
        # Past the stream's own buffer and lock: a daemon thread that holds them when Python ends makes it abort.
        self._write_bytes(self._descriptor, text.encode("utf-8", "backslashreplace"))

    def _write_bytes(self, descriptor: int, data: bytes) -> None:
        """A pipe takes more than a page in parts, between which come those of others: hence turns."""
        if self._turns is not None:
            fcntl.lockf(self._turns, fcntl.LOCK_EX)  # the kernel gives up that of a process that dies
        try:
            _write_all(descriptor, memoryview(data))
        finally:
            if self._turns is not None:
                fcntl.lockf(self._turns, fcntl.LOCK_UN)


def _write_all(descriptor: int, left: memoryview) -> None:
    while left:
        try:
            left = left[os.write(descriptor, left) :]
        except BlockingIOError:
            room = select.poll()
            room.register(descriptor, select.POLLOUT)
            room.poll()


class _Output:
    """What structlog and standard logging hand finished lines to: the writer of the latest `configure`."""

    writer: LineWriter | None = None
    takes_requests = False
    """Whether lines of requests are wanted, and as JSON."""
    drops_requests = False
    """Whether they are not wanted, whatever they look like."""
    name = ""
    """What each of them says of the process."""

    def put(self, line: str) -> None:
        if self.writer is not None:
            self.writer.put(line)

    msg = debug = info = warning = error = critical = exception = log = put


_output = _Output()


def configure(
    level: str = "info",
    stream: TextIO | None = None,
    metrics_dropped: Drops | None = None,
    force_json: bool | None = None,
    *,
    worker: int | None = None,
    turns: int | None = None,
) -> None:
    """Sets logging up for the process, anew if it was set up before.

    Lines of `level` and above go to `stream` (standard error by default), for people where it is a terminal and as one
    JSON object a line where it is not; `force_json` overrides that. Dropped lines are counted in `metrics_dropped`.
    Those of a `worker` name its slot. Several processes that write to one stream share a file to take `turns` by.
    Hot paths keep the result of `structlog.get_logger().bind()`, made after this: it saves the set-up of each call.
    """
    close()
    stream = stream or sys.stderr
    as_json = not stream.isatty() if force_json is None else force_json
    processors = [*_named(worker), *_processors(as_json=as_json)]
    _output.writer = LineWriter(stream, metrics_dropped, turns=turns)
    _output.drops_requests = logging.getLevelNamesMapping()[level.upper()] > logging.INFO
    _output.takes_requests = as_json and not _output.drops_requests
    _output.name = "" if worker is None else f'"worker":{worker},'
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *args: _output,
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers[:] = [*_foreign(root.handlers), _Bridge(processors)]
    # What libraries say for debugging quotes what they are given: keys, URLs, headers.
    root.setLevel(max(logging.INFO, logging.getLevelNamesMapping()[level.upper()]))
    logging.captureWarnings(capture=True)


def close(timeout: float = CLOSE_SECONDS) -> None:
    """Writes the lines that wait, for at most `timeout` seconds, and lets go of the stream. Idempotent."""
    writer, _output.writer = _output.writer, None
    _output.takes_requests = _output.drops_requests = False
    root = logging.getLogger()
    root.handlers[:] = _foreign(root.handlers)
    logging.captureWarnings(capture=False)
    if writer is not None:
        writer.close(timeout)


class RequestLine:
    """What a logger's `info("request", …)` would write, at a quarter of its cost; what many have in common, only once.

    `asked` and `answered` are the fields before and behind the client's address.
    """

    __slots__ = ("_answered", "_asked", "answered", "asked")

    def __init__(self, asked: Mapping[str, object], answered: Mapping[str, object]) -> None:
        self.asked = asked
        self.answered = answered
        self._asked, self._answered = _fields(asked), _fields(answered)

    def __len__(self) -> int:
        """Characters that are kept."""
        return len(self._asked) + len(self._answered)

    def write(self, request_id: str, client: str | None, seconds: float, failure: str | None = None) -> None:
        """Writes the line of one request; `request_id` is of characters that JSON leaves as they are."""
        if _output.drops_requests:
            return
        if not _output.takes_requests:
            self._say(request_id, client, seconds, failure)
            return
        line = (
            f'{{"timestamp":"{_timestamp()}","level":"info","event":"request",{_output.name}"request_id":"{request_id}",'
            f'{self._asked},"client":{_quoted(client)},{self._answered},"duration":{seconds:.6f}'
        )
        line += f",{_fields({'failure': failure})}}}" if failure else "}"
        if len(line) > _LINE_LIMIT:
            self._say(request_id, client, seconds, failure)
        else:
            _output.put(line)

    def _say(self, request_id: str, client: str | None, seconds: float, failure: str | None) -> None:
        """The ordinary way."""
        fields = {"request_id": request_id, **self.asked, "client": client, **self.answered}
        fields["duration"] = round(seconds, 6)
        if failure:
            fields["failure"] = failure
        structlog.get_logger().info("request", **fields)


class _Bridge(logging.Handler):
    """Takes the records of standard logging through our processors."""

    def __init__(self, processors: list[Processor]) -> None:
        super().__init__()
        self._processors = processors

    def emit(self, record: logging.LogRecord) -> None:
        event: Any = {"event": record.getMessage(), "logger": record.name}
        if record.exc_info:
            event["exc_info"] = record.exc_info
        for processor in self._processors:
            event = processor(None, record.levelname.lower(), event)
        _output.put(event)


def _foreign(handlers: list[logging.Handler]) -> list[logging.Handler]:
    return [handler for handler in handlers if not isinstance(handler, _Bridge)]


def _named(worker: int | None) -> list[Processor]:
    if worker is None:
        return []

    def name(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        event["worker"] = worker
        return event

    return [name]


def _processors(*, as_json: bool) -> list[Processor]:
    common: list[Processor] = [structlog.contextvars.merge_contextvars, structlog.processors.add_log_level]
    if as_json:
        return [*common, _render_json]
    stamp = structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)
    # The default formatter of exceptions shows local variables, and so secrets.
    console = structlog.dev.ConsoleRenderer(colors="NO_COLOR" not in os.environ, exception_formatter=_show_traceback)
    return [*common, _show_plainly, stamp, console]


def _show_plainly(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Clients choose much of what is logged; none of it may move the cursor of the terminal that it is read on."""
    return {key: _printable(value) if isinstance(value, str) else value for key, value in event.items()}


def _show_traceback(stream: TextIO, exc_info: ExcInfo) -> None:
    text = io.StringIO()
    structlog.dev.plain_traceback(text, exc_info)
    stream.write("\n".join(map(_printable, text.getvalue().split("\n"))))


def _printable(text: str) -> str:
    """`text` with every character escaped that a terminal does not simply show."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


_PLAIN = frozenset({str, int, float, bool, type(None)})


def _encode(event: Mapping[str, object]) -> str:
    # Other kinds are shown as their text: msgspec would look into dataclasses, and their repr may mask a secret.
    plain = {key: value if type(value) in _PLAIN else str(value) for key, value in event.items()}
    try:
        line = msgspec.json.encode(plain).decode()
    except UnicodeEncodeError:
        return json.dumps(plain)  # file names that are not UTF-8
    # JSON itself escapes no more than the oldest control characters, and is read on terminals, too.
    return line if line.isprintable() else json.dumps(plain)


@lru_cache(maxsize=2)
def _date(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def _fields(values: Mapping[str, object]) -> str:
    return _encode(values)[1:-1]


@lru_cache(maxsize=4096)
def _quoted(client: str | None) -> str:
    return _encode({"": client}).removeprefix('{"":').removesuffix("}")


def _timestamp() -> str:
    milliseconds = time.time_ns() // 1_000_000
    return f"{_date(milliseconds // 1000)}.{milliseconds % 1000:03d}Z"


def _render_json(_: WrappedLogger, __: str, event: EventDict) -> str:
    exc_info = event.pop("exc_info", None)
    ordered = {
        "timestamp": _timestamp(),
        "level": event.pop("level"),
        "event": event.pop("event"),
        **event,
    }
    if exc_info:
        ordered["exception"] = _compact(exc_info)
    line = _encode(ordered)
    if len(line) > _LINE_LIMIT:
        line = _encode({key: str(value)[:256] for key, value in ordered.items()} | {"truncated": True})
    return line


def _compact(exc_info: Any) -> Any:
    """An exception in one value: kind and message, the innermost frames, and what caused it."""
    if isinstance(exc_info, BaseException):
        error: BaseException | None = exc_info
    else:
        error = exc_info[1] if isinstance(exc_info, tuple) else sys.exc_info()[1]
    parts: list[str] = []
    while error is not None and len(parts) < _CAUSES:
        frames = [
            f"{PurePath(frame.filename).name}:{frame.lineno} {frame.name}"
            for frame in traceback.extract_tb(error.__traceback__)[-_FRAMES:]
        ]
        parts.append(f"{type(error).__name__}: {error} ({' > '.join(frames)})")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return " from ".join(parts)


def _duplicate(stream: TextIO) -> int | None:
    """A file descriptor of our own for what is under `stream`; None for streams in memory.

    The thread may outlive whoever closes `stream`, and must not write into the file that gets its number next.
    """
    try:
        return os.dup(stream.fileno())
    except (OSError, ValueError):
        return None

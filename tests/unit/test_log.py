"""Log lines: complete, one JSON object each, and never a reason to wait."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import structlog
from pydantic import SecretStr

from mirror import log


class Count:
    """Counts dropped lines, as a Prometheus counter does."""

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1) -> None:
        self.value += amount


class Terminal(io.StringIO):
    """A stream in memory that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


@dataclass
class Pipe:
    """A pipe whose writing end is a stream, and whose reading end nobody reads unless told to."""

    reader: int
    stream: io.TextIOWrapper

    def read_all(self) -> bytes:
        """All that is written until the writing end is closed."""
        with os.fdopen(self.reader, "rb") as file:
            return file.read()


@pytest.fixture(name="pipe")
def make_pipe() -> Iterator[Pipe]:
    """A pipe; both ends are closed at the end."""
    reader, writer = os.pipe()
    pipe = Pipe(reader, os.fdopen(writer, "w"))
    yield pipe
    for close in (pipe.stream.close, lambda: os.close(reader)):
        try:
            close()
        except OSError:
            pass  # closed by the test


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    """Leaves logging as it was found."""
    level = logging.getLogger().level
    yield
    log.close()
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    logging.getLogger().setLevel(level)


def lines_of(stream: io.StringIO) -> list[dict[str, Any]]:
    """The JSON lines that a stream got; waits until they are written."""
    log.close()
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_one_json_object_with_time_level_and_event_first() -> None:
    """Machines read the lines: stable keys in a stable order, numbers as numbers."""
    stream = io.StringIO()
    log.configure("info", stream)
    structlog.get_logger().info("request", status=200, duration=0.25, upstream=None, repository='a"b\n')

    [line] = lines_of(stream)
    assert list(line)[:3] == ["timestamp", "level", "event"]
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "level": "info", "event": "request", "status": 200, "duration": 0.25, "upstream": None, "repository": 'a"b\n'
    }  # fmt: skip


def test_what_the_middleware_bound_is_in_every_line() -> None:
    """Request id and upstream are bound once, and are in our lines and in those of libraries."""
    stream = io.StringIO()
    log.configure("info", stream)
    structlog.contextvars.bind_contextvars(request_id="r1", upstream="docker.io")
    structlog.get_logger().warning("one")
    logging.getLogger("aiohttp.server").error("two %s", "words")

    one, two = lines_of(stream)
    assert (one["request_id"], one["upstream"], one["event"]) == ("r1", "docker.io", "one")
    assert (two["request_id"], two["upstream"], two["event"]) == ("r1", "docker.io", "two words")
    assert (two["logger"], two["level"]) == ("aiohttp.server", "error")


def test_each_line_of_a_worker_names_it() -> None:
    """Ours and those of libraries; where there are no workers none is named."""
    stream = io.StringIO()
    log.configure("info", stream, worker=1)
    structlog.get_logger().info("one")
    logging.getLogger("asyncio").error("two")
    log.RequestLine({"method": "GET"}, {"status": 200}).write("r1", "127.0.0.1", 0.1)

    assert [line["worker"] for line in lines_of(stream)] == [1, 1, 1]


WRITER = """
import sys
from mirror.log import LineWriter
writer = LineWriter(sys.stdout, turns=int(sys.argv[1]))
for number in range(300):
    writer.put(sys.argv[2] * 20_000)
writer.close(60)
"""


def test_no_line_comes_between_the_parts_of_another_process_s_line() -> None:
    """Several processes write long lines to one pipe, which takes a page at a time: each line is whole."""
    turns = os.memfd_create("turns")
    out, into = os.pipe()
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(turns), letter], stdout=into, pass_fds=[turns])
        for letter in "ab"
    ]
    os.close(into)
    os.close(turns)
    with os.fdopen(out, "rb") as pipe:
        lines = pipe.read().splitlines()
    assert [writer.wait() for writer in writers] == [0, 0]
    assert sorted(lines) == [b"a" * 20_000] * 300 + [b"b" * 20_000] * 300


def test_lines_below_the_level_are_left_out() -> None:
    """The level holds for our lines and for those of libraries."""
    stream = io.StringIO()
    log.configure("warning", stream)
    structlog.get_logger().info("no")
    logging.getLogger("asyncio").info("no")
    structlog.get_logger().warning("yes")
    logging.getLogger("asyncio").warning("yes")

    assert [line["event"] for line in lines_of(stream)] == ["yes", "yes"]


def test_libraries_do_not_debug_into_our_lines() -> None:
    """At level debug they would quote keys, URLs and headers; what they say at higher levels stays."""
    stream = io.StringIO()
    log.configure("debug", stream)
    logging.getLogger("aiocache.base").debug("GET %s", "planted")
    logging.getLogger("aiocache.base").info("yes")
    structlog.get_logger().debug("ours")

    assert [line["event"] for line in lines_of(stream)] == ["yes", "ours"]


def test_warnings_are_log_lines() -> None:
    """A deprecation in a library does not break the stream of JSON lines."""
    stream = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        log.configure("info", stream)
        warnings.warn("careful", UserWarning, stacklevel=1)
        [line] = lines_of(stream)

    assert line["logger"] == "py.warnings"
    assert "careful" in line["event"]


def fail_with(password: str) -> None:
    """Raises an error with a cause while a local variable holds a secret."""
    missing: dict[str, str] = {}
    try:
        missing["inner"]
    except KeyError as exc:
        raise ValueError("outer\nerror" + password[:0]) from exc


@pytest.mark.parametrize("library", [False, True])
def test_an_exception_is_one_compact_line_without_local_variables(library: bool) -> None:
    """Kind, message, frames and cause are in the line; values of variables, which may be secrets, are not."""
    stream = io.StringIO()
    log.configure("info", stream)
    logger: Any = logging.getLogger("aiohttp") if library else structlog.get_logger()
    try:
        fail_with("planted")
    except ValueError:
        logger.exception("failed")

    [line] = lines_of(stream)
    assert line["event"] == "failed"
    assert "ValueError: outer\nerror (test_log.py:" in line["exception"]
    assert " fail_with) from KeyError: 'inner'" in line["exception"]
    assert "planted" not in json.dumps(line)


def test_an_exception_can_be_given_as_a_value() -> None:
    """A task's exception is logged where none is being handled."""
    stream = io.StringIO()
    log.configure("info", stream)
    structlog.get_logger().error("task failed", exc_info=ValueError("late"))

    [line] = lines_of(stream)
    assert line["exception"] == "ValueError: late ()"


ASKED = {"method": "GET", "path": '/v2/\x1b\u202eé"/manifests/1'}
ANSWERED = {"upstream": "docker.io", "repository": None, "status": 200, "bytes": 7}


@pytest.mark.parametrize("failure", [None, "the client\nleft", "\udcff"])
@pytest.mark.parametrize("client", ["192.0.2.1", "fe80::1%eth0", None])
def test_the_line_of_a_request_is_what_a_logger_would_write(client: str | None, failure: str | None) -> None:
    """The same fields in the same order, with nothing in them that a terminal obeys."""
    stream = io.StringIO()
    log.configure("info", stream)
    log.RequestLine(ASKED, ANSWERED).write("id-1", client, 0.0000214, failure)
    fields: dict[str, Any] = {"request_id": "id-1", **ASKED, "client": client, **ANSWERED, "duration": 0.000021}
    structlog.get_logger().info("request", **fields, **({"failure": failure} if failure else {}))

    one, other = lines_of(stream)
    assert stream.getvalue().replace("\n", "").isprintable()
    assert one.pop("timestamp")[:10] == other.pop("timestamp")[:10]
    assert one == other
    assert list(one) == list(other)


def test_the_line_of_a_request_is_left_out_below_its_level() -> None:
    """It is one of level info."""
    stream = io.StringIO()
    log.configure("warning", stream)
    log.RequestLine(ASKED, ANSWERED).write("id-1", None, 0.1)
    assert lines_of(stream) == []


def test_the_line_of_a_request_is_for_people_on_a_terminal() -> None:
    """Like all others there."""
    stream = io.StringIO()
    log.configure("info", stream, force_json=False)
    log.RequestLine(ASKED, ANSWERED).write("id-1", "192.0.2.1", 0.1)
    log.close()
    assert not stream.getvalue().startswith("{")
    assert all(text in stream.getvalue() for text in ("request", "id-1", "192.0.2.1", "docker.io"))


def test_an_endless_line_of_a_request_is_cut() -> None:
    """As any line."""
    stream = io.StringIO()
    log.configure("info", stream)
    log.RequestLine(ASKED, ANSWERED).write("id-1", None, 0.1, "x" * 1_000_000)

    [line] = lines_of(stream)
    assert (line["truncated"], line["request_id"], len(line["failure"])) == (True, "id-1", 256)


@dataclass
class Login:
    """A value whose text masks what it holds."""

    password: str = field(repr=False)


def test_other_values_are_shown_by_their_masking_text() -> None:
    """A value that masks its secret in its repr masks it in the log."""
    stream = io.StringIO()
    log.configure("info", stream)
    structlog.get_logger().info(
        "login", login=Login("planted"), secret=SecretStr("planted"), path=b"\xff", odd="\udcff"
    )

    [line] = lines_of(stream)
    assert (line["login"], line["secret"]) == ("Login()", "**********")
    assert (line["path"], line["odd"]) == ("b'\\xff'", "\udcff")


ODD = "a\x1b]0;title\x07\r\nb\x00\x9b31m\u2028\u202ec\x85é"
"""What moves a cursor, ends a line or turns the order of letters about, and a letter."""


@pytest.mark.parametrize("force_json", [True, False], ids=["json", "terminal"])
def test_words_of_others_are_shown_and_not_obeyed(monkeypatch: pytest.MonkeyPatch, force_json: bool) -> None:
    """Whatever a client or an upstream gets into a line, it stays one line of characters that are simply shown."""
    monkeypatch.setenv("NO_COLOR", "1")
    stream = io.StringIO()
    log.configure("info", stream, force_json=force_json)
    structlog.get_logger().info(ODD, path=ODD, list=[ODD], number=1)
    logging.getLogger("aiohttp.server").warning("%s", ODD)
    log.close()

    first, second, after = stream.getvalue().split("\n")
    assert after == ""
    for line in (first, second):
        assert line.isprintable()
        assert "title" in line
    if force_json:
        assert json.loads(first)["path"] == ODD


def test_an_exception_on_a_terminal_shows_no_local_variables_and_obeys_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its traceback has lines of its own, each of characters that are simply shown."""
    monkeypatch.setenv("NO_COLOR", "1")
    stream = io.StringIO()
    log.configure("info", stream, force_json=False)
    password = "planted".replace("t", "T")

    def fail(secret: str) -> None:
        raise ValueError(ODD[: len(secret) * 9])

    try:
        fail(password)
    except ValueError:
        structlog.get_logger().exception("failed")
    log.close()

    text = stream.getvalue()
    assert password not in text
    assert "title" in text
    assert all(line.isprintable() for line in text.split("\n"))


def test_an_endless_line_is_cut() -> None:
    """A line has a bound, so the queue has one in bytes too; what is left is still JSON."""
    stream = io.StringIO()
    log.configure("info", stream)
    structlog.get_logger().info("big", body="x" * 1_000_000, status=500)

    [line] = lines_of(stream)
    assert (line["event"], line["status"], line["truncated"]) == ("big", "500", True)
    assert len(line["body"]) == 256


def test_a_terminal_gets_coloured_lines_unless_json_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """People read terminals; everything else reads JSON; both can be forced."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal, forced, plain = Terminal(), Terminal(), io.StringIO()
    for stream, force_json in ((terminal, None), (forced, True), (plain, False)):
        log.configure("info", stream, force_json=force_json)
        structlog.get_logger().info("hello", upstream="docker.io")
        log.close()

    assert "\x1b[" in terminal.getvalue()
    assert "hello" in terminal.getvalue()
    assert json.loads(forced.getvalue())["event"] == "hello"
    assert not plain.getvalue().startswith("{")


def test_a_pipe_that_nobody_drains_stops_no_caller(pipe: Pipe) -> None:
    """Callers go on when the log stands still; what does not fit in the queue is dropped and counted."""
    drops = Count()
    log.configure("info", pipe.stream, drops)
    logger = structlog.get_logger()
    sent = 2 * log.QUEUE_LINES
    for number in range(sent):
        logger.info("line", number=number, padding="x" * 100)

    assert 0 < drops.value < sent
    log.close(timeout=0.01)
    logger.info("after the end")  # goes nowhere, and harms nobody


def test_every_line_is_either_written_in_order_or_counted_as_dropped(pipe: Pipe) -> None:
    """When the reader comes back nothing is lost silently or doubled."""
    drops = Count()
    writer = log.LineWriter(pipe.stream, drops, limit=1000)
    for number in range(5000):
        writer.put(f"{number} {'x' * 100}")
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_all()))
    reader.start()
    writer.close(timeout=10)
    pipe.stream.close()
    reader.join()

    numbers = [int(line.split()[0]) for line in received[0].splitlines()]
    assert drops.value > 0
    assert len(numbers) + drops.value == 5000
    assert numbers == sorted(set(numbers))


def test_a_pipe_set_to_non_blocking_gets_every_line(pipe: Pipe) -> None:
    """Whoever shares our standard error may have made it non-blocking; a full pipe is waited for all the same."""
    os.set_blocking(pipe.stream.fileno(), False)
    drops = Count()
    writer = log.LineWriter(pipe.stream, drops)
    for number in range(3000):
        writer.put(f"{number} {'x' * 100}")
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_all()))
    reader.start()
    writer.close(timeout=10)
    pipe.stream.close()
    reader.join()

    assert len(received[0].splitlines()) == 3000
    assert drops.value == 0


def test_lines_for_a_reader_that_has_left_are_dropped_and_counted(pipe: Pipe) -> None:
    """A closed pipe costs lines, never an exception."""
    os.close(pipe.reader)
    drops = Count()
    log.configure("info", pipe.stream, drops)
    structlog.get_logger().info("to nobody")
    log.close()

    assert drops.value == 1


def test_lines_dropped_are_counted_while_the_queue_is_full(pipe: Pipe) -> None:
    """The bound is the one that was given: not one line more waits."""
    drops = Count()
    writer = log.LineWriter(pipe.stream, drops, limit=0)
    writer.put("never")
    writer.close(timeout=1)

    assert drops.value == 1


def test_configuring_again_moves_all_loggers_to_the_new_stream() -> None:
    """Loggers made before go where the latest set-up says; handlers do not pile up."""
    first, second = io.StringIO(), io.StringIO()
    log.configure("info", first)
    logger = structlog.get_logger().bind(kept=True)
    log.configure("info", second)
    logger.info("hello")
    logging.getLogger("aiohttp").error("once")

    assert [line["event"] for line in lines_of(second)] == ["hello", "once"]
    assert first.getvalue() == ""
    log.close()

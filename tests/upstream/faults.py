"""The switches that spoil how an answer travels: connection, timing, length, bytes, ranges and encoding.

Each function makes a `Fault` for `FakeRegistry.fault`. Offsets count the body bytes of the answer that is spoilt, from
its end where negative; only `flip` counts in the whole content, since it means a bad copy.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from typing import Literal

from tests.upstream.answers import Answer, Cut, Ending, Exchange, Framing, Pause
from tests.upstream.content import Content, Data, Pattern, Sliced
from tests.upstream.rules import Fault, Rule, ranged
from tests.upstream.wire import RateLimit

_GET = frozenset({"GET"})


def refuse() -> Fault:
    """Closes the connection (FIN) before any byte of the answer.

    To refuse at accept, before a request can be sent, see `FakeRegistry.refuse_connections`.
    """
    return _cut("refuse", None, Ending.FIN)


def reset(at: int | None = None) -> Fault:
    """Resets the connection (RST) before the headers, or before body byte `at`."""
    return _cut("reset", at, Ending.RST)


def truncate(at: int, framing: Literal["length", "close", "chunked", "chunked-complete"] = "length") -> Fault:
    """Ends the body before byte `at` with FIN.

    `length`: short of the Content-Length. `close`: no length was promised, so it looks whole. `chunked`: the last
    chunk is missing. `chunked-complete`: the last chunk comes too early, so it looks whole.
    """
    ending = Ending.COMPLETE if framing == "chunked-complete" else Ending.FIN
    frame = Framing.CHUNKED if framing == "chunked-complete" else Framing(framing)

    def edit(_exchange: Exchange, answer: Answer, _rule: Rule) -> None:
        answer.framing = frame
        answer.steps.append(Cut(at, ending))

    return Fault(f"truncate({at}, {framing})", edit, methods=_GET)


def stall() -> Fault:
    """Sends nothing, not even headers, until the rule is released."""
    return _hold("stall", None)


def stall_at(at: int) -> Fault:
    """Sends the headers and `at` bytes of the body, then nothing until the rule is released."""
    return _hold(f"stall_at({at})", at)


def delay(seconds: float) -> Fault:
    """Waits so many seconds (or until the rule is released) before the headers. Several delays add up."""

    def edit(_exchange: Exchange, answer: Answer, rule: Rule) -> None:
        answer.steps.append(Pause(None, lambda: rule.hold(seconds)))

    return Fault(f"delay({seconds})", edit, holds=True)


def trickle(rate: float) -> Fault:
    """Sends the body at `rate` bytes per second (each answer by itself; `FakeRegistry.rate` limits all together)."""

    def edit(_exchange: Exchange, answer: Answer, _rule: Rule) -> None:
        answer.limits.append(RateLimit(rate))

    return Fault(f"trickle({rate})", edit, methods=_GET)


def flip(at: int) -> Fault:
    """Inverts the byte at offset `at` of the content, in whatever range carries it. Ranges without it are untouched."""

    def edit(exchange: Exchange, answer: Answer, _rule: Rule) -> None:
        size = exchange.stored.size if exchange.stored else answer.body.size
        where = (at if at >= 0 else size + at) - answer.start
        if 0 <= where < answer.body.size:
            answer.body = _Flipped(answer.body, where)

    return Fault(f"flip({at})", edit, methods=_GET)


def too_much(extra: int = 1000, framing: Literal["length", "declared", "chunked", "close"] = "length") -> Fault:
    """Sends `extra` bytes more than there are.

    `length`: past the honest Content-Length. `declared`: the Content-Length counts them. `chunked`, `close`: no length
    is promised.
    """
    frame = Framing.LENGTH if framing in ("length", "declared") else Framing(framing)

    def edit(_exchange: Exchange, answer: Answer, _rule: Rule) -> None:
        if framing == "length":
            answer.declared = answer.body.size
        answer.body = _Joined(answer.body, Pattern("too much", extra))
        answer.framing = frame
        answer.close = True

    return Fault(f"too_much({extra}, {framing})", edit, methods=_GET)


def no_length(framing: Literal["chunked", "close"] = "chunked") -> Fault:
    """Promises no length: a whole body in chunks, or until the connection closes; HEAD without Content-Length."""

    def edit(exchange: Exchange, answer: Answer, _rule: Rule) -> None:
        answer.framing = Framing(framing)

    return Fault(f"no_length({framing})", edit)


def wrong_length(factor: float = 2.0) -> Fault:
    """Multiplies the Content-Length of a HEAD (`factor` 2: Nexus' doubled one)."""

    def edit(_exchange: Exchange, answer: Answer, _rule: Rule) -> None:
        answer.declared = int(answer.body.size * factor)

    return Fault(f"wrong_length({factor})", edit, methods=frozenset({"HEAD"}))


def gzipped(label: str = "gzip") -> Fault:
    """Compresses the body and says so in Content-Encoding, although identity was asked for."""

    def edit(_exchange: Exchange, answer: Answer, _rule: Rule) -> None:
        answer.body = Data(gzip.compress(answer.body.read(0, answer.body.size), mtime=0))
        answer.headers["Content-Encoding"] = label

    return Fault("gzipped", edit, methods=_GET)


def ignore_range() -> Fault:
    """Answers a ranged request with 200 and everything. Requests without a range do not use it up."""

    def believe(exchange: Exchange) -> None:
        exchange.headers.popall("Range", None)

    return Fault("ignore_range", believe=believe, methods=_GET, suits=_is_ranged)


def unasked_206() -> Fault:
    """Answers an unranged GET with a 206 of everything. Ranged requests do not use it up."""

    def edit(_exchange: Exchange, answer: Answer, _rule: Rule) -> None:
        if answer.status == 200:
            answer.status = 206
            answer.headers["Content-Range"] = f"bytes 0-{answer.body.size - 1}/{answer.body.size}"

    return Fault("unasked_206", edit, methods=_GET, suits=lambda exchange: not _is_ranged(exchange))


def garbage() -> Fault:
    """Sends bytes that are no HTTP, and closes."""

    def edit(_exchange: Exchange, answer: Answer, _rule: Rule) -> None:
        answer.raw_head = b"\x15\x03\x01\x00\x02\x02\x46 this is not the protocol you are looking for\r\n\r\n"
        answer.steps.append(Cut(0, Ending.FIN))

    return Fault("garbage", edit)


def wrong_206(how: Literal["start", "end", "total", "missing", "star", "shifted"]) -> Fault:
    """Answers a ranged request with a 206 that is off. Requests without a range do not use it up.

    `start`: begins one byte later than asked, and says so. `end`: ends one byte early, and says so (legal).
    `total`: claims another length of the whole. `missing`: no Content-Range. `star`: `*` for the length (legal).
    `shifted`: says what was asked, but the bytes begin one later.
    """

    def edit(exchange: Exchange, answer: Answer, _rule: Rule) -> None:
        if answer.status != 206 or exchange.stored is None:
            return
        total = exchange.stored.size
        start, end = answer.start, answer.start + answer.body.size - 1
        if how in ("start", "shifted"):
            length = min(answer.body.size, total - start - 1)
            answer.body = Sliced(exchange.stored.source, start + 1, length)
        if how == "end":
            answer.body = Sliced(answer.body, 0, answer.body.size - 1)
        said = {
            "start": f"bytes {start + 1}-{start + answer.body.size}/{total}",
            "end": f"bytes {start}-{end - 1}/{total}",
            "total": f"bytes {start}-{end}/{total + 1}",
            "star": f"bytes {start}-{end}/*",
            "shifted": f"bytes {start}-{start + answer.body.size - 1}/{total}",
        }
        del answer.headers["Content-Range"]
        if how in said:
            answer.headers["Content-Range"] = said[how]

    return Fault(f"wrong_206({how})", edit, methods=_GET, suits=_is_ranged)


@dataclass(frozen=True, slots=True)
class _Flipped:
    inner: Content
    where: int

    @property
    def size(self) -> int:
        return self.inner.size

    def read(self, start: int, length: int) -> bytes:
        data = self.inner.read(start, length)
        offset = self.where - start
        if not 0 <= offset < len(data):
            return data
        return data[:offset] + bytes([data[offset] ^ 0xFF]) + data[offset + 1 :]


@dataclass(frozen=True, slots=True)
class _Joined:
    first: Content
    second: Content

    @property
    def size(self) -> int:
        return self.first.size + self.second.size

    def read(self, start: int, length: int) -> bytes:
        head = self.first.read(start, length) if start < self.first.size else b""
        rest = length - len(head)
        return head + self.second.read(start + len(head) - self.first.size, rest) if rest else head


def _cut(name: str, at: int | None, ending: Ending) -> Fault:
    def edit(_exchange: Exchange, answer: Answer, _rule: Rule) -> None:
        answer.steps.append(Cut(at, ending))

    return Fault(name if at is None else f"{name}({at})", edit, methods=None if at is None else _GET)


def _hold(name: str, at: int | None) -> Fault:
    def edit(_exchange: Exchange, answer: Answer, rule: Rule) -> None:
        answer.steps.append(Pause(at, rule.hold))

    return Fault(name, edit, methods=None if at is None else _GET, holds=True)


def _is_ranged(exchange: Exchange) -> bool:
    return ranged(exchange.seen)

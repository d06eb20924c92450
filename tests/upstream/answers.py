"""An answer before it is sent: plain values that faults may edit, and the honest answers to start from."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum
from http import HTTPStatus
from typing import TYPE_CHECKING

from multidict import CIMultiDict

from mirror.oci.byte_range import ByteRange, parse_ranges
from mirror.oci.errors import RangeInvalid, RangeNotSatisfiable
from tests.upstream.content import Content, Data, Sliced, Stored

if TYPE_CHECKING:
    from tests.upstream.counters import Seen
    from tests.upstream.registry import FakeRegistry
    from tests.upstream.wire import RateLimit


class Framing(Enum):
    """How a receiver learns where the body ends."""

    LENGTH = "length"
    CHUNKED = "chunked"
    CLOSE = "close"


class Ending(Enum):
    """How an answer is cut off."""

    FIN = "fin"
    """The connection is closed in order: a short body, or none."""
    RST = "rst"
    """The connection is reset."""
    COMPLETE = "complete"
    """The body ends as if it were whole (the last chunk is sent)."""


@dataclass(frozen=True)
class Pause:
    """Waits before the body byte `at` (None: before the headers; negative: from the end)."""

    at: int | None
    wait: Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class Cut:
    """Ends the answer before the body byte `at` (None: before the headers; negative: from the end)."""

    at: int | None
    ending: Ending


@dataclass
class Answer:
    """What will be sent. Offsets of `steps` count the body bytes of this answer."""

    status: int
    headers: CIMultiDict[str] = field(default_factory=CIMultiDict)
    body: Content = field(default_factory=lambda: Data(b""))
    framing: Framing = Framing.LENGTH
    declared: int | None = None
    """A Content-Length other than the body's."""
    start: int = 0
    """Where in the stored content the body begins (the start of a range)."""
    steps: list[Pause | Cut] = field(default_factory=list)
    limits: list[RateLimit] = field(default_factory=list)
    close: bool = False
    """Whether the connection is closed after it."""
    raw_head: bytes | None = None
    """Bytes to send in place of status line and headers."""


@dataclass
class Exchange:
    """A request on its way to an answer. Faults edit `headers`, which is what the registry believes was sent."""

    seen: Seen
    headers: CIMultiDict[str]
    registry: FakeRegistry
    stored: Stored | None = None
    """The blob or manifest asked for, where there is one."""


def text_answer(status: int, text: str | bytes, content_type: str = "text/plain; charset=utf-8") -> Answer:
    """Some text."""
    data = text.encode() if isinstance(text, str) else text
    return Answer(status, CIMultiDict({"Content-Type": content_type}), Data(data))


def json_answer(status: int, value: object, content_type: str = "application/json") -> Answer:
    """Some JSON."""
    return text_answer(status, json.dumps(value), content_type)


_CODES = {
    400: "UNSUPPORTED",
    401: "UNAUTHORIZED",
    403: "DENIED",
    404: "NAME_UNKNOWN",
    405: "UNSUPPORTED",
    416: "SIZE_INVALID",
    429: "TOOMANYREQUESTS",
}


def error_answer(status: int, code: str | None = None, message: str | None = None) -> Answer:
    """The specification's error envelope; code and message default to what fits the status."""
    error = {"code": code or _CODES.get(status, "UNKNOWN"), "message": message or HTTPStatus(status).phrase}
    return json_answer(status, {"errors": [error]})


def xml_answer(status: int, code: str, message: str) -> Answer:
    """An error as object stores write it."""
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>'
    return text_answer(status, text, "application/xml")


def content_answer(stored: Stored, range_header: str | None) -> Answer:
    """200 with everything, 206 with the range asked for, or 416. Several ranges at once get everything."""
    headers = CIMultiDict({"Content-Type": stored.media_type, "Accept-Ranges": "bytes"})
    try:
        wanted = _range(range_header, stored.size)
    except RangeNotSatisfiable:
        answer = error_answer(416, message="range not satisfiable")
        answer.headers["Content-Range"] = f"bytes */{stored.size}"
        return answer
    if wanted is None:
        return Answer(200, headers, stored.source)
    headers["Content-Range"] = wanted.content_range(stored.size)
    return Answer(206, headers, Sliced(stored.source, wanted.start, wanted.length), start=wanted.start)


def _range(header: str | None, size: int) -> ByteRange | None:
    try:
        ranges = parse_ranges(header)
    except RangeInvalid:
        return None
    return ranges.resolve(size)[0] if ranges is not None and len(ranges.specs) == 1 else None

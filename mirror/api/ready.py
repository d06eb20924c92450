"""Answers that are ready to go out again, for as long as nothing can have changed that they were made of."""

from __future__ import annotations

import time
from collections.abc import Callable
from email.utils import formatdate
from functools import lru_cache
from typing import NamedTuple

from aiohttp import HttpVersion, HttpVersion11, hdrs, web
from multidict import MultiMapping

from mirror.api.forwarded import Forwarded
from mirror.api.tally import Counts
from mirror.log import RequestLine
from mirror.memory import Bounded
from mirror.pull import Lasting

LIMIT = 32 << 20
"""Bytes that answers may take in memory, roughly."""
_OVERHEAD = 2048
_LONGEST = 1024
"""Characters of a request that an answer is found by: enough for every pull that can succeed."""
_VARIABLE = "\0"
"""In place of what differs from one answer to the next; no header holds it."""

Key = tuple[str, str, str, str | None]


class Ready(NamedTuple):
    """An answer: `head` is what stands before, between and behind the request's id and the date."""

    head: tuple[bytes, bytes, bytes]
    body: bytes
    lasting: Lasting
    counts: Counts
    line: RequestLine

    @property
    def sent(self) -> int:
        """Body bytes of it."""
        return len(self.body)

    def render(self, request_id: str) -> bytes:
        """All of it, as it goes out now."""
        before, between, behind = self.head
        return b"".join((before, request_id.encode(), between, _date(int(time.time())), behind, self.body))


class ReadyAnswers:
    """A bounded map from all that decides an answer to the answer; the least recently used go first.

    `by_host`: whether what a client calls us can decide it. `clock` is the one that answers last by.
    """

    def __init__(self, clock: Callable[[], float], *, by_host: bool, limit: int = LIMIT) -> None:
        self._clock = clock
        self._by_host = by_host
        self._answers: Bounded[Key, Ready] = Bounded(limit)
        self.given = 0
        """How many have been given."""

    def key(
        self,
        method: str,
        target: str,
        version: HttpVersion,
        headers: MultiMapping[str],
        forwarded: Forwarded,
        *,
        keep_alive: bool,
    ) -> Key | None:
        """What decides the answer to a request; None where there is more to it than a key can hold."""
        if not keep_alive or version != HttpVersion11 or method not in ("GET", "HEAD"):
            return None
        if hdrs.RANGE in headers or hdrs.IF_NONE_MATCH in headers or hdrs.IF_RANGE in headers:
            return None
        host = (forwarded.host or headers.get(hdrs.HOST)) if self._by_host else None
        if len(target) + len(host or "") > _LONGEST:
            return None
        return method, target, forwarded.prefix, host

    def get(self, key: Key) -> Ready | None:
        """The answer, if there is one that is still right."""
        ready = self._answers.get(key)
        if ready is None:
            return None
        if not ready.lasting.holds(self._clock()):
            self._answers.pop(key)
            return None
        self.given += 1
        return ready

    def keep(
        self, key: Key, response: web.Response, sent: int, lasting: Lasting, counts: Counts, line: RequestLine
    ) -> None:
        """Takes an answer that has been sent, `sent` being the bytes of its body that were."""
        body = response.body if sent else b""
        assert isinstance(body, bytes)
        ready = Ready(_around(response), body, lasting, counts, line)
        text = sum(len(part) for part in key if part) + len(line)
        self._answers.set(key, ready, _OVERHEAD + text + sum(map(len, ready.head)) + len(body))


def _around(response: web.Response) -> tuple[bytes, bytes, bytes]:
    """The head that aiohttp has sent, without what differs: our id comes first there, and then its date."""
    fields = [
        f"{name}: {_VARIABLE if name in ('X-Request-Id', 'Date') else value}\r\n"
        for name, value in response.headers.items()
    ]
    head = f"HTTP/1.1 {response.status} {response.reason}\r\n{''.join(fields)}\r\n"
    before, between, behind = head.encode().split(_VARIABLE.encode())
    return before, between, behind


@lru_cache(maxsize=2)
def _date(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode()

"""Retry-After: what it says, and the pause it means for everyone who asks that host."""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime

from mirror.memory import Bounded
from mirror.oci.errors import UpstreamThrottled, UpstreamUnavailable
from mirror.transport.deadline import Deadline

LONGEST = 300.0
"""Seconds; no upstream can silence us for longer."""

_LONGEST_TEXT = 128
"""Characters of Retry-After; whatever means something is shorter, and to look for it takes the square of the length."""
_LONGEST_GUESS = 60.0
_EPOCH = 1e9
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(h|ms|m|ns|us|\D{1,2}s|s)", re.ASCII)
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


def parse_retry_after(header: str | None, now: float) -> float | None:
    """Seconds to wait, 0 to LONGEST; None where the header is absent or means nothing to us.

    Read are seconds, HTTP-dates, Unix epochs in seconds or milliseconds (Docker Hub has sent them: numbers too large
    to be a wait) and durations such as `880µs` (GHCR). `now` is Unix time.
    """
    if header is None or len(header) > _LONGEST_TEXT:
        return None
    text = header.strip()
    seconds = _number(text, now)
    if seconds is None:
        seconds = _date(text, now)
    if seconds is None:
        seconds = _duration(text.partition(",")[0].strip())
    return None if seconds is None else min(max(seconds, 0.0), LONGEST)


def read_date(text: str | None) -> float | None:
    """The Unix time of an HTTP-date; None where it is absent or none."""
    try:
        moment = parsedate_to_datetime(text or "")
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return moment.timestamp()
    except (ValueError, OverflowError, IndexError, TypeError):
        return None


def _number(text: str, now: float) -> float | None:
    if re.fullmatch(r"-?\d{1,18}(\.\d{1,9})?", text, re.ASCII) is None:
        return None
    value = float(text)
    if value >= _EPOCH * 1000:
        value /= 1000
    return value - now if value >= _EPOCH else value


def _date(text: str, now: float) -> float | None:
    moment = read_date(text)
    return None if moment is None else moment - now


def _duration(text: str) -> float | None:
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    # µ has two code points and, undecoded, a third form: any other letter before the s is taken for it.
    return sum(float(number) * _UNITS.get(unit, 1e-6) for number, unit in parts)


@dataclass(slots=True)
class _Pause:
    until: float = 0.0
    strikes: int = 0
    throttled: bool = True
    next_turn: float = 0.0
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self) -> None:
        """Wakes all who wait for what others hear."""
        self.news.set()
        self.news = asyncio.Event()


class Pauses:
    """Which hosts asked us to wait, and until when; at most `most` of them, the longest untouched go first.

    After a pause one caller asks first, and the others when that one was answered: else all who waited would ask
    together, and be refused together.
    """

    def __init__(self, bare: float, most: int = 1024) -> None:
        """`bare`: seconds of the first pause after a 429 without Retry-After; doubled while they go on."""
        self.adjust(bare)
        self._hosts: Bounded[str, _Pause] = Bounded(most)

    def adjust(self, bare: float) -> None:
        """From now on; pauses that hosts have asked for stay as they are."""
        self._bare = bare
        self._gap = bare / 2

    def remaining(self, host: str) -> float:
        """Seconds until `host` may be asked again."""
        pause = self._hosts.get(host)
        return max(0.0, pause.until - time.monotonic()) if pause else 0.0

    def asked_to_wait(self, host: str, retry_after: float | None, *, throttled: bool) -> float:
        """Notes a 429 (`throttled`), or a 503 with Retry-After; returns the seconds that everyone now waits."""
        pause = self._hosts.get(host) or _Pause()
        self._hosts.set(host, pause)
        seconds = retry_after
        if seconds is None:
            if self.remaining(host):  # one of many that were on their way when the first was refused
                return self.remaining(host)
            seconds = min(self._bare * 2**pause.strikes, _LONGEST_GUESS)
            pause.strikes += 1
        pause.until = max(pause.until, time.monotonic() + seconds)
        pause.throttled = throttled
        pause.tell()
        return seconds

    def answered(self, host: str) -> None:
        """Notes an answer that is no refusal: the next bare 429 starts from the shortest pause again."""
        if not self.remaining(host) and (pause := self._hosts.pop(host)) is not None:
            pause.tell()

    def check(self, host: str, deadline: Deadline) -> None:
        """Raises UpstreamThrottled (UpstreamUnavailable after a 503) where the pause outlasts the deadline."""
        pause, seconds = self._hosts.get(host), self.remaining(host)
        if pause is not None and seconds and seconds >= deadline.remaining():
            raise _refusal(host, pause, seconds)

    async def wait(self, host: str, deadline: Deadline) -> None:
        """Waits the pause out, and then for a turn or for somebody's answer; raises as `check`.

        Turns come once in half a `bare`, whatever became of those before.
        """
        while (pause := self._hosts.get(host)) is not None:
            self.check(host, deadline)
            now = time.monotonic()
            ready = max(pause.until, pause.next_turn)
            if now >= ready:
                pause.next_turn = now + self._gap
                return
            if ready - now >= deadline.remaining():
                raise _refusal(host, pause, ready - now)
            news = pause.news
            with suppress(TimeoutError):
                async with asyncio.timeout(ready - now):
                    await news.wait()


def _refusal(host: str, pause: _Pause, seconds: float) -> UpstreamUnavailable:
    if pause.throttled:
        return UpstreamThrottled(f"{host} asked us to slow down", retry_after=seconds)
    return UpstreamUnavailable(f"{host} asked us to come back later", reason="status", retry_after=seconds)

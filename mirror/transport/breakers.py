"""Circuit breakers: what does not answer is asked once in a while only, until it answers."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from mirror.oci.errors import UpstreamUnavailable
from mirror.transport.deadline import Deadline

THRESHOLD = 5
"""Failures in a row that open a breaker: more than one request makes by itself."""


@dataclass(slots=True)
class Effort:
    """One request with all its tries and redirects, as breakers know it."""

    begun: set[str] = field(default_factory=set)
    """What it has asked before that was known not to answer: there it may wait for a turn."""
    over: bool = False
    """Whether it came when that was known already, so that one try is all it gets."""


@dataclass(slots=True)
class _Breaker:
    label: str = ""
    is_open: bool = False
    failures: int = 0
    blamed: set[str] = field(default_factory=set)
    """What has been counted as failing here; at most THRESHOLD, once each."""
    next_turn: float = 0.0
    failed_probes: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self) -> None:
        """Wakes all who wait for a turn."""
        self.news.set()
        self.news = asyncio.Event()


class Breakers:
    """One breaker per key, at most `most`, the longest untouched go first.

    THRESHOLD failures in a row open one, any answer closes it. While it is open one request in `interval` seconds is
    let through, whether the one before has ended or not: an upstream that hangs would keep us from noticing that it is
    back. `opened` and `closed` are told the key and the label that it failed under, and `opened` why.
    """

    def __init__(
        self,
        interval: float,
        *,
        most: int = 1024,
        opened: Callable[[str, str, str], None] = lambda _key, _label, _reason: None,
        closed: Callable[[str, str], None] = lambda _key, _label: None,
    ) -> None:
        self.interval = interval
        """May be changed at any time."""
        self._most = most
        self._opened = opened
        self._closed = closed
        self._breakers: OrderedDict[str, _Breaker] = OrderedDict()

    def is_open(self, key: str) -> bool:
        """Whether `key` is known not to answer."""
        breaker = self._breakers.get(key)
        return breaker is not None and breaker.is_open

    def check(self, key: str, effort: Effort) -> None:
        """Raises for who comes when it is open and nobody's turn; takes no turn."""
        breaker = self._breakers.get(key)
        if breaker is None or not breaker.is_open or key in effort.begun:
            return
        if time.monotonic() < breaker.next_turn:
            effort.over = True
            raise self.refusal(key)

    async def enter(self, key: str, effort: Effort, deadline: Deadline) -> bool:
        """Lets the request ask `key`; returns whether that is a probe.

        Raises UpstreamUnavailable, reason breaker: at once for who comes when it is open and not its turn. Who asked
        before that waits for a turn, for an answer to somebody else, or for a probe that fails, which counts as a try
        of all who wait.
        """
        breaker = self._breakers.get(key)
        if breaker is None or not breaker.is_open:
            effort.begun.add(key)
            return False
        if key in effort.begun:
            return await self._wait(key, breaker, deadline)
        effort.over = True
        if not self._takes_turn(breaker):
            raise self.refusal(key)
        return True

    def refusal(self, key: str) -> UpstreamUnavailable:
        """What to raise for who is not let through."""
        breaker = self._breakers.get(key)
        seconds = max(0.0, breaker.next_turn - time.monotonic()) if breaker is not None else 0.0
        return UpstreamUnavailable(f"{key} has not answered for a while", reason="breaker", retry_after=seconds)

    def answered(self, key: str) -> None:
        """Notes an answer, whatever it was."""
        breaker = self._breakers.get(key)
        if breaker is None:
            return
        breaker.failures = 0
        breaker.blamed.clear()
        if breaker.is_open:
            self._close(key, breaker)

    def failed(self, key: str, reason: str, *, probe: bool, label: str = "", blame: str | None = None) -> None:
        """Notes that there was no answer. While it is closed, what is to `blame`, if anything, counts once."""
        breaker = self._breakers.get(key)
        if breaker is None:
            breaker = self._breakers[key] = _Breaker()
            self._forget()
        self._breakers.move_to_end(key)
        if breaker.is_open:
            if probe:  # of others that were on their way nobody waits to hear
                breaker.failed_probes += 1
                breaker.tell()
            return
        if blame in breaker.blamed:
            return
        if blame is not None:
            breaker.blamed.add(blame)
        breaker.failures += 1
        if breaker.failures >= THRESHOLD:
            breaker.is_open, breaker.label = True, label
            self._opened(key, label, reason)

    def _takes_turn(self, breaker: _Breaker) -> bool:
        now = time.monotonic()
        if now < breaker.next_turn:
            return False
        breaker.next_turn = now + self.interval
        return True

    async def _wait(self, key: str, breaker: _Breaker, deadline: Deadline) -> bool:
        failed_before = breaker.failed_probes
        while breaker.is_open:
            if breaker.failed_probes != failed_before:
                raise self.refusal(key)
            if self._takes_turn(breaker):
                return True
            left = breaker.next_turn - time.monotonic()
            if left >= deadline.remaining():
                raise self.refusal(key)
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await breaker.news.wait()
        return False

    def _close(self, key: str, breaker: _Breaker) -> None:
        breaker.is_open = False
        breaker.tell()
        self._closed(key, breaker.label)

    def _forget(self) -> None:
        while len(self._breakers) > self._most:
            key, breaker = self._breakers.popitem(last=False)
            if breaker.is_open:
                self._close(key, breaker)

"""What is wrong with the upstream of the long run: small faults all the time, and now and then a great trouble."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

from tests.upstream import (
    ANY,
    Bearer,
    FakeRegistry,
    Fault,
    Rule,
    delay,
    flip,
    garbage,
    gzipped,
    ignore_range,
    no_length,
    redirect,
    refuse,
    reset,
    stall,
    stall_at,
    status,
    too_much,
    trickle,
    truncate,
    unasked_206,
    wrong_206,
)
from tests.upstream.counters import Kind, Seen

SMALL_EVERY = 0.3  # seconds on average between two small faults
GREAT_EVERY = 30.0  # and between two great ones
_LASTS = 4.0  # seconds after which a small fault ends by itself
_FORGET = 10.0  # seconds after which the fake forgets the requests it has seen, which it would keep for tests

Make = Callable[[random.Random], Fault]


def _place(choice: random.Random) -> int:
    """An offset in a body: often near its start, and anywhere in the first megabytes."""
    return choice.choice((1, 1000, 70_000, choice.randrange(1 << 20), choice.randrange(8 << 20), -1, -5000))


_ANYWHERE: tuple[Make, ...] = (
    lambda _: refuse(),
    lambda _: reset(),
    lambda choice: reset(_place(choice)),
    lambda choice: truncate(_place(choice), "length"),
    lambda choice: truncate(_place(choice), "chunked"),
    lambda _: stall(),
    lambda choice: stall_at(_place(choice)),
    lambda choice: delay(choice.uniform(0.1, 3.0)),
    lambda choice: trickle(choice.choice((20e3, 40e3, 1e6))),  # under and well over the mirror's least rate
    lambda choice: status(429, retry_after=str(choice.randint(1, 3))),
    lambda choice: status(choice.choice((500, 502, 503, 504))),
    lambda _: no_length("chunked"),
    lambda _: garbage(),
)
_BLOBS: tuple[Make, ...] = (
    lambda choice: truncate(_place(choice), "close"),
    lambda _: ignore_range(),
    lambda _: unasked_206(),
    lambda _: too_much(),
    lambda _: gzipped(),
    lambda _: redirect(lifetime=0),
)
_SPOILT: tuple[Make, ...] = (
    lambda choice: flip(_place(choice)),
    lambda _: wrong_206("shifted"),
    lambda choice: truncate(_place(choice), "chunked-complete"),
)
_KINDS: tuple[Kind, ...] = ("manifest", "blob", "blob", "blob", "tags", "referrers", "token")


class Trouble:
    """Spoils a registry at random until it is cancelled; `spoilt` says which requests may get wrong bytes."""

    def __init__(self, upstream: FakeRegistry, choice: random.Random, spoilt: Callable[[Seen], bool]) -> None:
        self._upstream = upstream
        self._choice = choice
        self._spoilt = spoilt

    async def run(self) -> None:
        """Never returns."""
        self._upstream.fault(ANY, redirect(), kind="blob", when=lambda seen: seen.number % 3 == 0)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._now_and_then())
            group.create_task(self._forget())
            while True:
                await asyncio.sleep(self._choice.expovariate(1 / SMALL_EVERY))
                group.create_task(self._for_a_while(self._small()))

    def _small(self) -> Rule:
        choice = self._choice
        options: dict[str, Any] = {"times": choice.randint(1, 3), "origin": choice.choice(("registry", "cdn"))}
        draw = choice.random()
        if draw < 0.15:
            fault = choice.choice(_SPOILT)(choice)
            return self._upstream.fault(ANY, fault, kind="blob", when=self._spoilt, **options)
        if draw < 0.35:
            return self._upstream.fault(ANY, choice.choice(_BLOBS)(choice), kind="blob", **options)
        return self._upstream.fault(ANY, choice.choice(_ANYWHERE)(choice), kind=choice.choice(_KINDS), **options)

    async def _for_a_while(self, rule: Rule, seconds: float = _LASTS) -> None:
        await asyncio.sleep(seconds)
        rule.remove()
        rule.release()
        self._upstream.rules.remove(rule)

    async def _now_and_then(self) -> None:
        great: tuple[Callable[[], Awaitable[None]], ...] = (
            self._outage,
            self._resets,
            lambda: self._for_a_while(self._upstream.fault(ANY, status(429, retry_after="2"))),
            lambda: self._for_a_while(self._upstream.fault(ANY, status(503))),
            lambda: self._for_a_while(self._upstream.fault(ANY, stall()), 6.0),
            self._slow,
            self._expired,
        )
        while True:
            await asyncio.sleep(self._choice.expovariate(1 / GREAT_EVERY))
            await self._choice.choice(great)()

    async def _outage(self) -> None:
        await self._upstream.stop()
        await asyncio.sleep(self._choice.uniform(1, 10))
        await self._upstream.start()

    async def _resets(self) -> None:
        self._upstream.refuse_connections()
        self._upstream.drop_connections()
        await asyncio.sleep(self._choice.uniform(1, 5))
        self._upstream.refuse_connections(0)

    async def _slow(self) -> None:
        self._upstream.rate = 2e6
        await asyncio.sleep(self._choice.uniform(3, 8))
        self._upstream.rate = None

    async def _expired(self) -> None:
        assert isinstance(self._upstream.auth, Bearer)
        self._upstream.auth.expire_tokens()

    async def _forget(self) -> None:
        while True:
            await asyncio.sleep(_FORGET)
            self._upstream.reset()

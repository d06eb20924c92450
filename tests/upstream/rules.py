"""Which fault meets which request: a rule is a fault with a target, conditions, and a number of requests to hit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.upstream.answers import Answer, Exchange
from tests.upstream.counters import Counters, Kind, Origin, Seen, Thing, matcher

ANY = None
"""The target of a fault that meets every request."""


def ranged(seen: Seen) -> bool:
    """A condition for `when`: the request has a Range header."""
    return "Range" in seen.headers


def _anything(_: Exchange) -> bool:
    return True


@dataclass(frozen=True)
class Fault:
    """One switch, as the functions of `faults` make it. Several meet in one answer in the order they were set."""

    name: str
    edit: Callable[[Exchange, Answer, Rule], None] = lambda _exchange, _answer, _rule: None
    """Changes the honest answer."""
    believe: Callable[[Exchange], None] = lambda _: None
    """Changes what the registry believes was asked, before it answers."""
    after: Callable[[Exchange], object] = lambda _: None
    """Called when the answer has left (or was cut)."""
    methods: frozenset[str] | None = None
    """The methods it means anything for, unless the test names one (None: all)."""
    suits: Callable[[Exchange], bool] = _anything
    """Whether the request is one that it can spoil; others do not use it up."""
    holds: bool = False
    """Whether `reached` waits for the place where it holds the answer."""


@dataclass(eq=False)
class Rule:
    """A fault that is switched on. Tests get it from `FakeRegistry.fault`."""

    fault: Fault
    target: Callable[[Seen], bool]
    times: int | None = None
    skip: int = 0
    method: str | None = None
    kind: Kind | None = None
    origin: Origin = "registry"
    when: Callable[[Seen], bool] | None = None
    hits: int = 0
    """How many requests it has met."""
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a request is held by it (stalls and delays), or has met it (all others)."""
    removed: bool = False
    _released: asyncio.Event = field(default_factory=asyncio.Event)
    _passed: int = 0

    def release(self) -> None:
        """Lets every request that it holds go on, and holds no other one."""
        self._released.set()

    def remove(self) -> None:
        """Switches it off for requests to come; what it holds stays held until `release`."""
        self.removed = True

    async def hold(self, seconds: float | None = None) -> None:
        """Says that a request is here, and keeps it until `release`, or for so many seconds."""
        self.reached.set()
        try:
            async with asyncio.timeout(seconds):
                await self._released.wait()
        except TimeoutError:
            pass  # the delay is over

    def take(self, exchange: Exchange) -> bool:
        """Whether it meets this request; counts it if so."""
        if self.removed or (self.times is not None and self.hits >= self.times) or not self._meant(exchange):
            return False
        if self._passed < self.skip:
            self._passed += 1
            return False
        self.hits += 1
        if not self.fault.holds:
            self.reached.set()
        return True

    def _meant(self, exchange: Exchange) -> bool:
        seen = exchange.seen
        methods = frozenset({self.method}) if self.method else self.fault.methods
        return (
            seen.origin == self.origin
            and (methods is None or seen.method in methods)
            and (self.kind is None or seen.kind == self.kind)
            and self.target(seen)
            and (self.when is None or self.when(seen))
            and self.fault.suits(exchange)
        )


class Switchboard(Counters):
    """The faults that are switched on, on top of the counters that they are matched with."""

    def __init__(self) -> None:
        super().__init__()
        self.rules: list[Rule] = []

    def fault(
        self,
        target: Thing | None,
        fault: Fault,
        *,
        times: int | None = None,
        skip: int = 0,
        method: str | None = None,
        kind: Kind | None = None,
        origin: Origin = "registry",
        when: Callable[[Seen], bool] | None = None,
    ) -> Rule:
        """Switches a fault on for the next `times` requests (None: until removed) for `target` (ANY: all).

        `skip` lets that many matching requests pass first. `method` and `kind` narrow it; faults of the body mean GET
        unless told otherwise. `origin="cdn"` means the target of redirects. `when` is asked last. Faults of several
        rules that match are combined. A request that authentication refuses meets no fault and uses none up.
        """
        rule = Rule(fault, matcher(target), times, skip, method, kind, origin, when)
        self.rules.append(rule)
        return rule

    def clear_faults(self) -> None:
        """Switches all faults off and lets go of what they hold."""
        for rule in self.rules:
            rule.remove()
            rule.release()
        self.rules = []

    def matching(self, exchange: Exchange) -> list[Rule]:
        """The rules that meet this request, which is counted against them."""
        met = [rule for rule in self.rules if rule.take(exchange)]
        exchange.seen.faults += [rule.fault.name for rule in met]
        return met

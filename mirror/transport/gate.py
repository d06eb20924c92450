"""Who may ask what now: the pauses that hosts ask for, and breakers for what does not answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import structlog
from yarl import URL

from mirror.config import Timeouts
from mirror.memory import Bounded
from mirror.metrics import Metrics
from mirror.oci.errors import UpstreamThrottled, UpstreamUnavailable
from mirror.transport.breakers import Breakers, Effort
from mirror.transport.deadline import Deadline
from mirror.transport.pauses import Pauses, parse_retry_after, read_date
from mirror.transport.request import host_of
from mirror.transport.response import Response

_FOR_NOW = (408, 429)
_FOR_GOOD = (501, 505)
_SILENCE = frozenset({"unreachable", "dns", "tls", "reset", "protocol", "timeout"})
"""Reasons that a host, not we ourselves, gave for no headers having come."""
_LONGEST_PATH = 1024
"""Characters by which things are told apart; registries' own are shorter, redirects lead to some of 64 KiB."""
_TOLD_HOSTS = 1024
_TOLD_SECONDS = 60.0
"""A host that comes and goes is logged once in so long."""
_log = structlog.get_logger()


class Gate:
    """What is known of hosts, and of single things (a path) at them: trouble with one thing is not the host's.

    Every wait of ours that no upstream asked for is measured in `try`, so that tests can shrink them together.
    """

    def __init__(self, timeouts: Timeouts, metrics: Metrics, clock: Callable[[], float]) -> None:
        """`clock` is Unix time, against which Retry-After dates are read."""
        self.clock = clock
        self.patience = min(timeouts.try_, timeouts.first_byte) / 2
        """Seconds: a wait cut shorter than that by a deadline of ours says nothing of the host."""
        self.pauses = Pauses(bare=0.4 * timeouts.try_)
        self.pauses_for_things = Pauses(bare=0.4 * timeouts.try_)
        """A mirror's trouble with one thing says nothing of what else the mirror has."""
        self.interval = 0.2 * timeouts.try_
        """Seconds between two probes, and what whoever sends one waits for its answer."""
        self.breakers = Breakers(self.interval, opened=self._opened, closed=self._closed)
        self.breakers_for_things = Breakers(self.interval)
        self._metrics = metrics
        self._told: Bounded[str, Deadline] = Bounded(_TOLD_HOSTS)
        self._gone: set[str] = set()

    async def enter(self, url: URL, entry: str, effort: Effort, deadline: Deadline) -> Passage:
        """Waits until `url` may be asked; to be followed by the asking at once, whose outcome goes to the passage.

        `entry` labels metrics. Raises UpstreamUnavailable and UpstreamThrottled, as Pauses and Breakers do.
        """
        host, thing = host_of(url), _thing(url)
        await self.pauses.wait(host, deadline)
        await self.pauses_for_things.wait(thing, deadline)
        probes_thing = await self.breakers_for_things.enter(thing, effort, deadline)
        probes_host = await self.breakers.enter(host, effort, deadline)
        return Passage(self, host, thing, entry, probes_host, probes_thing)

    def check(self, url: URL, effort: Effort, deadline: Deadline) -> None:
        """Raises at once what `enter` would raise, as far as that is known."""
        host, thing = host_of(url), _thing(url)
        self.pauses.check(host, deadline)
        self.pauses_for_things.check(thing, deadline)
        self.breakers_for_things.check(thing, effort)
        self.breakers.check(host, effort)

    def check_pause(self, url: URL, deadline: Deadline) -> None:
        """Raises UpstreamThrottled, or UpstreamUnavailable after a 503, where the host's pause outlasts `deadline`."""
        self.pauses.check(host_of(url), deadline)

    def is_silent(self, url: URL) -> bool:
        """Whether the host is known not to answer."""
        return self.breakers.is_open(host_of(url))

    def _opened(self, host: str, entry: str, reason: str) -> None:
        self._metrics.upstream_breaker_open.labels(entry).inc()
        told = self._told.get(host)
        if told is None or told.expired:
            self._told.set(host, Deadline.after(_TOLD_SECONDS))
            self._gone.add(host)
            _log.warning("a host does not answer", host=host, entry=entry, reason=reason)

    def _closed(self, host: str, entry: str) -> None:
        self._metrics.upstream_breaker_open.labels(entry).dec()
        if host in self._gone:
            self._gone.remove(host)
            _log.info("a host answers again", host=host, entry=entry)


@dataclass(frozen=True, slots=True)
class Passage:
    """One request that was let through."""

    gate: Gate
    host: str
    thing: str
    entry: str
    probes_host: bool
    probes_thing: bool

    @property
    def is_probe(self) -> bool:
        """Whether it is here to find out whether there are answers again."""
        return self.probes_host or self.probes_thing

    def refusal(self) -> UpstreamUnavailable:
        """What to raise where a probe has not been answered yet."""
        if self.probes_host:
            return self.gate.breakers.refusal(self.host)
        return self.gate.breakers_for_things.refusal(self.thing)

    def unanswered(self, reason: str, seconds: float, deadline: Deadline) -> None:
        """Notes that no headers came within `seconds`."""
        cut_short = deadline.expired and seconds < self.gate.patience
        if reason in _SILENCE and not cut_short:
            self.gate.breakers.failed(self.host, reason, probe=self.probes_host, label=self.entry)

    def answered(self, response: Response) -> None:
        """Notes headers. Raises UpstreamUnavailable and UpstreamThrottled for what is no answer yet."""
        gate, status = self.gate, response.status
        if status not in _FOR_NOW and (status < 500 or status in _FOR_GOOD):
            self._is_well()
            gate.breakers_for_things.answered(self.thing)
            gate.pauses.answered(self.host)
            gate.pauses_for_things.answered(self.thing)
            return
        # By their clock, where they tell it: ours may be a day off.
        now = read_date(response.headers.get("Date")) or gate.clock()
        retry_after = parse_retry_after(response.headers.get("Retry-After"), now)
        pauses, whom = (gate.pauses_for_things, self.thing) if response.passed_on else (gate.pauses, self.host)
        if status == 429:
            self._is_well()
            seconds = pauses.asked_to_wait(whom, retry_after, throttled=True)
            raise UpstreamThrottled(f"{response.asked}: asked us to slow down (429)", retry_after=seconds)
        self._is_failing(response)
        if status == 503 and retry_after is not None:
            pauses.asked_to_wait(whom, retry_after, throttled=False)
        raise UpstreamUnavailable(f"{response.asked}: answered {status}", reason="status", retry_after=retry_after)

    def _is_well(self) -> None:
        self.gate.breakers.answered(self.host)

    def _is_failing(self, response: Response) -> None:
        """An error is the thing's, and the host's where other things are in error, too."""
        self.gate.breakers_for_things.failed(self.thing, "status", probe=self.probes_thing)
        if response.passed_on:
            self._is_well()
            return
        self.gate.breakers.failed(self.host, "status", probe=self.probes_host, label=self.entry, blame=self.thing)


def _thing(url: URL) -> str:
    return f"{host_of(url)}{url.raw_path[:_LONGEST_PATH]}"

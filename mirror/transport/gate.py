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
_LISTS = frozenset({"tags", "referrers"})
"""Kinds of questions that some registries leave unanswered while they give content."""
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
        self.patience = 0.0
        """Seconds: a wait cut shorter than that by a deadline of ours says nothing of the host."""
        self.pauses, self.pauses_for_things = Pauses(0.0), Pauses(0.0)
        """A mirror's trouble with one thing says nothing of what else the mirror has."""
        self.interval = 0.0
        """Seconds between two probes, and what whoever sends one waits for its answer."""
        self.breakers = Breakers(0.0, opened=self._opened, closed=self._closed)
        self.breakers_for_things = Breakers(0.0)
        self.adjust(timeouts)
        self._metrics = metrics
        self._told: Bounded[str, Deadline] = Bounded(_TOLD_HOSTS)
        self._gone: set[str] = set()

    def adjust(self, timeouts: Timeouts) -> None:
        """Takes other time limits; what is known of hosts stays."""
        self.patience = min(timeouts.try_, timeouts.first_byte) / 2
        self.interval = 0.2 * timeouts.try_
        for pauses in (self.pauses, self.pauses_for_things):
            pauses.adjust(0.4 * timeouts.try_)
        for breakers in (self.breakers, self.breakers_for_things):
            breakers.interval = self.interval

    async def enter(self, url: URL, kind: str, entry: str, effort: Effort, deadline: Deadline) -> Passage:
        """Waits until `url` may be asked; to be followed by the asking at once, whose outcome goes to the passage.

        `kind` is that of the request, `entry` labels metrics. Raises UpstreamUnavailable and UpstreamThrottled, as
        Pauses and Breakers do.
        """
        host, thing, lists = host_of(url), _thing(url), _lists(url, kind)
        await self.pauses.wait(host, deadline)
        await self.pauses_for_things.wait(thing, deadline)
        probed = None
        for key in (thing, lists):
            if key is not None and await self.breakers_for_things.enter(key, effort, deadline):
                probed = key
        probes_host = await self.breakers.enter(host, effort, deadline)
        return Passage(self, host, thing, lists, entry, probes_host, probed)

    def check(self, url: URL, kind: str, effort: Effort, deadline: Deadline) -> None:
        """Raises at once what `enter` would raise, as far as that is known."""
        host, thing, lists = host_of(url), _thing(url), _lists(url, kind)
        self.pauses.check(host, deadline)
        self.pauses_for_things.check(thing, deadline)
        self.breakers_for_things.check(thing, effort)
        if lists is not None:
            self.breakers_for_things.check(lists, effort)
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
    """One request that was let through.

    `lists`: all lists of its kind at the host, where it asks for one: a registry may leave those alone unanswered.
    `probed`: the thing, or the lists, that it is to find out about.
    """

    gate: Gate
    host: str
    thing: str
    lists: str | None
    entry: str
    probes_host: bool
    probed: str | None

    @property
    def is_probe(self) -> bool:
        """Whether it is here to find out whether there are answers again."""
        return self.probes_host or self.probed is not None

    def refusal(self) -> UpstreamUnavailable:
        """What to raise where a probe has not been answered yet."""
        if self.probed is not None and not self.probes_host:
            return self.gate.breakers_for_things.refusal(self.probed)
        return self.gate.breakers.refusal(self.host)

    def unanswered(self, reason: str, seconds: float, deadline: Deadline) -> None:
        """Notes that no headers came within `seconds`."""
        cut_short = deadline.expired and seconds < self.gate.patience
        if reason in _SILENCE and not cut_short:
            self._lists_are_failing(reason, blame=None)
            self.gate.breakers.failed(self.host, reason, probe=self.probes_host, label=self.entry, blame=self.lists)

    def answered(self, response: Response) -> None:
        """Notes headers. Raises UpstreamUnavailable and UpstreamThrottled for what is no answer yet."""
        gate, status = self.gate, response.status
        if status not in _FOR_NOW and (status < 500 or status in _FOR_GOOD):
            self._is_well()
            gate.breakers_for_things.answered(self.thing)
            if self.lists is not None:
                gate.breakers_for_things.answered(self.lists)
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
        self.gate.breakers_for_things.failed(self.thing, "status", probe=self.probed == self.thing)
        if response.passed_on:
            self._is_well()
            return
        self._lists_are_failing("status", blame=self.thing)
        self.gate.breakers.failed(
            self.host, "status", probe=self.probes_host, label=self.entry, blame=self.lists or self.thing
        )

    def _lists_are_failing(self, reason: str, blame: str | None) -> None:
        if self.lists is not None:
            self.gate.breakers_for_things.failed(self.lists, reason, probe=self.probed == self.lists, blame=blame)


def _thing(url: URL) -> str:
    return f"{host_of(url)}{url.raw_path[:_LONGEST_PATH]}"


def _lists(url: URL, kind: str) -> str | None:
    return f"{host_of(url)} {kind}" if kind in _LISTS else None

"""One set of metrics out of those of several processes: what they have counted, those that are gone included, once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from enum import Enum
from typing import Any

from prometheus_client import CollectorRegistry, Metric

Report = dict[str, list[tuple[str, dict[str, str], float]]]
"""What a process has counted: its samples (name, labels, value) by family. Plain, so that it goes through a channel."""

_Key = tuple[str, tuple[tuple[str, str], ...]]
"""Of a sample: its name and labels."""


class Rule(Enum):
    """What several processes' values of one gauge mean together."""

    SUM = "sum"
    """Each has some of them."""
    MAX = "max"
    """True where it is true for one."""
    OWN = "own"
    """The supervisor's: workers do not look after it."""
    FIRST = "first"
    """The earliest moment; 0 is none."""
    ASKED = "asked"
    """What whoever asked the upstream last has heard, as with one process: others may have heard it long ago."""


GAUGES = {
    "mirror_connections": Rule.SUM,
    "mirror_upstream_up": Rule.ASKED,
    "mirror_upstream_breaker_open": Rule.SUM,
    "mirror_upstream_quota_remaining": Rule.ASKED,
    "mirror_upstream_quota_limit": Rule.ASKED,
    "mirror_credentials_rejected": Rule.ASKED,
    "mirror_downloads_in_flight": Rule.SUM,
    "mirror_downloads_queued": Rule.SUM,
    "mirror_cache_bytes": Rule.OWN,
    "mirror_cache_max_bytes": Rule.OWN,
    "mirror_cache_objects": Rule.OWN,
    "mirror_storage_degraded": Rule.MAX,
    "mirror_tls_certificate_expiry_timestamp_seconds": Rule.FIRST,
    "mirror_start_time_seconds": Rule.OWN,
    "mirror_build_info": Rule.OWN,
}
"""Of every gauge. Counters and histograms are summed, those of dead workers included."""
_ASKING = "mirror_upstream_requests"
"""The counter that tells who has asked an upstream."""


def report(registry: CollectorRegistry) -> Report:
    """What is in `registry` now."""
    return {family.name: [sample[:3] for sample in family.samples] for family in registry.collect()}


class Account:
    """What one process has counted, as last heard. Nothing that it said is heard after `close`."""

    def __init__(self, totals: Totals) -> None:
        self.asked: dict[str, int] = {}
        """When it asked each upstream last: the higher the later."""
        self._totals = totals
        self._said: Report = {}
        self._samples: dict[str, dict[_Key, float]] = {}
        self._requests: dict[str, float] = {}

    def hear(self, said: Any) -> None:
        """A `Report`, each of which has all that the process has counted so far."""
        if self in self._totals.accounts:
            self._said, self._samples = said, {}
            self._note_asked()

    def samples(self, family: str) -> dict[_Key, float]:
        """Those of a family. Sorted out when somebody wants them: reports come every second, scrapes do not."""
        if family not in self._samples:
            said = self._said.get(family, ())
            self._samples[family] = {(name, tuple(labels.items())): value for name, labels, value in said}
        return self._samples[family]

    def families(self) -> Iterator[tuple[str, dict[_Key, float]]]:
        """All samples, by family."""
        return ((family, self.samples(family)) for family in self._said)

    def close(self) -> None:
        """The process is gone: what it has counted stays. Idempotent."""
        self._totals.keep(self)

    def _note_asked(self) -> None:
        requests: dict[str, float] = {}
        for name, labels, value in self._said.get(_ASKING, ()):
            if name.endswith("_total"):
                upstream = labels["upstream"]
                requests[upstream] = requests.get(upstream, 0) + value
        now = next(self._totals.moments)
        self.asked |= {upstream: now for upstream, count in requests.items() if count != self._requests.get(upstream)}
        self._requests = requests


class Totals:
    """What all have counted together: `own` is the registry of the process that sums, and says what there is."""

    def __init__(self, own: CollectorRegistry) -> None:
        self.accounts: list[Account] = []
        """Of the processes that are alive."""
        self.moments = itertools.count(1)
        self._own = own
        self._gone: dict[str, dict[_Key, float]] = {}
        """What those counted that are gone, by family; no gauges."""

    def open(self) -> Account:
        """For one more process."""
        account = Account(self)
        self.accounts.append(account)
        return account

    def keep(self, account: Account) -> None:
        """Adds what a process has counted to that of those who are gone."""
        if account not in self.accounts:
            return
        self.accounts.remove(account)
        for family, samples in account.families():
            if family not in GAUGES:
                gone = self._gone.setdefault(family, {})
                for key, value in samples.items():
                    _count(gone, key, value)

    def collect(self) -> Iterator[Metric]:
        """As a registry does."""
        for family in self._own.collect():
            own: dict[_Key, float] = {(one.name, tuple(one.labels.items())): one.value for one in family.samples}
            rule = GAUGES.get(family.name)
            values = self._sum(family.name, own) if rule is None else self._gauge(family.name, rule, own)
            family.samples = []
            for (name, labels), value in values.items():
                family.add_sample(name, dict(labels), value)
            yield family

    def _sum(self, family: str, own: dict[_Key, float]) -> dict[_Key, float]:
        for samples in (self._gone.get(family, {}), *self._said(family)):
            for key, value in samples.items():
                _count(own, key, value)
        return own

    def _gauge(self, family: str, rule: Rule, own: dict[_Key, float]) -> dict[_Key, float]:
        if rule is Rule.OWN:
            return own
        if rule is Rule.ASKED:
            return self._last_heard(family)
        for samples in self._said(family):
            for key, value in samples.items():
                own[key] = _joined(rule, own.get(key, 0.0), value)
        return own

    def _last_heard(self, family: str) -> dict[_Key, float]:
        heard: dict[_Key, tuple[int, float]] = {}
        for account in self.accounts:
            for key, value in account.samples(family).items():
                moment = account.asked.get(dict(key[1])["upstream"], 0)
                if key not in heard or moment > heard[key][0]:
                    heard[key] = (moment, value)
        return {key: value for key, (_, value) in heard.items()}

    def _said(self, family: str) -> list[dict[_Key, float]]:
        return [account.samples(family) for account in self.accounts]


def _count(into: dict[_Key, float], key: _Key, value: float) -> None:
    """One more process's value of a counter's or histogram's sample; `_created` is when the first one began."""
    before = into.get(key)
    if before is None:
        into[key] = value
    else:
        into[key] = min(before, value) if key[0].endswith("_created") else before + value


def _joined(rule: Rule, one: float, other: float) -> float:
    if rule is Rule.SUM:
        return one + other
    if rule is Rule.FIRST:
        return min(filter(None, (one, other)), default=0.0)
    return max(one, other)

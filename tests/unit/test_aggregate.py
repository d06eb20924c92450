"""The sums of several processes' metrics: what was counted is there once, whoever dies."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import exposition
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from mirror.aggregate import GAUGES, Account, Totals, report
from mirror.metrics import Metrics


class Process:
    """One that counts, and says so."""

    def __init__(self, totals: Totals) -> None:
        self.metrics = Metrics()
        self.account: Account = totals.open()

    def speak(self) -> None:
        """Its report goes through a channel."""
        self.account.hear(msgspec.msgpack.decode(msgspec.msgpack.encode(report(self.metrics.registry))))


def value(totals: Totals, name: str, **labels: str) -> float | None:
    """Of one sample."""
    for family in totals.collect():
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return sample.value
    return None


@pytest.fixture
def own() -> Metrics:
    return Metrics()


@pytest.fixture
def totals(own: Metrics) -> Totals:
    return Totals(own.registry)


def test_every_gauge_has_a_rule() -> None:
    """And nothing else has one: what is no gauge is summed."""
    gauges = {family.name for family in Metrics().registry.collect() if family.type == "gauge"}
    assert gauges == set(GAUGES)


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.sampled_from(["count", "speak", "die"]), st.integers(0, 2), st.integers(1, 9)), max_size=40)
)
def test_counters_are_what_was_last_heard_of_each_process(history: list[tuple[str, int, int]]) -> None:
    """Over any history of processes that count, speak and die: the sum never falls, and counts nothing twice."""
    own = Metrics()
    totals = Totals(own.registry)
    processes = [Process(totals) for _ in range(3)]
    counted, heard, gone, before = [0, 0, 0], [0, 0, 0], 0, 0.0
    for what, which, amount in history:
        if what == "count":
            processes[which].metrics.evicted_bytes.inc(amount)
            processes[which].metrics.first_byte.labels("blob", "hit").observe(amount)
            counted[which] += amount
        elif what == "speak":
            processes[which].speak()
            heard[which] = counted[which]
        else:
            dead = processes[which]
            dead.account.close()
            dead.account.close()
            dead.speak()  # too late: it was counted as gone
            gone += heard[which]
            counted[which] = heard[which] = 0
            processes[which] = Process(totals)
        now = value(totals, "mirror_evicted_bytes_total")
        assert now == gone + sum(heard)
        assert now >= before
        before = now
        assert (value(totals, "mirror_first_byte_seconds_sum", kind="blob", result="hit") or 0.0) == now


def test_histograms_stay_histograms(totals: Totals) -> None:
    """Buckets are summed in their order, in both formats; so are help and type."""
    for seconds in (0.002, 0.2):
        process = Process(totals)
        process.metrics.request_duration.labels("blob").observe(seconds)
        process.metrics.requests.labels("docker.io", "blob", "hit", "200").inc()
        process.speak()
    plain = {family.name: family for family in parse(exposition.generate_latest(totals).decode())}
    families = {family.name: family for family in parse_openmetrics(generate_openmetrics(totals).decode())}  # type: ignore[no-untyped-call]  # it ships no types

    assert plain["mirror_request_duration_seconds"].type == "histogram"
    durations = families["mirror_request_duration_seconds"]
    counts = [one.value for one in durations.samples if one.name.endswith("_bucket")]
    assert (durations.type, counts[0], counts[1], counts[-1]) == ("histogram", 0, 1, 2)
    assert counts == sorted(counts)
    requests = families["mirror_requests"]
    assert (requests.type, requests.documentation) == ("counter", "Client requests answered.")
    assert [one.value for one in requests.samples if one.name.endswith("_total")] == [2]


def test_gauges_mean_what_they_say(own: Metrics, totals: Totals) -> None:
    """What is shared out is summed, trouble of one is trouble, what the supervisor keeps is its own."""
    own.cache_bytes.set(500)
    own.start_time.set(10)
    own.storage_degraded.labels("full").set(0)
    first, second = Process(totals), Process(totals)
    first.metrics.connections.set(3)
    second.metrics.connections.set(4)
    second.metrics.start_time.set(20)
    first.metrics.storage_degraded.labels("full").set(1)
    first.metrics.certificate_expiry.set(2000)
    first.metrics.upstream_breaker_open.labels("docker.io").set(1)
    for process in (first, second):
        process.speak()

    assert value(totals, "mirror_connections") == 7
    assert value(totals, "mirror_cache_bytes") == 500
    assert value(totals, "mirror_start_time_seconds") == 10
    assert value(totals, "mirror_storage_degraded", reason="full") == 1
    assert value(totals, "mirror_tls_certificate_expiry_timestamp_seconds") == 2000
    assert value(totals, "mirror_upstream_breaker_open", upstream="docker.io") == 1
    second.metrics.certificate_expiry.set(1000)
    second.speak()
    assert value(totals, "mirror_tls_certificate_expiry_timestamp_seconds") == 1000
    first.account.close()
    assert value(totals, "mirror_connections") == 4
    assert value(totals, "mirror_storage_degraded", reason="full") == 0


def test_who_asked_an_upstream_last_knows_best(totals: Totals) -> None:
    """A worker that once heard nothing does not say for ever that the upstream is away."""
    owner, other = Process(totals), Process(totals)
    other.metrics.upstream_requests.labels("docker.io", "blob", "timeout").inc()
    other.metrics.upstream_up.labels("docker.io").set(0)
    other.speak()
    assert value(totals, "mirror_upstream_up", upstream="docker.io") == 0

    owner.metrics.upstream_requests.labels("docker.io", "blob", "200").inc()
    owner.metrics.upstream_up.labels("docker.io").set(1)
    owner.metrics.upstream_quota_remaining.labels("docker.io").set(99)
    owner.speak()
    other.speak()
    assert value(totals, "mirror_upstream_up", upstream="docker.io") == 1
    assert value(totals, "mirror_upstream_quota_remaining", upstream="docker.io") == 99

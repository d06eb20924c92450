"""Every metric we export, in one object that is handed to whoever counts. No label ever holds a repository."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mirror import __version__

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 12.0, 30.0, 60.0, 300.0)


class Moment(Collector):
    """A gauge that is there only while it has a value: at 0 it would be a long time ago."""

    def __init__(self, name: str, text: str) -> None:
        self._name = name
        self._text = text
        self._value: float | None = None

    def set(self, value: float | None) -> None:
        """In seconds since the epoch; None for none."""
        self._value = value

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        gauge = GaugeMetricFamily(self._name, self._text)
        if self._value is not None:
            gauge.add_metric([], self._value)
        yield gauge


class Metrics:
    """The metrics of one application, in a registry of its own, so that a test reads only what its own mirror counted.

    Labels: `upstream` is the configured entry, never the host that was asked for, or `none` where none was chosen;
    `kind` is manifest, blob, tags or referrers, and auth for what we ask token endpoints; `result` is a value of
    X-Cache, or error or refused.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._serving()
        self._asking()
        self._keeping()
        self._process()

    def _serving(self) -> None:
        self.requests = self._counter("requests", "Client requests answered.", ("upstream", "kind", "result", "status"))
        self.request_duration = self._histogram(
            "request_duration_seconds", "Seconds from a client's request to the last byte of its answer.", ("kind",)
        )
        self.first_byte = self._histogram(
            "first_byte_seconds", "Seconds from a client's request to the first byte of its answer.", ("kind", "result")
        )
        self.served_bytes = self._counter("served_bytes", "Body bytes sent to clients.", ("upstream", "kind", "result"))
        self.connections = self._gauge("connections", "Connections of clients to the registry port now.")
        self.connections_refused = self._counter(
            "connections_refused",
            "Connections turned away because there were too many: in all (total), or of one client.",
            ("reason",),
        )
        self.stale_served = self._counter(
            "stale_served", "Answers given from an expired copy because the upstream did not answer.",
            ("upstream", "reason"),
        )  # fmt: skip

    def _asking(self) -> None:
        self.upstream_requests = self._counter(
            "upstream_requests", "Requests sent to an upstream, by the status it answered or the reason it did not.",
            ("upstream", "kind", "status"),
        )  # fmt: skip
        self.upstream_bytes = self._counter(
            "upstream_bytes", "Body bytes received from upstreams.", ("upstream", "kind")
        )
        self.upstream_first_byte = self._histogram(
            "upstream_first_byte_seconds", "Seconds from a request to an upstream to its headers.", ("upstream",)
        )
        self.upstream_retries = self._counter(
            "upstream_retries", "Requests to an upstream sent again, by why.", ("upstream", "reason")
        )
        self.upstream_up = self._gauge(
            "upstream_up", "1 if the last request to the upstream was answered, 0 if not.", ("upstream",)
        )
        self.upstream_breaker_open = self._gauge(
            "upstream_breaker_open",
            "Hosts of the upstream, those it leads to included, that do not answer and are asked once a second only.",
            ("upstream",),
        )
        self.upstream_quota_remaining = self._gauge(
            "upstream_quota_remaining", "Requests left in the upstream's rate limit, as it last said.", ("upstream",)
        )
        self.upstream_quota_limit = self._gauge(
            "upstream_quota_limit", "Requests that the upstream's rate limit allows, as it last said.", ("upstream",)
        )
        self.credentials_rejected = self._gauge(
            "credentials_rejected", "1 while the upstream refuses the configured credential.", ("upstream",)
        )
        self.downloads_in_flight = self._gauge("downloads_in_flight", "Blobs on their way from an upstream now.")
        self.downloads_queued = self._gauge("downloads_queued", "Blobs that wait for their turn to be downloaded.")
        self.download_joins = self._counter(
            "download_joins", "Requests that joined a download already under way.", ("upstream",)
        )
        self.digest_mismatches = self._counter(
            "digest_mismatches", "Bodies from an upstream that did not have the digest asked for.", ("upstream",)
        )
        self.bypass_bytes = self._counter(
            "bypass_bytes", "Blob bytes fetched for one client and not stored, by why.", ("upstream", "reason")
        )

    def _keeping(self) -> None:
        self.stored_bytes = self._counter("stored_bytes", "Bytes of blobs newly held.", ("upstream",))
        self.cache_bytes = self._gauge("cache_bytes", "Bytes that count against the budget now, reservations included.")
        self.cache_max_bytes = self._gauge("cache_max_bytes", "The budget in bytes (storage.max_size).")
        self.cache_objects = self._gauge("cache_objects", "Objects held, as last counted.", ("kind",))
        self.evictions = self._counter("evictions", "Blobs removed, by why.", ("reason",))
        self.evicted_bytes = self._counter("evicted_bytes", "Bytes of blobs removed.")
        self.eviction_age = Histogram(
            "mirror_eviction_age_seconds",
            "Seconds since the last use of a blob when it was evicted.",
            buckets=(60, 600, 3600, 6 * 3600, 86400, 3 * 86400, 7 * 86400, 30 * 86400, 90 * 86400),
            registry=self.registry,
        )
        self.scrub_bytes = self._counter("scrub_bytes", "Bytes of held blobs hashed again in the background.")
        self.scrub_corrupt = self._counter(
            "scrub_corrupt", "Blobs that were dropped since their bytes had rotted, or could not be read any more."
        )
        self.storage_degraded = self._gauge(
            "storage_degraded", "1 while the disk cannot be used for this reason and blobs pass through.", ("reason",)
        )

    def _process(self) -> None:
        self.log_lines_dropped = self._counter("log_lines_dropped", "Log lines dropped because nobody read them.")
        self.peer_requests = self._counter(
            "peer_requests", "Requests to another worker, by its slot and what came of them.", ("peer", "result")
        )
        self.worker_restarts = self._counter("worker_restarts", "Workers that died and were started again.")
        self.certificate_expiry = Moment(
            "mirror_tls_certificate_expiry_timestamp_seconds",
            "When the certificate of the registry port ends, in seconds since the epoch.",
        )
        self.registry.register(self.certificate_expiry)
        self.start_time = self._gauge("start_time_seconds", "When this process started, in seconds since the epoch.")
        self.build_info = self._gauge("build_info", "Always 1; the version is the label.", ("version",))
        self.build_info.labels(version=__version__).set(1)

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(f"mirror_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(f"mirror_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, labels: tuple[str, ...]) -> Histogram:
        return Histogram(f"mirror_{name}", text, labels, buckets=_SECONDS, registry=self.registry)

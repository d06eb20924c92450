"""What is counted of every request: how many, how long, how soon, how many bytes."""

from __future__ import annotations

from functools import lru_cache

from mirror.metrics import Metrics

_REMEMBERED = 4096


class Tally:
    """Counts requests by what they were and what became of them."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.of = lru_cache(_REMEMBERED)(self._counts)
        """The counts of one upstream (the configured entry), kind, result and status."""

    def _counts(self, upstream: str, kind: str, result: str, status: int) -> Counts:
        return Counts(self._metrics, upstream, kind, result, status)


class Counts:
    """Of requests with the same labels: to look those up for each one would cost more than to count it."""

    __slots__ = ("_bytes", "_duration", "_first_byte", "_requests")

    def __init__(self, metrics: Metrics, upstream: str, kind: str, result: str, status: int) -> None:
        self._requests = metrics.requests.labels(upstream, kind, result, str(status))
        self._duration = metrics.request_duration.labels(kind)
        self._first_byte = metrics.first_byte.labels(kind, result)
        self._bytes = metrics.served_bytes.labels(upstream, kind, result)

    def add(self, seconds: float, first_byte: float | None, sent: int) -> None:
        """One more: seconds to its end and to its first byte, if there was one, and body bytes."""
        self._requests.inc()
        self._duration.observe(seconds)
        if first_byte is not None:
            self._first_byte.observe(first_byte)
        if sent:
            self._bytes.inc(sent)

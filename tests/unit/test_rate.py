"""A body is too slow when a window of waiting brought too little, however it was spread."""

from __future__ import annotations

from collections.abc import Sequence

from mirror.transport.rate import MinimumRate


def seconds_until_slow(rate: MinimumRate, waits: Sequence[tuple[float, int]]) -> float | None:
    """The seconds of waiting after which it was called too slow; None if it never was."""
    total = 0.0
    for waited, arrived in waits:
        total += waited
        if rate.too_slow(waited, arrived):
            return total
    return None


def test_a_steady_trickle_is_noticed_after_one_window() -> None:
    """Bytes come all the time, and too few."""
    assert seconds_until_slow(MinimumRate(1000, 32), [(1, 500)] * 100) == 32


def test_a_steady_rate_is_fine() -> None:
    """At the least rate exactly, for as long as it takes."""
    assert seconds_until_slow(MinimumRate(1000, 32), [(1, 1000)] * 1000) is None


def test_a_pause_within_the_window_is_forgiven() -> None:
    """What counts is the whole window."""
    assert seconds_until_slow(MinimumRate(1000, 32), [(10, 0), (1, 50_000)] * 20) is None


def test_a_burst_does_not_hide_the_trickle_that_follows() -> None:
    """A hundred megabytes in the first second buy no more than one window."""
    found = seconds_until_slow(MinimumRate(1000, 32), [(1, 100_000_000)] + [(1, 1)] * 200)

    assert found is not None
    assert found <= 40


def test_time_without_waiting_is_no_time() -> None:
    """Bytes that were there already say nothing of the upstream."""
    assert seconds_until_slow(MinimumRate(1000, 32), [(0, 1)] * 10_000) is None


def test_one_long_wait_is_a_window() -> None:
    """A single silence as long as the window."""
    assert MinimumRate(1000, 32).too_slow(32, 10)


def test_zero_allows_any_rate() -> None:
    """`min_rate: 0` switches it off."""
    assert seconds_until_slow(MinimumRate(0, 32), [(10, 0)] * 100) is None

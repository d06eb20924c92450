"""Retry-After in all its forms, and the pauses that follow."""

from __future__ import annotations

import asyncio
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.oci.errors import UpstreamThrottled, UpstreamUnavailable
from mirror.transport.deadline import Deadline
from mirror.transport.pauses import LONGEST, Pauses, parse_retry_after

NOW = 1_790_000_000.0


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        pytest.param("7", 7.0, id="seconds"),
        pytest.param(" 7 ", 7.0, id="spaces"),
        pytest.param("0", 0.0, id="zero"),
        pytest.param("1.5", 1.5, id="fraction"),
        pytest.param("-5", 0.0, id="negative"),
        pytest.param("86400", LONGEST, id="a-day-is-clamped"),
        pytest.param(formatdate(NOW + 42, usegmt=True), 42.0, id="http-date"),
        pytest.param(formatdate(NOW - 42, usegmt=True), 0.0, id="past-date"),
        pytest.param(str(int(NOW) + 42), 42.0, id="unix-epoch"),
        pytest.param(str((int(NOW) + 42) * 1000), 42.0, id="unix-epoch-in-milliseconds"),
        pytest.param("9" * 17, LONGEST, id="absurd-epoch"),
        pytest.param("880µs", 880e-6, id="microseconds-with-the-micro-sign"),
        pytest.param("880μs", 880e-6, id="microseconds-with-the-greek-letter"),
        pytest.param("880\udcb5s", 880e-6, id="microseconds-in-latin-1"),
        pytest.param("880us", 880e-6, id="microseconds-in-ascii"),
        pytest.param("880µs, allowed: 44000/minute", 880e-6, id="duration-with-an-explanation"),
        pytest.param("1m30.5s", 90.5, id="minutes-and-seconds"),
        pytest.param("250ms", 0.25, id="milliseconds"),
        pytest.param("2h", LONGEST, id="hours-are-clamped"),
        pytest.param("soon", None, id="a-word"),
        pytest.param("", None, id="empty"),
        pytest.param(None, None, id="absent"),
        pytest.param("9" * 30, None, id="more-digits-than-a-number-has"),
        pytest.param("Fri, 99 Foo 2026 99:99:99 GMT", None, id="no-date"),
        pytest.param("5 apples", None, id="unknown-unit"),
    ],
)
def test_retry_after_is_read_in_every_form(header: str | None, seconds: float | None) -> None:
    """Seconds, dates, epochs and durations; at most five minutes, never negative."""
    assert parse_retry_after(header, NOW) == (None if seconds is None else pytest.approx(seconds))


@given(st.text() | st.from_regex(r"-?[0-9]{0,20}(\.[0-9]{0,10})?[hmsnuµ]{0,3}"), st.floats(0, 1e11))
def test_no_retry_after_breaks_the_reading(header: str, now: float) -> None:
    """Whatever comes is a wait within bounds, or none."""
    seconds = parse_retry_after(header, now)

    assert seconds is None or 0 <= seconds <= LONGEST


def test_a_pause_is_for_one_host() -> None:
    """Who paused us is left alone, others are not."""
    pauses = Pauses(bare=2)
    pauses.asked_to_wait("a:443", 30, throttled=True)

    assert 29 < pauses.remaining("a:443") <= 30
    assert pauses.remaining("b:443") == 0


def test_a_caller_with_less_time_than_the_pause_is_told_at_once() -> None:
    """It hears how long the pause still is, so that its client can come back then."""
    pauses = Pauses(bare=2)
    pauses.asked_to_wait("a:443", 30, throttled=True)

    with pytest.raises(UpstreamThrottled) as caught:
        pauses.check("a:443", Deadline.after(12))

    assert caught.value.retry_after == pytest.approx(30, abs=1)
    pauses.check("a:443", Deadline.after(60))


def test_a_pause_after_a_503_is_no_throttling() -> None:
    """Clients are told 503, not 429, when the upstream said so."""
    pauses = Pauses(bare=2)
    pauses.asked_to_wait("a:443", 30, throttled=False)

    with pytest.raises(UpstreamUnavailable) as caught:
        pauses.check("a:443", Deadline.after(12))

    assert caught.value.reason == "status"
    assert not isinstance(caught.value, UpstreamThrottled)


def test_refusals_during_a_pause_do_not_lengthen_it() -> None:
    """Many were on their way when the first was refused: together they count once."""
    pauses = Pauses(bare=8)
    first = pauses.asked_to_wait("a:443", None, throttled=True)
    joined = pauses.asked_to_wait("a:443", None, throttled=True)

    assert first == 8
    assert joined <= 8


async def test_a_second_bare_refusal_after_the_pause_doubles_it() -> None:
    """The pause grows while the host goes on refusing, and starts from the shortest after an answer."""
    pauses = Pauses(bare=0.01)
    assert pauses.asked_to_wait("a:443", None, throttled=True) == 0.01
    await pauses.wait("a:443", Deadline.after(5))
    assert pauses.asked_to_wait("a:443", None, throttled=True) == 0.02
    await pauses.wait("a:443", Deadline.after(5))
    pauses.answered("a:443")
    assert pauses.asked_to_wait("a:443", None, throttled=True) == 0.01


async def test_after_a_pause_one_asks_first() -> None:
    """The others go when it was answered, and wait on when it was refused; they are told what for."""
    pauses = Pauses(bare=60)
    pauses.asked_to_wait("a:443", 0.05, throttled=True)
    waiting = [asyncio.create_task(pauses.wait("a:443", Deadline.after(600))) for _ in range(20)]

    done, rest = await asyncio.wait(waiting, timeout=5, return_when=asyncio.FIRST_COMPLETED)
    assert len(done) == 1
    pauses.asked_to_wait("a:443", 0.05, throttled=True)
    with pytest.raises(UpstreamThrottled):
        await pauses.wait("a:443", Deadline.after(20))
    pauses.answered("a:443")
    await asyncio.sleep(0.1)
    pauses.answered("a:443")

    await asyncio.gather(*rest)


def test_an_answer_that_was_on_its_way_does_not_end_a_pause() -> None:
    """A success asked for before the refusal says nothing about now."""
    pauses = Pauses(bare=2)
    pauses.asked_to_wait("a:443", 30, throttled=True)
    pauses.answered("a:443")

    assert pauses.remaining("a:443") > 29


def test_a_shorter_wait_does_not_cut_a_longer_pause() -> None:
    """The longest that was asked for counts."""
    pauses = Pauses(bare=2)
    pauses.asked_to_wait("a:443", 30, throttled=True)
    pauses.asked_to_wait("a:443", 1, throttled=True)

    assert pauses.remaining("a:443") > 29


def test_the_map_of_pauses_is_bounded() -> None:
    """Whatever hosts redirects lead to, only so many are remembered."""
    pauses = Pauses(bare=2, most=3)
    for number in range(10):
        pauses.asked_to_wait(f"h{number}:443", 30, throttled=True)

    assert [number for number in range(10) if pauses.remaining(f"h{number}:443")] == [7, 8, 9]

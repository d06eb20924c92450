"""When something counts as not answering, and who may ask it then."""

from __future__ import annotations

import asyncio

import pytest

from mirror.oci.errors import UpstreamUnavailable
from mirror.transport.breakers import THRESHOLD, Breakers, Effort
from mirror.transport.deadline import Deadline

HOST = "a:443"
INTERVAL = 0.05
LONG = 3600.0


class Seen:
    """What breakers told of themselves, in order."""

    def __init__(self) -> None:
        self.told: list[tuple[str, ...]] = []

    def opened(self, *what: str) -> None:
        """As Breakers wants it."""
        self.told.append(("opened", *what))

    def closed(self, *what: str) -> None:
        """As Breakers wants it."""
        self.told.append(("closed", *what))


def broken(interval: float = INTERVAL, **options: int) -> tuple[Breakers, Seen]:
    """Breakers of which that of HOST has just opened."""
    seen = Seen()
    breakers = Breakers(interval, opened=seen.opened, closed=seen.closed, **options)
    for _ in range(THRESHOLD):
        assert not breakers.is_open(HOST)
        breakers.failed(HOST, "reset", probe=False, label="a")
    return breakers, seen


async def enter(breakers: Breakers, effort: Effort | None = None, seconds: float = 5.0) -> bool:
    """Whether whoever comes is let through as a probe."""
    return await breakers.enter(HOST, effort or Effort(), Deadline.after(seconds))


async def refused(breakers: Breakers, effort: Effort | None = None, seconds: float = 5.0) -> UpstreamUnavailable:
    """The refusal that whoever comes gets."""
    with pytest.raises(UpstreamUnavailable) as caught:
        await enter(breakers, effort, seconds)
    assert caught.value.reason == "breaker"
    return caught.value


def test_failures_in_a_row_open_it_and_any_answer_closes_it() -> None:
    """It tells both, once, with the label that the failures came under."""
    breakers, seen = broken()
    breakers.failed(HOST, "reset", probe=False, label="b")
    assert breakers.is_open(HOST)

    breakers.answered(HOST)
    breakers.answered(HOST)

    assert not breakers.is_open(HOST)
    assert seen.told == [("opened", HOST, "a", "reset"), ("closed", HOST, "a")]


def test_failures_that_are_not_in_a_row_do_not() -> None:
    """An upstream that answers every now and then is asked by everyone."""
    breakers = Breakers(INTERVAL)
    for _ in range(5):
        for _ in range(THRESHOLD - 1):
            breakers.failed(HOST, "reset", probe=False)
        breakers.answered(HOST)

    assert not breakers.is_open(HOST)


def test_one_bad_thing_counts_once() -> None:
    """However often it fails; several that fail are the host's trouble."""
    breakers = Breakers(INTERVAL)
    for _ in range(100):
        breakers.failed(HOST, "status", probe=False, blame="x")
    assert not breakers.is_open(HOST)

    for number in range(THRESHOLD - 1):
        breakers.failed(HOST, "status", probe=False, blame=f"y{number}")

    assert breakers.is_open(HOST)


async def test_who_comes_when_it_is_open_has_one_try_or_none() -> None:
    """One is let through at a time; the others hear at once when the next one is."""
    breakers, _ = broken(LONG)
    first, second = Effort(), Effort()

    assert await enter(breakers, first)
    assert first.over
    error = await refused(breakers, second)
    assert second.over
    assert error.retry_after == pytest.approx(LONG, abs=60)


async def test_who_would_be_refused_can_hear_so_before_anything_else() -> None:
    """Looking takes no turn; who was trying before is not refused."""
    breakers, _ = broken(LONG)
    newcomer, known = Effort(), Effort(begun={HOST})
    breakers.check(HOST, newcomer)
    assert await enter(breakers)

    with pytest.raises(UpstreamUnavailable):
        breakers.check(HOST, newcomer)
    assert newcomer.over
    breakers.check(HOST, known)


async def test_the_next_is_let_through_after_a_while_whatever_became_of_the_first() -> None:
    """A probe that hangs keeps nobody from noticing that the host is back."""
    breakers, _ = broken()
    assert await enter(breakers)
    error = await refused(breakers)
    assert error.retry_after is not None

    await asyncio.sleep(error.retry_after)

    assert await enter(breakers)


async def test_who_was_trying_before_waits_for_a_turn() -> None:
    """A blip costs nobody the pull that it happened in."""
    breakers, effort = Breakers(INTERVAL), Effort()
    assert not await enter(breakers, effort)
    for _ in range(THRESHOLD):
        breakers.failed(HOST, "reset", probe=False)
    assert await enter(breakers)

    assert await enter(breakers, effort)
    assert not effort.over


async def test_an_answer_to_one_lets_all_go_who_wait() -> None:
    """They go together, as they came."""
    breakers, efforts = Breakers(LONG), [Effort() for _ in range(20)]
    for effort in efforts:
        await enter(breakers, effort)
    for _ in range(THRESHOLD):
        breakers.failed(HOST, "reset", probe=False)
    assert await enter(breakers)  # takes the turn
    waiting = [asyncio.create_task(enter(breakers, effort, 2 * LONG)) for effort in efforts]
    await asyncio.sleep(0)

    breakers.answered(HOST)

    assert await asyncio.gather(*waiting) == [False] * 20


async def test_a_probe_that_fails_is_a_try_of_all_who_wait() -> None:
    """What others failed at that were on their way when it opened is not."""
    breakers, effort = Breakers(LONG), Effort()
    await enter(breakers, effort)
    for _ in range(THRESHOLD):
        breakers.failed(HOST, "reset", probe=False)
    assert await enter(breakers)
    waiting = asyncio.create_task(refused(breakers, effort, 2 * LONG))
    await asyncio.sleep(0)

    breakers.failed(HOST, "reset", probe=False)
    done, _ = await asyncio.wait([waiting], timeout=0.05)
    assert not done
    breakers.failed(HOST, "reset", probe=True)

    await waiting


async def test_who_has_no_time_for_a_turn_hears_so_at_once() -> None:
    """Nobody waits for what cannot come in time."""
    breakers, effort = Breakers(LONG), Effort()
    await enter(breakers, effort)
    for _ in range(THRESHOLD):
        breakers.failed(HOST, "reset", probe=False)
    await enter(breakers)

    await refused(breakers, effort)


async def test_the_map_is_bounded() -> None:
    """What was untouched longest is forgotten, and told to be closed."""
    breakers, seen = broken(most=3)
    for number in range(3):
        breakers.failed(f"h{number}:443", "reset", probe=False)

    assert not breakers.is_open(HOST)
    assert seen.told[-1] == ("closed", HOST, "a")
    assert not await enter(breakers)

"""Small things in memory: their time to live, and bounds that hold whatever is put in."""

from __future__ import annotations

import asyncio
import gc
import weakref
from contextvars import ContextVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.memory import Bounded, Memory
from tests.clock import Clock


class Value:
    """Something that can be seen to be gone."""


async def test_a_value_is_there_until_its_time_is_over() -> None:
    """`ttl` seconds, then None."""
    memory = Memory()
    await memory.set(("a", "b"), b"value", 60)
    await memory.set(("gone",), b"value", 0.01)

    assert await memory.get(("a", "b")) == b"value"
    assert await memory.get(("other",)) is None
    await asyncio.sleep(0.03)
    assert await memory.get(("gone",)) is None

    await memory.close()


@pytest.mark.parametrize("ttl", [0, -1, 0.0])
async def test_no_time_to_live_keeps_nothing(ttl: float) -> None:
    """Nor what was there before: aiocache itself would take 0 for ever."""
    memory = Memory()
    await memory.set(("key",), "old", 60)

    await memory.set(("key",), "new", ttl)

    assert await memory.get(("key",)) is None
    await memory.close()


async def test_an_old_timer_does_not_end_a_new_value() -> None:
    """A value set again lives by its new time."""
    memory = Memory()
    await memory.set(("key",), "old", 0.01)
    await memory.set(("key",), "new", 60)
    await memory.set(("deleted",), "old", 0.01)
    await memory.delete(("deleted",))
    await memory.set(("deleted",), "new", 60)

    await asyncio.sleep(0.03)

    assert await memory.get(("key",)) == "new"
    assert await memory.get(("deleted",)) == "new"
    await memory.close()


async def test_what_nobody_asks_for_any_more_goes_when_its_time_is_over() -> None:
    """It takes no memory until the bound on keys is reached: names that are not there are asked for once each."""
    clock = Clock()
    memory = Memory(clock=clock)
    values = [Value() for _ in range(100)]
    seen = [weakref.ref(value) for value in values]
    for number, value in enumerate(values):
        await memory.set((str(number),), value, 30 if number % 2 else 3600)
    values.clear()
    del value

    clock.forward(60)
    await memory.set(("another",), "value", 60)

    assert [number for number, reference in enumerate(seen) if reference() is not None] == list(range(0, 100, 2))
    await memory.close()


async def test_what_a_request_has_bound_is_not_kept_with_what_it_remembers() -> None:
    """A thousand small records do not hold the log fields of a thousand requests that are long over."""
    memory = Memory()
    variable: ContextVar[Value] = ContextVar("variable")

    async def request() -> weakref.ref[Value]:
        bound = Value()
        variable.set(bound)
        await memory.set(("key",), "value", 3600)
        return weakref.ref(bound)

    bound = await asyncio.create_task(request())
    await asyncio.sleep(0)  # the loop itself holds the task's last step until its next round
    gc.collect()

    assert bound() is None
    assert await memory.get(("key",)) == "value"
    await memory.close()


async def test_keys_are_values() -> None:
    """However the parts are cut, another tuple is another key."""
    memory = Memory()
    await memory.set(("a", "bc"), 1, 60)
    await memory.set(("ab", "c"), 2, 60)
    await memory.set(("a", "b", "c"), 3, 60)

    assert [await memory.get(key) for key in (("a", "bc"), ("ab", "c"), ("a", "b", "c"), ("abc",))] == [1, 2, 3, None]
    await memory.close()


async def test_the_number_of_keys_is_bounded() -> None:
    """The least recently used goes."""
    memory = Memory(max_keys=3)
    for name in ("a", "b", "c"):
        await memory.set((name,), name, 60)
    assert await memory.get(("a",)) == "a"

    await memory.set(("d",), "d", 60)

    assert [await memory.get((name,)) for name in ("a", "b", "c", "d")] == ["a", None, "c", "d"]
    for number in range(1000):
        await memory.set((str(number),), number, 60)
    assert sum([await memory.get((str(number),)) is not None for number in range(1000)]) == 3
    await memory.close()


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(-1, 12)), max_size=40))
async def test_the_weight_of_the_values_is_bounded(steps: list[tuple[str, int]]) -> None:
    """What is held weighs at most the limit; the value set last is held unless it alone is too heavy (-1: deleted)."""
    memory = Memory(limit=10, weigh=lambda _, value: int(value))
    for name, weight in steps:
        if weight < 0:
            await memory.delete((name,))
        else:
            await memory.set((name,), weight, 60)
        assert await memory.get((name,)) == (weight if 0 <= weight <= 10 else None)
        held = [await memory.get((name,)) for name in "abcd"]
        assert sum(value for value in held if value is not None) <= 10
    await memory.close()


async def test_the_least_recently_used_makes_room_for_a_heavy_value() -> None:
    """As many as it takes, and no more."""
    memory = Memory(limit=10, weigh=lambda _, value: len(value))
    for name in "abc":
        await memory.set((name,), name * 3, 60)
    await memory.get(("a",))

    await memory.set(("d",), "dddd", 60)

    assert [await memory.get((name,)) for name in "abcd"] == ["aaa", None, "ccc", "dddd"]
    await memory.close()


async def test_closing_leaves_no_timer() -> None:
    """Nothing of it wakes the loop later."""
    memory = Memory()
    loop = asyncio.get_running_loop()
    before = len([handle for handle in getattr(loop, "_scheduled", []) if not handle.cancelled()])
    for number in range(10):
        await memory.set((str(number),), number, 60)

    await memory.close()

    after = len([handle for handle in getattr(loop, "_scheduled", []) if not handle.cancelled()])
    assert after == before
    assert await memory.get(("1",)) is None


@given(st.integers(0, 50), st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 60)), max_size=60))
def test_a_bounded_map_never_holds_more_than_its_limit(limit: int, steps: list[tuple[str, int]]) -> None:
    """The weights of what is held never exceed the limit; the last one set is held if it can be."""
    bounded: Bounded[str, int] = Bounded(limit)
    weights: dict[str, int] = {}
    for number, (key, weight) in enumerate(steps):
        bounded.set(key, number, weight)
        weights[key] = weight
        held = [key for key in "abcdefgh" if bounded.get(key) is not None]
        assert sum(weights[key] for key in held) <= limit
        assert len(bounded) == len(held)
        assert (bounded.get(key) == number) == (weight <= limit)


def test_the_least_recently_used_leaves_a_bounded_map_first() -> None:
    """A look is a use."""
    bounded: Bounded[str, int] = Bounded(3)
    for number, key in enumerate("abc"):
        bounded.set(key, number)
    bounded.get("a")

    bounded.set("d", 3)

    assert [bounded.get(key) for key in "abcd"] == [0, None, 2, 3]
    assert bounded.pop("a") == 0
    assert bounded.pop("a") is None
    assert len(bounded) == 2

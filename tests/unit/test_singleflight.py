"""One call per key: everyone hears the outcome, nobody's leaving hurts another."""

from __future__ import annotations

import asyncio

import pytest

from mirror.singleflight import SingleFlight


class Call:
    """A call that waits until it is told how to end."""

    def __init__(self) -> None:
        self.times = 0
        self.go_on = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self) -> int:
        self.times += 1
        await self.go_on.wait()
        if self.error is not None:
            raise self.error
        return self.times


async def turns(number: int = 5) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def test_many_callers_cost_one_call() -> None:
    """Whoever asks while it runs gets its result."""
    flights, call = SingleFlight(), Call()
    callers = [asyncio.create_task(flights.run("key", call)) for _ in range(10)]
    await turns()
    call.go_on.set()

    assert await asyncio.gather(*callers) == [1] * 10
    assert call.times == 1


async def test_each_key_has_its_own_call() -> None:
    """Callers of other keys do not wait."""
    flights, slow, fast = SingleFlight(), Call(), Call()
    waiting = asyncio.create_task(flights.run(("a", 1), slow))
    fast.go_on.set()

    assert await flights.run(("a", 2), fast) == 1
    assert not waiting.done()

    await flights.close()


async def test_whether_a_call_would_be_joined_is_known_before() -> None:
    """From its start to its end, not from its end to when that is tidied up; for its own key alone."""
    flights, call = SingleFlight(), Call()
    assert not flights.running("key")
    task = flights.start("key", call)
    assert flights.running("key")
    assert not flights.running("other")
    heard: list[bool] = []
    task.add_done_callback(lambda _: heard.append(flights.running("key")))
    call.go_on.set()

    await task
    await turns()

    assert heard == [False]
    assert not flights.running("key")


async def test_the_next_caller_after_the_end_starts_anew() -> None:
    """Nothing is remembered: neither a result nor an error."""
    flights, call = SingleFlight(), Call()
    call.go_on.set()
    assert await flights.run("key", call) == 1
    call.error = ValueError("no")
    with pytest.raises(ValueError, match="no"):
        await flights.run("key", call)
    call.error = None

    assert await flights.run("key", call) == 3


async def test_a_result_is_nobodys_who_asks_after_it() -> None:
    """Not even in the very moment in which it came: who asks again in a loop would never let the loop go round."""
    flights, call = SingleFlight(), Call()
    call.go_on.set()
    task = flights.start("key", call)
    seen: list[asyncio.Task[int]] = []
    asyncio.get_running_loop().call_soon(lambda: seen.append(flights.start("key", call)))  # right behind its only step
    assert await task == 1

    (again,) = seen
    assert again is not task
    assert flights.start("key", call) is again
    assert await again == 2
    await turns()
    assert flights.start("key", call) is not again
    await flights.close()


async def test_everyone_hears_the_error() -> None:
    """Each of the callers, once."""
    flights, call = SingleFlight(), Call()
    call.error = ValueError("no")
    callers = [asyncio.create_task(flights.run("key", call)) for _ in range(5)]
    await turns()
    call.go_on.set()

    assert [str(result) for result in await asyncio.gather(*callers, return_exceptions=True)] == ["no"] * 5
    assert call.times == 1


async def test_a_caller_that_leaves_stops_nobody() -> None:
    """Not even the one who started the call; those who come later join it."""
    flights, call = SingleFlight(), Call()
    first = asyncio.create_task(flights.run("key", call))
    second = asyncio.create_task(flights.run("key", call))
    await turns()

    first.cancel()
    await turns()
    third = asyncio.create_task(flights.run("key", call))
    await turns()
    call.go_on.set()

    assert first.cancelled()
    assert (await second, await third) == (1, 1)


async def test_an_error_that_nobody_waits_for_is_no_noise(caplog: pytest.LogCaptureFixture) -> None:
    """All callers left: the error is heard here, not by asyncio's log."""
    flights, call = SingleFlight(), Call()
    call.error = ValueError("no")
    caller = asyncio.create_task(flights.run("key", call))
    await turns()
    caller.cancel()
    await turns()
    call.go_on.set()
    await turns()

    assert await asyncio.gather(caller, return_exceptions=True)
    assert caplog.records == []


async def test_start_gives_the_running_call() -> None:
    """For what goes on in the background, whoever may be interested."""
    flights, call = SingleFlight(), Call()
    task = flights.start("key", call)
    assert flights.start("key", call) is task
    joined = asyncio.create_task(flights.run("key", call))
    await turns()
    call.go_on.set()

    assert (await task, await joined) == (1, 1)


async def test_close_ends_what_runs() -> None:
    """It is cancelled and over when `close` returns, and so are those who wait for it."""
    flights, call = SingleFlight(), Call()
    callers = [asyncio.create_task(flights.run("key", call)) for _ in range(3)]
    await turns()

    await flights.close()
    await turns()

    assert all(caller.cancelled() for caller in callers)
    assert flights.start("key", call) is not None
    await flights.close()

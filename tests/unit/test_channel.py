"""Two processes of ours talk: every question has an end, whatever becomes of the other side."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from mirror.channel import Channel, ChannelClosed, Refused

LONG = 30.0


@pytest.fixture
async def ends() -> AsyncIterator[tuple[Channel, Channel]]:
    """Both ends of one channel."""
    here, there = (Channel(sock) for sock in socket.socketpair())
    yield here, there
    await here.close()
    await there.close()


async def test_either_end_asks_and_hears(ends: tuple[Channel, Channel]) -> None:
    """An answer comes to whoever asked, also where both ends ask at once and answers overtake each other."""
    gate = asyncio.Event()

    async def slow(payload: Any) -> Any:
        await gate.wait()
        return [payload, "slow"]

    for end in ends:
        end.on("slow", slow)
        end.on("quick", lambda payload: {"was": payload})
    slow_ones = [asyncio.create_task(end.call("slow", b"\x00", LONG)) for end in ends]

    assert [await end.call("quick", None, LONG) for end in ends] == [{"was": None}] * 2
    gate.set()
    assert await asyncio.gather(*slow_ones) == [[b"\x00", "slow"]] * 2


async def test_news_arrive_in_order(ends: tuple[Channel, Channel]) -> None:
    """Handlers are called in the order of sending, questions and news alike."""
    here, there = ends
    heard: list[int] = []

    def asked(number: int) -> Any:
        heard.append(number)
        return asyncio.sleep(0, len(heard))

    there.on("news", heard.append)
    there.on("asked", asked)
    for number in range(0, 100, 2):
        here.tell("news", number)
        last = asyncio.create_task(here.call("asked", number + 1, LONG))
        await asyncio.sleep(0)  # it asks
    await last

    assert heard == list(range(100))


async def test_an_error_over_there_is_told_by_name(ends: tuple[Channel, Channel]) -> None:
    """What a handler raises, at once or later, comes to whoever asked; so does that there is no handler."""
    here, there = ends

    def at_once(_: Any) -> Any:
        raise KeyError("at once")

    async def later(_: Any) -> Any:
        raise ValueError("later")

    there.on("at once", at_once)
    there.on("later", later)
    for name, error in (("at once", "KeyError"), ("later", "ValueError"), ("unknown", "LookupError")):
        with pytest.raises(Refused, match=name) as refused:
            await here.call(name, None, LONG)
        assert refused.value.name == error

    here.tell("at once", None)  # of no use to anybody, and no harm
    here.tell("unknown", None)
    there.on("fine", lambda _: "fine")
    assert await here.call("fine", None, LONG) == "fine"


async def test_whoever_works_on_it_is_not_silent(ends: tuple[Channel, Channel]) -> None:
    """Silence ends a question early; an answer that takes long does not, as long as somebody says so at once."""
    here, there = ends
    gate = asyncio.Event()

    async def slow(_: Any) -> str:
        await gate.wait()
        return "done"

    there.on("slow", slow)
    asking = asyncio.create_task(here.call("slow", None, LONG, silence=LONG / 2))
    asyncio.get_running_loop().call_later(0.05, gate.set)
    assert await asking == "done"
    gate.clear()
    with pytest.raises(TimeoutError):
        await here.call("slow", None, 0.1, silence=0.09)


async def test_nobody_waits_for_ever_for_who_says_nothing() -> None:
    """A peer that does not even read is given up after the silence; an answer that comes later harms nobody."""
    ours, theirs = socket.socketpair()
    here = Channel(ours)
    with pytest.raises(TimeoutError):
        await here.call("anything", None, LONG, silence=0.01)
    with pytest.raises(TimeoutError):
        await here.call("anything", None, 0.01)

    there = Channel(theirs)
    there.on("anything", lambda _: "late")
    assert await here.call("anything", None, LONG) == "late"
    await here.close()
    await there.close()


async def test_an_answer_counts_however_late_our_own_loop_is() -> None:
    """Who was busy itself does not take the other end for silent."""
    ours, theirs = socket.socketpair()
    here = Channel(ours)
    asking = asyncio.create_task(here.call("anything", None, LONG, silence=0.05))
    await asyncio.sleep(0)
    answer = msgspec.msgpack.encode((2, 1, "", "in time"))
    theirs.sendall(len(answer).to_bytes(4, "little") + answer)
    time.sleep(0.1)  # noqa: ASYNC251 - this is how a loop is late

    assert await asking == "in time"
    await here.close()
    theirs.close()


@pytest.mark.parametrize("whose", [0, 1])
async def test_the_end_of_one_side_is_heard_by_both(ends: tuple[Channel, Channel], whose: int) -> None:
    """Questions under way fail, work for the other end is given up, and whoever wants to know is told, once."""
    here, there = ends
    given_up, told = asyncio.Event(), []

    async def never(_: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            given_up.set()

    there.on("never", never)
    for end in ends:
        end.when_closed(lambda: told.append(1))
    asking = asyncio.create_task(here.call("never", None, LONG))
    while not given_up.is_set():
        await asyncio.sleep(0.01)  # the handler begins
        await ends[whose].close()
    with pytest.raises(ChannelClosed):
        await asking

    for end in ends:
        await asyncio.wait_for(end.closed.wait(), LONG)
    assert told == [1, 1]
    with pytest.raises(ChannelClosed):
        await here.call("never", None, LONG)
    here.tell("never", None)
    await here.close()
    assert told == [1, 1]


async def test_large_frames_pass(ends: tuple[Channel, Channel]) -> None:
    """More than a socket's buffer goes in pieces, beside small ones; too much for a frame is an error of the sender."""
    here, there = ends
    there.on("echo", lambda payload: payload)
    large = bytes(range(256)) * (8 << 12)

    answers = await asyncio.gather(*(here.call("echo", data, LONG) for data in (large, b"small", large)))
    assert [bytes(answer) for answer in answers] == [large, b"small", large]

    with pytest.raises(ValueError, match="too much"):
        await here.call("echo", bytes(40 << 20), LONG)
    assert await here.call("echo", 1, LONG) == 1


async def test_who_takes_nothing_loses_us() -> None:
    """What waits for a peer that does not read is bounded."""
    ours, theirs = socket.socketpair()
    here = Channel(ours, most_unsent=1 << 20)
    for _ in range(1000):
        here.tell("news", bytes(100_000))
        if here.closed.is_set():
            break
    assert here.closed.is_set()
    await here.close()
    theirs.close()


@pytest.mark.parametrize("nonsense", [b"\xff\xff\xff\xff", b"\x03\x00\x00\x00\x01\x02\x03", b"\x01\x00\x00\x00\xc1"])
async def test_nonsense_ends_it(nonsense: bytes) -> None:
    """A frame that is too long, or none of ours, closes the channel."""
    ours, theirs = socket.socketpair()
    here = Channel(ours)
    theirs.sendall(nonsense)
    await asyncio.wait_for(here.closed.wait(), LONG)
    await here.close()
    theirs.close()

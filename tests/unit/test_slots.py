"""Places are bounded, so is the wait for them, and no host takes what all of them need."""

from __future__ import annotations

import asyncio
import random

import pytest

from mirror.oci.errors import UpstreamUnavailable
from mirror.slots import Slot, Slots

SOON = 5.0


async def full(slots: Slots, host: str, most: int | None = None) -> list[Slot]:
    """Takes places for `host` until it has to wait."""
    taken = []
    while True:
        try:
            taken.append(await slots.take(host, 0, most))
        except UpstreamUnavailable:
            return taken


async def test_who_waits_comes_in_turn() -> None:
    """A place that is given back goes to whoever has waited longest."""
    slots = Slots(1, 10, what="things")
    first = await slots.take("a", SOON)
    order: list[int] = []

    async def come(number: int) -> None:
        place = await slots.take("a", SOON)
        order.append(number)
        place.release()
        place.release()

    coming = [asyncio.create_task(come(number)) for number in range(5)]
    await asyncio.sleep(0)
    assert order == []
    first.release()
    await asyncio.gather(*coming)
    assert order == [0, 1, 2, 3, 4]


async def test_the_queue_has_an_end() -> None:
    """Who finds too many waiting hears so at once, not when its time is over."""
    slots = Slots(1, 4, what="things")
    await slots.take("a", SOON)
    coming = [asyncio.create_task(slots.take(host, SOON)) for host in "bcde"]
    await asyncio.sleep(0)
    async with asyncio.timeout(1):
        with pytest.raises(UpstreamUnavailable, match="f: too many things wait already") as raised:
            await slots.take("f", SOON)
    assert raised.value.reason == "queue"
    for task in coming:
        task.cancel()


async def test_the_wait_has_an_end() -> None:
    """Reason queue after so many seconds, and the place in the queue is free again."""
    waiting: list[int] = []
    slots = Slots(1, 1, what="things", changed=waiting.append)
    held = await slots.take("a", SOON)
    for _ in range(3):
        with pytest.raises(UpstreamUnavailable, match="at a time"):
            await slots.take("b", 0.01)
    held.release()
    (await slots.take("b", SOON)).release()
    assert waiting == [1, 0] * 3


@pytest.mark.parametrize(("hosts", "each"), [(1, 48), (2, 27), (3, 19)])
async def test_a_host_has_its_share(hosts: int, each: int) -> None:
    """The more hosts there are the less each may have; one that has nothing yet always finds a place."""
    slots = Slots(64, 256, what="things")
    taken: list[list[Slot]] = [[] for _ in range(hosts)]
    for _ in range(64):
        for number, places in enumerate(taken):
            try:
                places.append(await slots.take(str(number), 0))
            except UpstreamUnavailable:
                pass
    assert [len(places) for places in taken] == [pytest.approx(each, abs=1)] * hosts
    await slots.take("another", 0)


async def test_a_host_that_hangs_leaves_room_in_the_queue() -> None:
    """Of the waiting places, too, it gets no more than its share."""
    slots = Slots(4, 8, what="things")
    others = [await slots.take(host, 0) for host in "wxyz"]
    hanging = [asyncio.create_task(slots.take("a", SOON)) for _ in range(20)]
    await asyncio.sleep(0)
    refused = [task for task in hanging if task.done() and task.exception()]
    assert len(refused) == 14
    late = asyncio.create_task(slots.take("b", SOON))
    await asyncio.sleep(0)
    for place in others:
        place.release()
    await late
    for task in hanging:
        task.cancel()


async def test_a_limit_of_its_own_takes_the_place_of_the_share() -> None:
    """More than its share or less, as it is set; and never more than there are."""
    assert len(await full(Slots(64, 0, what="things"), "a", 64)) == 64
    assert len(await full(Slots(64, 0, what="things"), "a", 100)) == 64
    assert len(await full(Slots(64, 0, what="things"), "a", 2)) == 2


@pytest.mark.parametrize("seed", range(20))
async def test_no_place_is_lost(seed: int) -> None:
    """Whoever leaves, gives up, or is given a place in the same moment: in the end all of them are free."""
    chance = random.Random(seed)
    slots = Slots(3, 9, what="things")

    async def come() -> None:
        try:
            place = await slots.take(chance.choice("abc"), chance.choice([0, 0.001, 1]))
        except UpstreamUnavailable:
            return
        try:
            await asyncio.sleep(chance.choice([0, 0.001]))
        finally:
            place.release()

    tasks = []
    for _ in range(200):
        tasks.append(asyncio.create_task(come()))
        if chance.random() < 0.3:
            chance.choice(tasks).cancel()
        if chance.random() < 0.5:
            await asyncio.sleep(0)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert [await slots.take(host, 0) for host in "xyz"]


async def test_places_can_become_more_and_fewer() -> None:
    """More are there at once for who waits; of fewer, nobody gets one before enough have been given back."""
    slots = Slots(2, 10, what="things")
    held = await full(slots, "a", 9)
    assert len(held) == 2
    waiting = [asyncio.create_task(slots.take("a", SOON, 9)) for _ in range(3)]
    await asyncio.sleep(0)

    slots.resize(4, 10)
    await asyncio.sleep(0)
    assert [task.done() for task in waiting] == [True, True, False]

    slots.resize(1, 10)
    for place in (*held, waiting[0].result()):
        place.release()
        await asyncio.sleep(0)
        assert not waiting[2].done()
    waiting[1].result().release()
    (await waiting[2]).release()
    assert len(await full(slots, "a", 9)) == 1

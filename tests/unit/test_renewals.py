"""Links of some age are asked for again, once, behind the back of whoever uses them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from mirror.cache import Cache
from mirror.config import Settings, UpstreamSettings
from mirror.oci.digest import Digest
from mirror.oci.errors import UpstreamTimeout
from mirror.pull import Renewals
from mirror.routing import Router, Target
from mirror.store.shapes import LinkRecord
from tests.clock import Clock
from tests.unit.test_cache import make_cache

DIGEST = Digest.of(b"content")
LINK_TTL = 100.0


class Upstream:
    """Counts how often it is asked; `failing` decides whether it answers."""

    def __init__(self) -> None:
        self.asked = 0
        self.failing = False
        self.answer = asyncio.Event()
        self.answer.set()

    async def ask(self) -> None:
        """One question."""
        self.asked += 1
        await self.answer.wait()
        if self.failing:
            raise UpstreamTimeout("no answer")


@pytest.fixture
def clock() -> Clock:
    """The wall clock."""
    return Clock()


@pytest.fixture
def router() -> Router:
    """With one upstream whose links get old."""
    return Router(Settings(upstreams={"a.test": UpstreamSettings(link_ttl=LINK_TTL)}))


@pytest.fixture
def target(router: Router) -> Target:
    """A repository there."""
    return router.resolve("a.test/app", None)


@pytest.fixture
async def cache(clock: Clock, router: Router) -> AsyncIterator[Cache]:
    """Only its clock matters."""
    cache = make_cache(clock=clock, router=router)
    yield cache
    await cache.close()


@pytest.fixture
async def renewals(cache: Cache, router: Router) -> AsyncIterator[Renewals]:
    """What is tested."""
    renewals = Renewals(cache, router)
    yield renewals
    await renewals.close()


def link(clock: Clock, age: float) -> LinkRecord:
    """One that was checked `age` seconds ago."""
    return LinkRecord(7, "", True, clock() - age, clock(), 1)


async def test_a_young_link_is_left_alone(renewals: Renewals, target: Target, clock: Clock) -> None:
    """Its use costs nothing."""
    upstream = Upstream()

    renewals.used(target, "blob", DIGEST, link(clock, LINK_TTL - 1), upstream.ask)
    await renewals.idle()

    assert upstream.asked == 0


async def test_an_old_link_is_asked_for_once_at_a_time(renewals: Renewals, target: Target, clock: Clock) -> None:
    """However often it is used meanwhile; a blob and a manifest of one digest are two things."""
    upstream = Upstream()
    upstream.answer.clear()

    for _ in range(10):
        renewals.used(target, "blob", DIGEST, link(clock, LINK_TTL + 1), upstream.ask)
    renewals.used(target, "manifest", DIGEST, link(clock, LINK_TTL + 1), upstream.ask)
    await asyncio.sleep(0)
    upstream.answer.set()
    await renewals.idle()

    assert upstream.asked == 2


async def test_a_link_from_the_future_is_asked_for(renewals: Renewals, target: Target, clock: Clock) -> None:
    """The clock was set back, and nobody knows how old it is."""
    upstream = Upstream()

    renewals.used(target, "blob", DIGEST, link(clock, -1000), upstream.ask)
    await renewals.idle()

    assert upstream.asked == 1


async def test_without_an_answer_it_is_not_asked_for_at_each_use(
    renewals: Renewals, target: Target, clock: Clock
) -> None:
    """An upstream that is down has a rest; with an answer there is none."""
    upstream = Upstream()
    upstream.failing = True
    for _ in range(3):
        renewals.used(target, "blob", DIGEST, link(clock, LINK_TTL + 1), upstream.ask)
        await renewals.idle()
    assert upstream.asked == 1

    upstream.failing = False
    for _ in range(3):
        renewals.used(target, "manifest", DIGEST, link(clock, LINK_TTL + 1), upstream.ask)
        await renewals.idle()
    assert upstream.asked == 4


async def test_closing_stops_what_is_being_asked(renewals: Renewals, target: Target, clock: Clock) -> None:
    """Nothing is left behind."""
    upstream = Upstream()
    upstream.answer.clear()
    renewals.used(target, "blob", DIGEST, link(clock, LINK_TTL + 1), upstream.ask)
    await asyncio.sleep(0)

    await renewals.close()
    await renewals.idle()

    assert upstream.asked == 1

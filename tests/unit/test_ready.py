"""Answers that are ready: what decides them, how long they are given, and how much memory they take."""

from __future__ import annotations

import pytest
from aiohttp import HttpVersion, HttpVersion10, HttpVersion11, web
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from mirror.api.forwarded import Forwarded
from mirror.api.ready import Key, ReadyAnswers
from mirror.api.tally import Tally
from mirror.log import RequestLine
from mirror.metrics import Metrics
from mirror.pull import Lasting
from mirror.store.generations import Generations
from tests.clock import Clock, StoppedClock

TARGET = "/v2/library/demo/manifests/1"
RECORD = ("tag", "docker.io", "library/demo", "1")


@pytest.fixture
def clock() -> Clock:
    return StoppedClock()


@pytest.fixture
def generations() -> Generations:
    return Generations()


def key_of(
    ready: ReadyAnswers,
    method: str = "GET",
    target: str = TARGET,
    version: HttpVersion = HttpVersion11,
    *,
    keep_alive: bool = True,
    prefix: str = "",
    forwarded: str | None = None,
    **headers: str,
) -> Key | None:
    """The key of a request."""
    named = CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()})
    return ready.key(method, target, version, named, Forwarded(None, forwarded, prefix), keep_alive=keep_alive)


async def keep(ready: ReadyAnswers, key: Key | None, lasting: Lasting, body: bytes = b"manifest") -> None:
    """Has an answer kept that was sent with this body."""
    assert key is not None
    response = web.Response(body=body, headers={"X-Cache": "hit", "X-Request-Id": "first"})
    await response.prepare(make_mocked_request("GET", TARGET))
    counts = Tally(Metrics()).of("docker.io", "manifest", "hit", 200)
    ready.keep(key, response, len(body), lasting, counts, RequestLine({"method": "GET"}, {"status": 200}))


def test_only_what_decides_an_answer_is_in_its_key(clock: Clock) -> None:
    """What a client calls us is, where it can matter; what it accepts, or who it is, is not."""
    blind, hearing = ReadyAnswers(clock, by_host=False), ReadyAnswers(clock, by_host=True)
    plain = key_of(blind)
    assert plain is not None
    assert key_of(blind, Host="a.test", Accept="x", Authorization="y", X_Request_Id="z") == plain
    assert key_of(blind, prefix="/outer") != plain
    assert len({plain, key_of(blind, "HEAD"), key_of(blind, target=f"{TARGET}?ns=quay.io")}) == 3
    names = [key_of(hearing, Host="a.test"), key_of(hearing, Host="b.test"), key_of(hearing)]
    assert len(set(names)) == 3
    assert key_of(hearing, Host="b.test", forwarded="a.test") == names[0]


def test_there_is_no_key_for_what_more_decides(clock: Clock) -> None:
    """Conditions and ranges, old versions, connections that end, methods that change things, and what is too long."""
    ready = ReadyAnswers(clock, by_host=True)
    assert key_of(ready, Range="bytes=0-1") is None
    assert key_of(ready, If_None_Match="*") is None
    assert key_of(ready, If_Range="x") is None
    assert key_of(ready, version=HttpVersion10) is None
    assert key_of(ready, keep_alive=False) is None
    assert key_of(ready, "POST") is None
    assert key_of(ready, "get") is None
    assert key_of(ready, target=f"/{'x' * 2000}") is None
    assert key_of(ready, Host="x" * 2000) is None


async def test_an_answer_is_given_while_it_lasts(clock: Clock, generations: Generations) -> None:
    """Within its time, and until a record changes, or is about to, that it was made of."""
    ready = ReadyAnswers(clock, by_host=False)
    key = key_of(ready)
    assert key is not None
    now = clock()
    lasting = Lasting(now, now + 100, generations.watch([RECORD]))
    await keep(ready, key, lasting)
    given = ready.get(key)
    assert given is not None
    head, _, body = given.render("second").partition(b"\r\n\r\n")
    assert (head.partition(b"\r\n")[0], body) == (b"HTTP/1.1 200 OK", b"manifest")
    assert b"X-Request-Id: second\r\n" in head
    assert b"\r\nDate: " in head
    for seconds in (101, -101, -1):  # one that was found out of date is not kept, whatever the clock does next
        await keep(ready, key, lasting)
        clock.forward(seconds)
        assert ready.get(key) is None
        clock.forward(-seconds)
        assert ready.get(key) is None
    await keep(ready, key, lasting)
    generations.begins(RECORD)
    assert ready.get(key) is None


async def test_what_is_kept_has_a_bound(clock: Clock, generations: Generations) -> None:
    """In bytes; the least recently used go."""
    ready = ReadyAnswers(clock, by_host=False, limit=100_000)
    lasting = Lasting(clock(), clock() + 100, generations.watch([RECORD]))
    keys = [key_of(ready, target=f"/v2/demo/manifests/{number}") for number in range(20)]
    for number, key in enumerate(keys):
        await keep(ready, key, lasting, bytes(10_000))
        assert keys[0] is not None
        assert ready.get(keys[0]) is not None, number
    kept = [number for number, key in enumerate(keys) if key is not None and ready.get(key) is not None]
    assert kept[0] == 0
    assert kept[1:] == list(range(kept[1], 20))
    assert 5 <= len(kept) <= 9
    await keep(ready, keys[1], lasting, bytes(200_000))
    assert keys[1] is not None
    assert ready.get(keys[1]) is None

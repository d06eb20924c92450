"""What workers say to each other, and what becomes of who does not: no question waits for ever, or asks for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from mirror.api.peer import PeerServer
from mirror.metrics import Metrics
from mirror.oci.errors import UpstreamUnavailable
from mirror.peers import Peers, Silent
from mirror.peers.messages import AskRenewal
from mirror.peers.peers import encode
from mirror.peers.wire import Kind, Wire
from mirror.sockets import meeting_point, new_crowd
from mirror.store.owners import owner_of
from mirror.store.spools import origin_of
from tests.storing import until

HOSTS = [host for host in map("host{}.example".format, range(100)) if owner_of(origin_of(host), 2) == 1][:2]
"""Upstreams of the other one."""
LONG = 30.0

Serve = Callable[[Wire], Awaitable[None]]


def renewal(host: str = HOSTS[0]) -> AskRenewal:
    return AskRenewal(host=host, repository="app", kind="blob", digest="sha256:" + "0" * 64)


@asynccontextmanager
async def asking(serve: Serve, *, silence: float = LONG) -> AsyncIterator[Peers]:
    """Asks a worker that does with each connection what `serve` does."""
    (mine, one), (theirs, other) = (meeting_point(slot, crowd) for crowd in [new_crowd()] for slot in range(2))
    serving: set[asyncio.Task[None]] = set()

    async def called(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        try:
            await serve(Wire(reader, writer))
        except asyncio.CancelledError:
            pass  # the test is over; asyncio would log it
        finally:
            writer.transport.abort()

    server = await asyncio.start_unix_server(called, sock=theirs)
    peers = Peers((one, other), 0, Metrics(), silence)
    try:
        yield peers
    finally:
        await peers.close()
        for _ in range(5):
            await asyncio.sleep(0)  # whoever has just been accepted is served some turns of the loop later
        server.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving)
        mine.close()


async def test_who_is_lost_again_and_again_is_done_without() -> None:
    """There may be something in the question that it cannot bear, and it would be asked for ever."""
    calls = 0

    async def hang_up(wire: Wire) -> None:
        nonlocal calls
        calls += 1
        await wire.read()

    async with asking(hang_up) as peers, asyncio.timeout(LONG):
        with pytest.raises(Silent):
            await peers.ask(renewal(), bool)
    assert 2 <= calls <= 10


@pytest.mark.parametrize("kind", [Kind.ANSWER, Kind.FAILED])
async def test_an_answer_that_is_none_is_no_answer_of_the_upstream(kind: Kind) -> None:
    """A worker of another version is restarted before the rest: nobody's client hears more than 503 of that."""

    async def babble(wire: Wire) -> None:
        await wire.read()
        wire.write(kind, b"\xc1 nothing of ours")
        await wire.read()

    async with asking(babble) as peers, asyncio.timeout(LONG):
        with pytest.raises(UpstreamUnavailable) as caught:
            await peers.ask(renewal(), bool)
    assert caught.value.reason == "peer"


async def test_somebody_elses_socket_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor believed: the name may be taken by another user of the machine once all of us have gone."""
    heard = []

    async def listen(wire: Wire) -> None:
        heard.append(await wire.read())

    async with asking(listen, silence=0.3) as peers, asyncio.timeout(LONG):
        monkeypatch.setattr("os.geteuid", lambda: 4711)
        with pytest.raises(Silent):
            await peers.ask(renewal(), bool)
    assert set(heard) == {None}


async def test_an_upstream_that_hangs_does_not_take_all_places() -> None:
    """However many questions to its owner wait for it: those about other upstreams find one."""

    waiting = 0

    async def serve(wire: Wire) -> None:
        nonlocal waiting
        if (frame := await wire.read()) is not None and HOSTS[1].encode() in frame[1]:
            wire.write(Kind.ANSWER, encode(True))
        else:
            waiting += 1
        await wire.read()

    async with asking(serve) as peers, asyncio.timeout(LONG):
        asked = [asyncio.create_task(peers.ask(renewal(), bool)) for _ in range(384)]
        await until(lambda: waiting == 384)
        assert await peers.ask(renewal(HOSTS[1]), bool)
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)


async def test_a_question_that_is_none_keeps_nobody_from_stopping() -> None:
    """It is not being answered: who stops does not wait for it."""
    listening, name = meeting_point(0, new_crowd())
    server = PeerServer(lambda: pytest.fail("nobody is to answer"), LONG)
    await server.open(listening)
    wire = await Wire.connect(name)
    wire.write(Kind.ASK, b"\xc1 nothing of ours")

    async with asyncio.timeout(LONG):
        assert await wire.read() is None
        await server.idle()

    wire.close()
    await server.close()

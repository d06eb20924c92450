"""Connections end: nobody keeps one by saying nothing, half of something, too much, or what never ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest
from aiohttp import web
from aiohttp.http import RawRequestMessage
from prometheus_client import CollectorRegistry, Counter, Gauge

from mirror.api.admission import Admission
from mirror.api.connections import Answer, AtOnce, HttpServer, Limits
from tests.raw import RawClient

PING = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
HALF = PING[:-2]
LONG = 30.0
SHORT = 0.2
MIB = 1 << 20
StartServer = Callable[..., Awaitable["Served"]]


class Served:
    """A server on loopback, what it heard that was no request, and what it counted."""

    def __init__(
        self, answer: Answer, at_once: AtOnce | None, *, most: int, most_each: int, is_proxy: bool, **limits: float
    ) -> None:
        registry = CollectorRegistry()
        self.refused = Counter("refused", "", ("reason",), registry=registry)
        self.present = Gauge("present", "", registry=registry)
        self.malformed: list[tuple[str | None, int, str]] = []
        admission = Admission(most, most_each, is_proxy=lambda _: is_proxy, refused=self.refused, present=self.present)
        server = HttpServer(
            answer,
            at_once=at_once,
            malformed=lambda *what: self.malformed.append(what),
            limits=Limits(**{"request": LONG, "idle": LONG, "stall": LONG, **limits}),
            admission=admission,
        )
        self._runner = web.ServerRunner(server)
        self._registry = registry

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._runner.addresses[0][1])

    @property
    def connections(self) -> float | None:
        """As the gauge has it."""
        return self._registry.get_sample_value("present")

    async def left(self, count: int) -> None:
        """Waits until there are so many connections."""
        for _ in range(500):
            if self.connections == count:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"there are {self.connections}")

    def refusals(self, reason: str) -> float | None:
        """As the counter has it."""
        return self._registry.get_sample_value("refused_total", {"reason": reason})

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Served]:
        """Listens inside."""
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, "127.0.0.1", 0).start()
            yield self
        finally:
            await self._runner.cleanup()


async def _hello(_: web.BaseRequest) -> web.StreamResponse:
    return web.Response(text="hello")


@pytest.fixture
async def serve() -> AsyncIterator[StartServer]:
    """Starts servers that say hello, or `answer`; with `limits`, and room for `most` connections."""
    async with AsyncExitStack() as stack:

        async def start(
            answer: Answer = _hello,
            at_once: AtOnce | None = None,
            *,
            most: int = 100,
            most_each: int = 100,
            is_proxy: bool = False,
            **limits: float,
        ) -> Served:
            served = Served(answer, at_once, most=most, most_each=most_each, is_proxy=is_proxy, **limits)
            return await stack.enter_async_context(served.running())

        yield start


# Silence.


@pytest.mark.parametrize(
    ("sent", "answers"),
    [(b"", 0), (b"GE", 0), (HALF, 0), (PING, 1), (PING + b"GE", 1), (PING + HALF, 1)],
)
async def test_silence_ends_a_connection(serve: StartServer, sent: bytes, answers: int) -> None:
    """Before a first request, in the middle of one, and after one."""
    served = await serve(request=SHORT, idle=SHORT)
    async with asyncio.timeout(5), await RawClient.connect(served.port) as client:
        await client.send(sent)
        assert (await client.rest()).count(b"HTTP/1.1 200") == answers


async def test_who_never_asks_is_cut_off_like_who_never_ends_asking(serve: StartServer) -> None:
    """The time for a request runs from the connection; whoever has said nothing gets no answer either."""
    served = await serve(request=SHORT)
    async with asyncio.timeout(5), await RawClient.connect(served.port) as client:
        assert await client.rest() == b""
    assert served.malformed == []


@pytest.mark.parametrize("before", [b"", PING])
async def test_a_request_that_never_ends_is_a_408(serve: StartServer, before: bytes) -> None:
    """Byte after byte, a header a moment, after another request or as the first one: the time is for all of it."""
    served = await serve(request=SHORT)
    async with asyncio.timeout(5), await RawClient.connect(served.port) as client:
        if before:
            await client.send(before)
            await client.answer()
        await client.send(HALF)
        with suppress(ConnectionError):
            for number in range(200):
                await client.send(b"X-%d: x\r\n" % number if number % 2 else b"X")
                await asyncio.sleep(SHORT / 10)
                if served.malformed:
                    break
        status, error = await client.error()
        assert (status, error["code"]) == (408, "UNSUPPORTED")
    assert [status for _, status, _ in served.malformed] == [408]


async def test_a_slow_request_within_its_time_is_answered(serve: StartServer) -> None:
    """A client that is no longer idle has the time of a request, not what was left of its idleness."""
    served = await serve(idle=SHORT)
    async with asyncio.timeout(10), await RawClient.connect(served.port) as client:
        await client.send(PING)
        await client.answer()
        await client.send(PING[:3])
        await asyncio.sleep(2 * SHORT)
        await client.send(PING[3:])
        assert (await client.answer())[1] == b"hello"


async def test_an_answer_may_take_longer_than_any_request(serve: StartServer) -> None:
    """Neither limit cuts off who is being answered, also where half of the next request waits behind it."""
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def slow(_: web.BaseRequest) -> web.StreamResponse:
        asked.set()
        await go_on.wait()
        return web.Response(text="hello")

    served = await serve(slow, request=SHORT, idle=SHORT)
    async with asyncio.timeout(10), await RawClient.connect(served.port) as client:
        await client.send(PING)
        await asked.wait()
        await client.send(HALF)
        await asyncio.sleep(3 * SHORT)
        go_on.set()
        assert (await client.answer())[1] == b"hello"
        assert (await client.error())[0] == 408


# Too much.


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (PING.replace(b"/", b"/" + b"a" * 8190, 1), 414),
        (PING.replace(b"/", b"/?" + b"a" * 8190, 1), 414),
        (HALF + b"X: " + b"a" * (33 << 10) + b"\r\n\r\n", 431),
        (HALF + b"a" * (33 << 10) + b": x\r\n\r\n", 431),
        (HALF + b"X: x\r\n" * 130 + b"\r\n", 431),
        (HALF + b"Range: bytes=" + b"0-1," * 9000 + b"2-3\r\n\r\n", 400),
    ],
    ids=["target", "query", "header", "name", "headers", "ranges"],
)
async def test_too_much_has_a_status(serve: StartServer, sent: bytes, status: int) -> None:
    """Whoever asks for too many ranges hears what makes clients ask for fewer; the others what they did."""
    served = await serve()
    async with asyncio.timeout(5), await RawClient.connect(served.port) as client:
        await client.send(sent)
        assert (await client.error())[0] == status
        assert await client.rest() == b""
    assert [status for _, status, _ in served.malformed] == [status]


async def test_headers_are_bounded_together(serve: StartServer) -> None:
    """Each within its limits, and no end of them: no more is taken than a request can be."""
    served = await serve()
    async with asyncio.timeout(5), await RawClient.connect(served.port) as client:
        await client.send(HALF)
        with suppress(ConnectionError):
            for number in range(100):
                await client.send(b"X-%d: %b\r\n" % (number, b"a" * (30 << 10)))
        assert (await client.error())[0] == 431


async def test_a_body_without_end_is_not_read_without_end(serve: StartServer) -> None:
    """The answer comes, the rest of the body is dropped for a moment, and the connection is closed."""
    served = await serve(linger=SHORT)
    async with asyncio.timeout(10), await RawClient.connect(served.port) as client:
        await client.send(HALF + b"Transfer-Encoding: chunked\r\n\r\n")
        chunk = b"10000\r\n" + bytes(1 << 16) + b"\r\n"
        with pytest.raises(ConnectionError):
            await _send_for_ever(client, chunk)


@pytest.mark.parametrize("size", [10, 200 << 10])
async def test_the_end_of_a_body_is_not_the_head_of_a_request(serve: StartServer, size: int) -> None:
    """Whoever has sent all of a body, after its headers, is idle, and is told nothing that it did not ask for."""
    served = await serve(request=SHORT)
    async with asyncio.timeout(5), await RawClient.connect(served.port) as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size)
        await client.answer()
        await client.send(bytes(size))
        await asyncio.sleep(2 * SHORT)
        await client.send(PING)
        head, _ = await client.answer()
        assert head.status == 200
    assert served.malformed == []


async def test_a_body_is_not_taken_in_while_its_request_is_answered(serve: StartServer) -> None:
    """Nobody reads it: what the kernel does not hold waits at the client."""
    await _is_held_back(serve, HALF + b"Content-Length: 1000000000\r\n\r\n", bytes(MIB))


async def test_requests_in_a_row_wait_outside(serve: StartServer) -> None:
    """A flood of requests behind one that takes long is not taken in either."""
    await _is_held_back(serve, PING, PING * (MIB // len(PING)))


async def _is_held_back(serve: StartServer, first: bytes, more: bytes) -> None:
    go_on = asyncio.Event()

    async def slow(_: web.BaseRequest) -> web.StreamResponse:
        await go_on.wait()
        return web.Response(text="hello")

    served = await serve(slow, linger=SHORT)
    async with await RawClient.connect(served.port) as client:
        await client.send(first)
        taken = 0
        with suppress(TimeoutError):
            while taken < 64 * MIB:  # far more than the kernel's buffers
                async with asyncio.timeout(1):
                    await client.send(more)
                taken += len(more)
        assert taken < 64 * MIB
        go_on.set()


async def _send_for_ever(client: RawClient, data: bytes) -> None:
    while True:
        await client.send(data)


# Too many.


async def _fill(stack: AsyncExitStack, served: Served, count: int) -> list[RawClient]:
    clients = [await stack.enter_async_context(await RawClient.connect(served.port)) for _ in range(count)]
    for client in clients:
        await client.send(PING)
        await client.answer()
    return clients


@pytest.mark.parametrize("limits", [{"most": 3}, {"most_each": 3}])
async def test_one_too_many_hears_so(serve: StartServer, limits: dict[str, int]) -> None:
    """503 with Retry-After and a closed connection, in all as for one client; the others go on, places come back."""
    served = await serve(**limits)
    async with asyncio.timeout(10), AsyncExitStack() as stack:
        clients = await _fill(stack, served, 3)
        async with await RawClient.connect(served.port) as extra:
            await extra.send(PING)
            head, body = await extra.answer()
            assert (head.status, head.headers["Retry-After"], head.headers["Connection"]) == (503, "5", "close")
            assert b'"UNAVAILABLE"' in body
            assert await extra.rest() == b""
        assert (served.connections, served.refusals("total" if "most" in limits else "client")) == (3, 1)

        await clients[0].send(PING)
        assert (await clients[0].answer())[1] == b"hello"
        clients[1].close()
        await served.left(2)
        (again,) = await _fill(stack, served, 1)
        assert served.connections == 3
        again.close()


async def test_one_too_many_is_no_reset(serve: StartServer) -> None:
    """A HEAD is answered without a body, and what is sent after the refusal does not take it away."""
    served = await serve(most=1)
    async with asyncio.timeout(10), AsyncExitStack() as stack:
        await _fill(stack, served, 1)
        extra = await stack.enter_async_context(await RawClient.connect(served.port))
        await extra.send(PING.replace(b"GET", b"HEAD"))
        head = await extra.head()
        for _ in range(10):
            await extra.send(bytes(10_000))
        assert (head.status, await extra.rest()) == (503, b"")


async def test_proxies_may_have_many(serve: StartServer) -> None:
    """Behind a trusted proxy there are many clients; only the limit in all counts."""
    served = await serve(most=5, most_each=1, is_proxy=True)
    async with asyncio.timeout(10), AsyncExitStack() as stack:
        await _fill(stack, served, 5)
        assert (served.connections, served.refusals("client")) == (5, None)


async def test_a_crowd_outside_is_bounded_too(serve: StartServer) -> None:
    """However many come and say nothing, each is gone after a moment, most of them at once."""
    served = await serve(most=1)
    async with asyncio.timeout(15), AsyncExitStack() as stack:
        (inside,) = await _fill(stack, served, 1)
        crowd = [await stack.enter_async_context(await RawClient.connect(served.port)) for _ in range(400)]
        for client in crowd:
            with suppress(ConnectionResetError):
                assert await client.rest() == b""
        await inside.send(PING)
        assert (await inside.answer())[1] == b"hello"
    assert served.refusals("total") == 400


async def test_what_waits_behind_an_upgrade_is_no_slow_request(serve: StartServer) -> None:
    """aiohttp reads it only once the upgrade has been declined; the connection then goes on as any."""
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def slow(_: web.BaseRequest) -> web.StreamResponse:
        asked.set()
        await go_on.wait()
        return web.Response(text="hello")

    served = await serve(slow, request=SHORT)
    async with asyncio.timeout(10), await RawClient.connect(served.port) as client:
        await client.send(HALF + b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\n")
        await asked.wait()
        await client.send(PING)
        await asyncio.sleep(0.05)
        go_on.set()
        for _ in range(2):
            assert (await client.answer())[1] == b"hello"
        await asyncio.sleep(3 * SHORT)
        await client.send(PING)
        assert (await client.answer())[1] == b"hello"
    assert served.malformed == []


# Answers that are ready.


class Ready:
    """Says `hello` at once to who asks for `/`, as an answer of `size` bytes, and notes what becomes of each."""

    def __init__(self, size: int = 5) -> None:
        self.notes: list[str] = []
        self.noted = asyncio.Event()
        self._size = size

    def __call__(self, message: RawRequestMessage, client: str | None) -> _Departure | None:
        assert client == "127.0.0.1"
        return _Departure(self, self._size) if message.path == "/" else None

    def note(self, what: str) -> None:
        self.notes.append(what)
        self.noted.set()


class _Departure:
    def __init__(self, ready: Ready, size: int) -> None:
        self._ready = ready
        self.data = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"ready".ljust(size)

    def waits(self) -> None:
        self._ready.note("waits")

    def over(self, *, gone: bool = False) -> None:
        self._ready.note("gone" if gone else "over")


async def test_what_is_ready_goes_out_in_the_order_of_the_requests(serve: StartServer) -> None:
    """Before, between and behind those for which something has to be found out."""
    ready = Ready()
    served = await serve(at_once=ready)
    other = PING.replace(b"/", b"/other", 1)
    async with asyncio.timeout(10), await RawClient.connect(served.port) as client:
        for pieces in ([PING] * 3, [PING + other + PING, PING], [other + PING * 40], [PING * 40 + other + PING]):
            asked = b"".join(pieces)
            for piece in pieces:
                await client.send(piece)
            for line in asked.split(b"\r\n\r\n")[:-1]:
                body = (await client.answer())[1]
                assert body in ([b"hello"] if b"/other" in line else [b"ready", b"hello"])
    assert set(ready.notes) == {"over"}


async def test_silence_after_what_was_ready_ends_a_connection(serve: StartServer) -> None:
    """The time for the next request begins with each answer; half a request has a time of its own."""
    served = await serve(at_once=Ready(), idle=1.0, request=SHORT)
    async with asyncio.timeout(10), await RawClient.connect(served.port) as client:
        await client.send(PING)
        await client.answer()
        for _ in range(4):
            await asyncio.sleep(0.4)
            await client.send(PING)
            await client.answer()
        assert await client.rest() == b""
    async with asyncio.timeout(10), await RawClient.connect(served.port) as client:
        await client.send(PING + HALF)
        await client.answer()
        await client.send(b"X")
        status, _ = await client.error()
        assert status == 408


@pytest.mark.parametrize("leaves", [False, True], ids=["reads", "leaves"])
async def test_what_is_ready_is_over_when_it_is_taken(serve: StartServer, leaves: bool) -> None:
    """Or when its client has left. What is asked meanwhile waits behind it."""
    size = 8 * MIB
    ready = Ready(size)
    served = await serve(at_once=ready)
    async with asyncio.timeout(20), await RawClient.connect(served.port, receive_buffer=4096) as client:
        await client.send(PING)
        await ready.noted.wait()
        assert ready.notes == ["waits"]
        await client.send(PING)
        ready.noted.clear()
        if leaves:
            client.reset()
            await ready.noted.wait()
        else:
            assert len((await client.answer())[1]) == size
            await ready.noted.wait()
            assert (await client.answer())[1] == b"hello"
    assert ready.notes == ["waits", "gone" if leaves else "over"]


async def test_who_takes_what_is_ready_slowly_is_not_idle(serve: StartServer) -> None:
    """Neither limit cuts it off; from its end on the time for the next request runs."""
    size = 8 * MIB
    ready = Ready(size)
    served = await serve(at_once=ready, idle=SHORT, request=SHORT)
    async with asyncio.timeout(20), await RawClient.connect(served.port, receive_buffer=4096) as client:
        await client.send(PING)
        await ready.noted.wait()
        await asyncio.sleep(3 * SHORT)
        await client.send(HALF)
        await asyncio.sleep(3 * SHORT)
        assert len((await client.answer())[1]) == size
        assert (await client.error())[0] == 408
    ready.noted.clear()
    async with asyncio.timeout(20), await RawClient.connect(served.port, receive_buffer=4096) as client:
        await client.send(PING)
        await ready.noted.wait()
        await asyncio.sleep(3 * SHORT)
        assert len((await client.answer())[1]) == size
        assert await client.rest() == b""
    assert ready.notes == ["waits", "over"] * 2


async def test_what_is_ready_comes_whole_before_a_refusal(serve: StartServer) -> None:
    """Of what the client sends behind it: the connection ends with the answer."""
    size = 8 * MIB
    ready = Ready(size)
    served = await serve(at_once=ready)
    async with asyncio.timeout(20), await RawClient.connect(served.port, receive_buffer=4096) as client:
        await client.send(PING)
        await ready.noted.wait()
        await client.send(HALF)
        with suppress(ConnectionError):
            for number in range(50):
                await client.send(b"X-%d: %s\r\n" % (number, b"x" * 4000))
        assert len((await client.answer())[1]) == size
        assert await client.rest() == b""
    assert ready.notes == ["waits", "over"]


async def test_a_client_that_takes_nothing_of_what_is_ready_is_cut_off(serve: StartServer) -> None:
    """Like one that takes nothing of any other answer."""
    ready = Ready(32 * MIB)
    served = await serve(at_once=ready, stall=SHORT)
    async with asyncio.timeout(20), await RawClient.connect(served.port, receive_buffer=4096) as client:
        await client.send(PING)
        await served.left(1)
        await served.left(0)
    assert ready.notes == ["waits", "gone"]


async def test_what_is_not_understood_is_never_ready(serve: StartServer) -> None:
    """Upgrades, bodies, and what is no HTTP."""
    ready = Ready()
    served = await serve(at_once=ready)
    async with asyncio.timeout(10):
        for request, body in (
            (HALF + b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\n", b"hello"),
            (HALF + b"Content-Length: 3\r\n\r\nabc", b"hello"),
            (HALF + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"hello"),
        ):
            async with await RawClient.connect(served.port) as client:
                await client.send(request)
                assert (await client.answer())[1] == body
        async with await RawClient.connect(served.port) as client:
            await client.send(PING)
            assert (await client.answer())[1].startswith((b"ready", b"hello"))
            await client.send(b"nonsense\r\n\r\n")
            assert (await client.error())[0] == 400

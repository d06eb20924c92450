"""What a crowd, or one client with much time, can make the mirror hold."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.conftest import StartMirror
from tests.harness import RunningMirror, short_timeouts
from tests.lines import Lines, lines
from tests.raw import RawClient
from tests.reading import nothing_unheard

__all__ = ["lines"]


@pytest.fixture(autouse=True)
async def heard() -> AsyncIterator[None]:
    """No test leaves an exception that nobody heard."""
    with nothing_unheard():
        yield


# Connections.


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"max_connections": 5}, "total"), ({"max_connections_per_client": 5}, "client")],
)
async def test_connections_are_counted_and_bounded(
    start_mirror: StartMirror, settings: dict[str, int], reason: str
) -> None:
    """The settings hold, loopback is no exception, and the admin port has places of its own."""
    mirror = await start_mirror(**settings)
    async with asyncio.timeout(10):
        clients = [await RawClient.connect(mirror.app.port) for _ in range(5)]
        for client in clients:
            await client.ask("/v2/")
            await client.answer()
        reply = await mirror.get("/v2/")
        assert (reply.status, reply.code, reply.headers["Retry-After"]) == (503, "UNAVAILABLE", "5")
        assert mirror.metric("mirror_connections") == 5
        assert mirror.metric("mirror_connections_refused_total", reason=reason) == 1
        async with mirror.session.get(f"{mirror.admin_url}/readyz") as answer:
            assert answer.status == 200
    for client in clients:
        client.close()


async def test_who_comes_by_a_trusted_proxy_shares_no_limit(start_mirror: StartMirror) -> None:
    """All of its clients have one address: the proxy's."""
    mirror = await start_mirror(max_connections_per_client=2, trusted_proxies=["127.0.0.0/8"])
    replies = await mirror.together(10, "/v2/")
    assert {reply.status for reply in replies} == {200}


@pytest.mark.parametrize("port", ["port", "admin_port"])
async def test_half_a_request_ends(lines: Lines, start_mirror: StartMirror, port: str) -> None:
    """On both ports: a 408 for who has begun, and nothing for who has not."""
    mirror = await start_mirror(timeouts=short_timeouts(request=0.2))
    async with asyncio.timeout(10):
        silent = await RawClient.connect(getattr(mirror.app, port))
        slow = await RawClient.connect(getattr(mirror.app, port))
        await slow.send(b"GET / HTTP/1.1\r\nX: ")
        await slow.send(b"a")
        assert (await slow.error())[0] == 408
        assert (await slow.rest(), await silent.rest()) == (b"", b"")
    assert lines.troubles() == []
    slow.close()
    silent.close()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer s3cret" + b"a" * 40_000 + b"\r\n\r\n", 431),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\ns3cret\r\n\r\n", 400),
        (b"CONNECT  HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 405),
        (b"GET /metric HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    ],
    ids=["a long header", "a broken header", "a tunnel to nowhere", "a write", "an unknown path"],
)
async def test_the_admin_port_is_as_strict(lines: Lines, mirror: RunningMirror, sent: bytes, status: int) -> None:
    """It answers what it cannot serve, and repeats nothing of it, neither there nor in the log."""
    async with asyncio.timeout(5), await RawClient.connect(mirror.app.admin_port) as client:
        await client.send(sent)
        head, body = await client.answer()
    assert head.status == status
    assert head.headers["Server"] == "mirror"
    assert b"s3cret" not in body
    assert "s3cret" not in lines.text
    assert lines.troubles() == []

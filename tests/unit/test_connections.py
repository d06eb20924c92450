"""Connections end: nobody keeps one by saying nothing, or half of something."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from mirror.api.connections import HttpServer
from tests.raw import RawClient

PING = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    ("sent", "answers"),
    [(b"", 0), (b"GE", 0), (PING[:-2], 0), (PING, 1), (PING + b"GE", 1), (PING + PING[:-2], 1)],
)
async def test_silence_ends_a_connection(sent: bytes, answers: int) -> None:
    """Before a first request, in the middle of one, and after one: each is closed after the same time."""

    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text="hello")

    server = HttpServer(answer, malformed=lambda *_: None, stall=5, keepalive_timeout=0.2)
    runner = web.ServerRunner(server)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        async with asyncio.timeout(5), await RawClient.connect(runner.addresses[0][1]) as client:
            await client.send(sent)
            assert (await client.rest()).count(b"HTTP/1.1 200") == answers
    finally:
        await runner.cleanup()

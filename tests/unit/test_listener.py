"""A listening port closes without losing anybody."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from aiohttp import web

from mirror.api.listener import ACCEPTED_AT_ONCE, Listener
from mirror.config import Address

LOOPBACK = Address("127.0.0.1", 0)


async def _answer(_: web.BaseRequest) -> web.StreamResponse:
    return web.Response(text="yes")


@pytest.mark.parametrize("turns", range(6))
async def test_whoever_comes_while_it_closes_is_not_left_waiting(turns: int) -> None:
    """At whichever turn of the loop a client is when the port closes, its connection has an end."""
    loop = asyncio.get_running_loop()
    listener = Listener(web.ServerRunner(web.Server(_answer), shutdown_timeout=0.1))
    port = await listener.open(LOOPBACK)
    with socket.create_connection(("127.0.0.1", port)) as client:  # the kernel accepts it, asyncio has to be turned
        client.setblocking(False)
        for _ in range(turns):
            await asyncio.sleep(0)

        await listener.stop_accepting()
        await listener.close()

        async with asyncio.timeout(5):
            try:
                assert await loop.sock_recv(client, 1) == b""
            except ConnectionResetError:
                pass  # not accepted before the port was gone
    gc.collect()  # a socket that was lost tells so here


async def test_a_request_is_answered_though_the_port_has_closed() -> None:
    """Whoever has been accepted goes on until the end."""
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def slow(_: web.BaseRequest) -> web.StreamResponse:
        asked.set()
        await go_on.wait()
        return web.Response(text="yes")

    listener = Listener(web.ServerRunner(web.Server(slow), shutdown_timeout=0.1))
    reader, writer = await asyncio.open_connection("127.0.0.1", await listener.open(LOOPBACK))
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    await asked.wait()

    await listener.stop_accepting()
    go_on.set()

    assert (await reader.read()).endswith(b"yes")
    writer.close()
    await writer.wait_closed()
    await listener.close()
    await listener.close()


async def test_a_port_that_is_taken_is_named() -> None:
    """The error says which address it is and why; nothing stays open."""
    first, second = (Listener(web.ServerRunner(web.Server(_answer))) for _ in range(2))
    port = await first.open(LOOPBACK)

    with pytest.raises(OSError, match=rf"cannot listen on 127\.0\.0\.1:{port}: Address already in use"):
        await second.open(Address("127.0.0.1", port))

    await second.close()
    await first.close()


@contextmanager
def _descriptors_gone() -> Iterator[None]:
    """Lets this process open no more files inside."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    first_free = os.dup(0)
    os.close(first_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (first_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_without_descriptors_it_waits_for_better_times() -> None:
    """Who cannot be accepted keeps neither the loop nor the log busy, and is accepted once that is possible."""
    complaints: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    listener = Listener(web.ServerRunner(web.Server(_answer), shutdown_timeout=0.1))
    port = await listener.open(LOOPBACK)
    clients = [socket.socket() for _ in range(5)]
    with _descriptors_gone():
        for client in clients:
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", port))
            await loop.sock_sendall(client, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await asyncio.sleep(0.3)
        assert 0 < len(complaints) <= ACCEPTED_AT_ONCE

    async with asyncio.timeout(10):
        for client in clients:
            assert (await loop.sock_recv(client, 1000)).startswith(b"HTTP/1.1 200")
            client.close()
    await listener.close()

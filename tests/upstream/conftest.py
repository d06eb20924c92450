"""The fake's own tests: the fixtures that it offers to others, and a client that sees how a connection ends."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

import aiohttp
import pytest

from tests.upstream import FakeRegistry
from tests.upstream.fixtures import start_upstream, upstream

__all__ = ["start_upstream", "upstream"]


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    """A client that decodes nothing."""
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        yield session


@dataclass(frozen=True)
class RawAnswer:
    """What came over a bare socket: the head's lines, everything after it, and how the connection ended."""

    head: list[str]
    body: bytes
    ending: str

    @property
    def status(self) -> int:
        """The status code; 0 where no byte came."""
        return int(self.head[0].split()[1]) if self.head else 0

    @property
    def headers(self) -> dict[str, str]:
        """Headers by lower-case name."""
        return {name.lower(): value for name, _, value in (line.partition(": ") for line in self.head[1:])}


async def ask_raw(
    upstream: FakeRegistry,
    url: str,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    piece: int = 1 << 16,
) -> RawAnswer:
    """Asks with `Connection: close` and reads, `piece` bytes at a time, until the end by `fin` or `rst`."""
    loop = asyncio.get_running_loop()
    host, _, port = upstream.host.partition(":")
    target = url.removeprefix(upstream.url)
    lines = [f"{method} {target} HTTP/1.1", f"Host: {upstream.host}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    received = bytearray()
    ending = "fin"
    with socket.socket() as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, (host, int(port)))
        await loop.sock_sendall(sock, "\r\n".join([*lines, "", ""]).encode())
        try:
            while data := await loop.sock_recv(sock, piece):
                received += data
                await asyncio.sleep(0)  # sock_recv gives nobody a turn while there is something to read
        except ConnectionResetError:
            ending = "rst"
    head, _, body = bytes(received).partition(b"\r\n\r\n")
    return RawAnswer(head.decode().split("\r\n") if head else [], body, ending)

"""The upstream side alone in front of fake registries: what tests of it share.

Import the fixtures where they are wanted: `from tests.asking import start_asking`.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from mirror.auth import Authenticator
from mirror.config import Settings, Timeouts, UpstreamSettings
from mirror.memory import Memory
from mirror.metrics import Metrics
from mirror.oci.errors import UpstreamUnavailable
from mirror.routing import Router, Target
from mirror.transport import BlobStream, Deadline, Transport
from mirror.upstream import Upstreams

FAST = Timeouts(
    connect_address=0.15,
    connect=0.3,
    try_=0.25,
    first_byte=0.6,
    stale_after=0.1,
    cold_head=0.15,
    stall=0.5,
    min_rate_window=1.5,
    no_progress=3,
    client=6,
)
"""The time limits of the documentation at a twentieth."""

NAME = "registry.test"
REPOSITORY = "team/app"


class Asking:
    """The upstream side as the engine has it, with one configured upstream, `registry.test`."""

    def __init__(
        self,
        url: str,
        *,
        timeouts: Timeouts = FAST,
        clock: Callable[[], float] = time.time,
        resolver: AbstractResolver | None = None,
        is_global: Callable[[str], bool] | None = None,
        **settings: Any,
    ) -> None:
        self.metrics = Metrics()
        self.memory = Memory()
        self.transport = Transport(timeouts, metrics=self.metrics, resolver=resolver, is_global=is_global, clock=clock)
        self.authenticator = Authenticator(self.transport, self.memory, metrics=self.metrics, clock=clock)
        self.router = Router(Settings(upstreams={NAME: UpstreamSettings(url=url, **settings)}))
        self.upstreams = Upstreams(self.router, self.transport, self.authenticator)

    def target(self, repository: str = REPOSITORY) -> Target:
        """A repository of the upstream."""
        return self.router.resolve(f"{NAME}/{repository}", None)

    def metric(self, name: str, **labels: str) -> float | None:
        """The value of a metric of this upstream; None where it was never set."""
        return self.metrics.registry.get_sample_value(f"mirror_{name}", {"upstream": NAME, **labels})

    async def close(self) -> None:
        """Closes connections, ends timers."""
        await self.upstreams.close()
        await self.memory.close()


StartAsking = Callable[..., Asking]


@pytest.fixture
async def start_asking() -> AsyncIterator[StartAsking]:
    """Makes upstream sides with the options of Asking; each is closed after the test."""
    async with AsyncExitStack() as stack:

        def start(url: str, **options: Any) -> Asking:
            asking = Asking(url, **options)
            stack.push_async_callback(asking.close)
            return asking

        yield start


def soon(seconds: float = FAST.first_byte) -> Deadline:
    """The deadline of one client request."""
    return Deadline.after(seconds)


async def whole(stream: BlobStream) -> bytes:
    """Everything that a stream gives."""
    async with stream:
        return b"".join([chunk async for chunk in stream.chunks()])


async def failure(awaitable: Awaitable[object]) -> UpstreamUnavailable:
    """The "no answer" that this must end in."""
    with pytest.raises(UpstreamUnavailable) as caught:
        await awaitable
    return caught.value


class Names(AbstractResolver):
    """A resolver that knows these names; `asked` is what it was asked, in order."""

    def __init__(self, addresses: Mapping[str, str]) -> None:
        self.addresses = dict(addresses)
        self.asked: list[str] = []

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """As AbstractResolver."""
        self.asked.append(host)
        if host not in self.addresses:
            raise OSError(None, f"no such name {host}")
        address = self.addresses[host]
        return [ResolveResult(hostname=host, host=address, port=port, family=socket.AF_INET, proto=0, flags=0)]

    async def close(self) -> None:
        """Nothing to close."""


@asynccontextmanager
async def raw_server(answer: Callable[[str], bytes]) -> AsyncIterator[tuple[str, list[str]]]:
    """A server that sends these bytes for each request's head and closes; gives its URL and the heads it has seen."""
    heads: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            heads.append(head)
            writer.write(answer(head))
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has left
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", heads

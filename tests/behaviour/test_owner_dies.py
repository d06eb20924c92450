"""The worker that asks an upstream dies or stands still, as a real process: nobody else's client notices."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mirror.store.owners import owner_of
from mirror.store.spools import origin_of
from tests.behaviour.test_workers import PATIENCE, counted, is_whole, standing_still
from tests.reading import blob_path
from tests.served import Served
from tests.storing import until
from tests.upstream import FakeRegistry, stall_at

MIB = 1 << 20
OWNER = owner_of(origin_of("docker.io"), 2)

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
async def mirror(tmp_path: Path, upstream: FakeRegistry) -> AsyncIterator[Served]:
    """Two workers."""
    served = Served(tmp_path, upstream, workers=2)
    await served.start()
    await is_whole(served)
    yield served
    await served.stop()


class Client:
    """A connection to the worker that does not own the upstream."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def ask(self, path: str) -> int:
        """Sends a GET; returns the length of its body, whose answer must be a success."""
        self._writer.write(f"GET {path} HTTP/1.1\r\nHost: mirror.test\r\n\r\n".encode())
        async with asyncio.timeout(PATIENCE):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        assert head.startswith("HTTP/1.1 200"), head
        self.cache = head.partition("X-Cache: ")[2].partition("\r\n")[0]
        return int(head.partition("Content-Length: ")[2].partition("\r\n")[0])

    async def take(self, count: int) -> bytes:
        """Exactly so much of the body."""
        async with asyncio.timeout(PATIENCE):
            return await self._reader.readexactly(count)

    async def get(self, path: str) -> bytes:
        """The whole body."""
        return await self.take(await self.ask(path))

    def close(self) -> None:
        """Leaves."""
        self._writer.close()


@contextlib.asynccontextmanager
async def clients_of_the_other(mirror: Served, count: int) -> AsyncIterator[list[Client]]:
    """Who connects while the owner stands still is taken by the other one."""
    clients: list[Client] = []
    async with standing_still(mirror.workers()[OWNER]):
        for _ in range(count):
            clients.append(Client(*await asyncio.open_connection("127.0.0.1", mirror.port)))
            await clients[-1].get("/v2/")
    try:
        yield clients
    finally:
        for client in clients:
            client.close()


async def test_a_killed_owner_costs_the_others_clients_no_byte(mirror: Served, upstream: FakeRegistry) -> None:
    """In the middle of a blob: they go on in the file that it left, and it is fetched on from there, once."""
    blob = upstream.put_blob("library/demo", 16 * MIB)
    upstream.fault(blob, stall_at(6 * MIB), times=1)
    async with clients_of_the_other(mirror, 5) as clients:
        lengths = [await client.ask(blob_path("demo", blob)) for client in clients]
        parts = [await client.take(5 * MIB) for client in clients]

        os.kill(mirror.workers()[OWNER], signal.SIGKILL)

        for client, length, part in zip(clients, lengths, parts, strict=True):
            assert part + await client.take(length - len(part)) == blob.content
    assert upstream.requests_for(blob, method="GET") == 2
    assert upstream.bytes_for(blob) <= blob.size + MIB
    await is_whole(mirror)
    assert (await mirror.get(blob_path("demo", blob)))[2] == blob.content
    assert upstream.requests_for(blob, method="GET") == 2


async def test_an_owner_that_stands_still_in_the_middle_is_left(mirror: Served, upstream: FakeRegistry) -> None:
    """Two seconds without a word, and each of them goes on by itself; when it is back all is as before."""
    blob = upstream.put_blob("library/demo", 16 * MIB)
    rule = upstream.fault(blob, stall_at(6 * MIB), times=1)
    async with clients_of_the_other(mirror, 2) as clients:
        lengths = [await client.ask(blob_path("demo", blob)) for client in clients]
        parts = [await client.take(5 * MIB) for client in clients]

        async with standing_still(mirror.workers()[OWNER]):
            for client, length, part in zip(clients, lengths, parts, strict=True):
                assert part + await client.take(length - len(part)) == blob.content
        rule.release()
        assert await clients[0].get(blob_path("demo", blob)) == blob.content


async def test_an_owner_that_stands_still_is_bypassed(mirror: Served, upstream: FakeRegistry) -> None:
    """Its upstream is asked without it, and nothing is noted or kept; it is asked again as soon as it is back."""
    image = upstream.add_image("library/demo", "1")
    async with clients_of_the_other(mirror, 1) as [client]:
        async with standing_still(mirror.workers()[OWNER]):
            for _ in range(2):
                assert await client.get("/v2/demo/manifests/1") == image.manifest.content
                assert client.cache == "bypass"
                for blob in image.blobs:
                    assert await client.get(blob_path("demo", blob)) == blob.content
            assert [path for path in (mirror.data / "blobs").rglob("*") if path.is_file()] == []
        async with asyncio.timeout(PATIENCE):
            while client.cache == "bypass":
                assert await client.get("/v2/demo/manifests/1") == image.manifest.content
        assert await client.get("/v2/demo/manifests/1") == image.manifest.content
        assert client.cache == "hit"
    assert await counted(mirror, "mirror_peer_requests_total") > 0
    await until(lambda: warned_of(mirror) == {OWNER})


def warned_of(mirror: Served) -> set[int]:
    """The slots that a worker has done without, as far as its lines have come."""
    return {json.loads(line)["slot"] for line in mirror.lines if '"another worker does not answer' in line}

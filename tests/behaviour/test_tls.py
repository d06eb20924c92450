"""Over TLS everything is as it is without, and who does not get there costs little, and not for long."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from mirror.config import Timeouts
from tests.behaviour.test_sender import descriptors, nothing_left_open
from tests.certificates import MUTUAL, SERVER, client_tls
from tests.conftest import StartMirror
from tests.harness import RunningMirror, short_timeouts
from tests.lines import Lines, lines
from tests.raw import RawClient
from tests.reading import nothing_unheard
from tests.upstream import FakeRegistry, flip

__all__ = ["lines"]


@pytest.fixture(autouse=True)
async def heard() -> AsyncIterator[None]:
    """No test leaves an exception that nobody heard."""
    with nothing_unheard():
        yield


@asynccontextmanager
async def connected(
    mirror: RunningMirror, context: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection over TLS, as long as it is wanted."""
    reader, writer = await asyncio.open_connection("127.0.0.1", mirror.app.port, ssl=context or client_tls())
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str = "/v2/") -> bytes:
    """The head of the answer to a request."""
    writer.write(f"GET {path} HTTP/1.1\r\nHost: mirror\r\n\r\n".encode())
    return await reader.readuntil(b"\r\n\r\n")


async def counted(mirror: RunningMirror, connections: int, limit: float = 10) -> None:
    """Waits until so many connections count."""
    async with asyncio.timeout(limit):
        while mirror.metric("mirror_connections") != connections:  # noqa: ASYNC110 - gauges send no events
            await asyncio.sleep(0.01)


async def test_bytes_are_right_wherever_they_are(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """Parts and wholes of blobs in a file, on their way through a spool, and passing through memory."""
    chance = random.Random(3)
    upstream.rate = 40 << 20
    for storage in ({}, {"max_size": 1 << 20}):
        mirror = await start_mirror(timeouts=Timeouts(), storage=storage, tls=SERVER)
        blob = upstream.put_blob("library/demo", 2_000_000 + chance.randrange(500_000))
        first, last = sorted((chance.randrange(blob.size), chance.randrange(blob.size)))
        for _ in range(2):  # cold and joining, then as warm as it gets
            replies = await asyncio.gather(
                *(mirror.blob("demo", blob.digest) for _ in range(4)),
                *(mirror.blob("demo", blob.digest, Range=f"bytes={first}-{last}") for _ in range(4)),
            )
            assert all((reply.status, reply.body) == (200, blob.content) for reply in replies[:4])
            part = blob.read(first, last - first + 1)
            assert all((reply.status, reply.body) == (206, part) for reply in replies[4:])
            await mirror.quiet()


@pytest.mark.parametrize("minimum", ["1.2", "1.3"])
async def test_no_older_version_is_spoken_than_the_minimum(start_mirror: StartMirror, minimum: str) -> None:
    """Who knows only older ones does not get in; who knows the minimum or a newer one does; HTTP/1.1 is agreed on."""
    mirror = await start_mirror(tls=SERVER.model_copy(update={"minimum": minimum}))
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = client_tls()
        context.minimum_version = context.maximum_version = version
        context.set_alpn_protocols(["h2", "http/1.1"])
        if version is ssl.TLSVersion.TLSv1_2 and minimum == "1.3":
            with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
                async with connected(mirror, context):
                    pass
            continue
        async with connected(mirror, context) as (reader, writer):
            assert (await ask(reader, writer)).startswith(b"HTTP/1.1 200 ")
            spoken = writer.get_extra_info("ssl_object")
            assert spoken.version() == f"TLSv{version.name[-3:].replace('_', '.')}"
            assert spoken.selected_alpn_protocol() == "http/1.1"


async def test_only_clients_with_a_certificate_of_the_client_ca_are_served(start_mirror: StartMirror) -> None:
    """Others hear so from TLS, and get no byte of HTTP."""
    mirror = await start_mirror(tls=MUTUAL)
    async with connected(mirror, client_tls(certificate=True)) as (reader, writer):
        assert (await ask(reader, writer)).startswith(b"HTTP/1.1 200 ")
    async with connected(mirror) as (reader, writer):
        with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
            await ask(reader, writer)
    await counted(mirror, 0)


async def test_plain_http_on_the_port_is_told_to_use_https(start_mirror: StartMirror, lines: Lines) -> None:
    """It is a 400 that can be read, ended by a FIN, and counted as what is no request."""
    mirror = await start_mirror(tls=SERVER)
    async with await RawClient.connect(mirror.app.port) as client:
        await client.ask("/v2/")
        status, error = await client.error()
        assert (status, error["message"]) == (400, "this port speaks TLS: use https://")
        assert await client.rest() == b""
    assert mirror.metric("mirror_requests_total", status="400", result="refused") == 1
    assert lines.troubles() == []


@pytest.mark.parametrize("said", [b"", b"\x16", b"\x16\x03\x01\x00\xff\x01"])
async def test_a_handshake_that_never_ends_is_ended(start_mirror: StartMirror, said: bytes) -> None:
    """It counts as a connection for `timeouts.request`, whatever has been said, and is nothing after that."""
    mirror = await start_mirror(tls=SERVER, timeouts=short_timeouts(request=0.5))
    before = descriptors()
    async with await RawClient.connect(mirror.app.port) as client:
        await client.send(said)
        await counted(mirror, 1)
        try:
            async with asyncio.timeout(10):
                await client.rest()
        except ConnectionResetError:
            pass  # what was said has not been read
    await counted(mirror, 0)
    await nothing_left_open(before)


async def test_who_leaves_in_the_handshake_leaves_nothing(start_mirror: StartMirror, lines: Lines) -> None:
    """Neither a count, nor a descriptor, nor a complaint, at whatever point that happens."""
    mirror = await start_mirror(tls=SERVER)
    before = descriptors()
    for said in (
        b"",
        b"\x16",
        b"\x16\x03\x01\x00\xff\x01",
        b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00",
        b"\x17garbage",
    ):
        for leave in (RawClient.close, RawClient.reset, RawClient.end):
            async with await RawClient.connect(mirror.app.port) as client:
                await client.send(said)
                leave(client)
    await counted(mirror, 0)
    await nothing_left_open(before)
    assert (await mirror.get("/v2/")).status == 200
    assert lines.troubles() == []


@pytest.mark.parametrize("which", ["max_connections", "max_connections_per_client"])
async def test_limits_on_connections_hold_from_the_first_byte_on(start_mirror: StartMirror, which: str) -> None:
    """Who only begins counts as well; one too many hears a 503 over TLS, and there is a place once somebody leaves."""
    mirror = await start_mirror(tls=SERVER, **{which: 3})
    silent = [await RawClient.connect(mirror.app.port) for _ in range(2)]
    async with connected(mirror) as (reader, writer):
        assert (await ask(reader, writer)).startswith(b"HTTP/1.1 200 ")
        await counted(mirror, 3)
        async with connected(mirror) as refused:
            assert (await ask(*refused)).startswith(b"HTTP/1.1 503 ")
            assert (await refused[0].read()).startswith(b'{"errors"')
        for client in silent:
            client.close()
        await counted(mirror, 1)
        assert (await mirror.get("/v2/")).status == 200
    assert mirror.metric("mirror_connections_refused_total") == 1


async def test_an_answer_that_breaks_off_ends_short_of_its_length(
    start_mirror: StartMirror, upstream: FakeRegistry
) -> None:
    """The client is told in good order that nothing more comes, at less than was promised."""
    mirror = await start_mirror(tls=SERVER)
    blob = upstream.put_blob("library/demo", 600_000)
    upstream.fault(blob, flip(300_000))
    async with connected(mirror) as (reader, writer):
        head = await ask(reader, writer, f"/v2/demo/blobs/{blob.digest}")
        assert f"content-length: {blob.size}".encode() in head.lower()
        async with asyncio.timeout(20):
            body = await reader.read(-1)
        assert 0 < len(body) < blob.size
    await counted(mirror, 0)


async def test_a_client_that_takes_nothing_is_cut_off(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """The kernel sees to that, over TLS as well; others are served meanwhile."""
    mirror = await start_mirror(tls=SERVER, timeouts=short_timeouts(client=2.0))
    blob = upstream.put_blob("library/demo", 30 << 20)
    async with connected(mirror) as (_, writer):
        writer.write(f"GET /v2/demo/blobs/{blob.digest} HTTP/1.1\r\nHost: mirror\r\n\r\n".encode())
        await counted(mirror, 1)
        assert (await mirror.blob("demo", blob.digest)).body == blob.content
        await mirror.session.close()
        await counted(mirror, 0, 15)
        await mirror.app.traffic.recorded()
        assert mirror.metric("mirror_requests_total", status="499") == 1


async def test_a_stop_waits_for_answers_and_not_for_handshakes(
    start_mirror: StartMirror, upstream: FakeRegistry
) -> None:
    """Who is being served is served to the end, who is on the way to be is cut off."""
    mirror = await start_mirror(tls=SERVER)
    blob = upstream.put_blob("library/demo", 3 << 20)
    upstream.rate = 6 << 20
    async with await RawClient.connect(mirror.app.port) as silent, connected(mirror) as (reader, writer):
        await ask(reader, writer, f"/v2/demo/blobs/{blob.digest}")
        stopping = asyncio.create_task(mirror.app.stop(grace=60))
        assert await silent.rest() == b""
        assert not stopping.done()
        assert await reader.readexactly(blob.size) == blob.content
        await stopping

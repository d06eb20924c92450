"""Clients that mount an image and read it piece by piece, each in its own way and within its own time limits.

The limits are those of the clients: one that has to wait longer fails as the real one does. The upstream is a slow one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest

from mirror.config import Timeouts
from tests.conftest import StartMirror
from tests.harness import Reply, RunningMirror
from tests.lines import Lines, lines
from tests.parts import read_parts
from tests.raw import RawClient
from tests.reading import Reading, blob_path
from tests.upstream import Blob, FakeRegistry, trickle

__all__ = ["lines"]

KIB = 1 << 10
MIB = 1 << 20
SIZE = 24 * MIB
Pairs = Sequence[tuple[int, int]]
PLACES: Pairs = [(SIZE - 51, SIZE - 1), (SIZE - 90_000, SIZE - 52), (0, 99), (21 * MIB, 21 * MIB + 200_000)]
"""First and last bytes: as a table of contents at the end leads to files anywhere."""
Client = Callable[[RunningMirror, Blob], Awaitable[None]]


def ranges(pairs: Pairs) -> str:
    """The Range header."""
    return "bytes=" + ",".join(f"{first}-{last}" for first, last in pairs)


async def get(mirror: RunningMirror, blob: Blob, method: str = "GET", *, headers_in: float, all_in: float = 30.0,
              **headers: str) -> Reply:  # fmt: skip
    """A request of a client that waits so many seconds for the headers, and for all."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with asyncio.timeout(all_in):
        async with asyncio.timeout(headers_in):
            response = await mirror.session.request(method, mirror.url + blob_path("demo", blob), headers=named)
        async with response:
            return Reply(response.status, response.headers, await response.read())


def check_range(reply: Reply, blob: Blob, first: int, last: int) -> None:
    """Exactly the bytes that were asked for: some clients take whatever comes for them."""
    assert (reply.status, reply.body) == (206, blob.read(first, last - first + 1))
    assert reply.headers["Content-Range"] == f"bytes {first}-{last}/{blob.size}"


async def several(mirror: RunningMirror, blob: Blob, pairs: Pairs, headers_in: float) -> None:
    """stargz and SOCI: several ranges in one request, read by what each part says of itself."""
    reply = await get(mirror, blob, headers_in=headers_in, Range=ranges(pairs), Accept_Encoding="identity")
    assert reply.status == 206
    parts = read_parts(reply.headers["Content-Type"], reply.body)
    assert [headers["Content-Range"] for headers, _ in parts] == [
        f"bytes {first}-{last}/{blob.size}" for first, last in pairs
    ]
    assert [data for _, data in parts] == [blob.read(first, last - first + 1) for first, last in pairs]


async def stargz(mirror: RunningMirror, blob: Blob) -> None:
    """Two bytes, then HEAD, then several ranges; 30 s for each, and again where a layer is checked every minute."""
    await _snapshotter(mirror, blob, headers_in=30)


async def soci(mirror: RunningMirror, blob: Blob) -> None:
    """The same, but headers within 3 s."""
    await _snapshotter(mirror, blob, headers_in=3)


async def _snapshotter(mirror: RunningMirror, blob: Blob, headers_in: float) -> None:
    first = await get(mirror, blob, headers_in=headers_in, Range="bytes=0-1", Accept_Encoding="identity")
    assert first.status in (200, 206)
    head = await get(mirror, blob, "HEAD", headers_in=headers_in)
    assert (head.status, head.headers["Content-Length"]) == (200, str(blob.size))
    await several(mirror, blob, PLACES[:2], headers_in)
    await several(mirror, blob, PLACES[2:], headers_in)
    again = await get(mirror, blob, headers_in=headers_in, Range="bytes=0-1", Accept_Encoding="identity")
    assert again.body == blob.read(0, 2)


async def nydus(mirror: RunningMirror, blob: Blob) -> None:
    """HEAD, then single ranges, each within 5 s, body and all; several of them at once."""
    head = await get(mirror, blob, "HEAD", headers_in=5, all_in=5)
    assert (head.status, head.headers["Content-Length"]) == (200, str(blob.size))

    async def read(first: int, last: int) -> None:
        reply = await get(mirror, blob, headers_in=5, all_in=5, Range=f"bytes={first}-{last}")
        check_range(reply, blob, first, last)

    await asyncio.gather(*(read(first, last) for first, last in PLACES))


async def overlaybd(mirror: RunningMirror, blob: Blob) -> None:
    """One byte, then the whole, which must be a 200 and is left after its headers, then single ranges."""
    reply = await get(mirror, blob, headers_in=30, Range="bytes=0-0")
    check_range(reply, blob, 0, 0)
    async with await RawClient.connect(mirror.app.port) as client:
        await client.ask(blob_path("demo", blob))
        head = await client.head()
        assert (head.status, head.length) == (200, blob.size)
        client.reset()
    for first, last in PLACES:
        check_range(await get(mirror, blob, headers_in=30, Range=f"bytes={first}-{last}"), blob, first, last)


async def chunked_zstd(mirror: RunningMirror, blob: Blob) -> None:
    """containers/image: the chunks that it lacks in one request, a part for each; for fewer after a 400."""
    footer = await get(mirror, blob, headers_in=30, Range=f"bytes={blob.size - 64}-{blob.size - 1}")
    check_range(footer, blob, blob.size - 64, blob.size - 1)
    step = blob.size // 1100
    pairs = [(number * step, number * step + number % 97) for number in range(1024)]
    reply = await get(mirror, blob, headers_in=30, Range=ranges(pairs))
    assert reply.status in (200, 206)
    boundary = reply.headers["Content-Type"].partition("multipart/byteranges; boundary=")[2].encode()
    assert reply.body.count(b"--" + boundary) == len(pairs) + 1
    start = 0
    for first, last in pairs:
        start = reply.body.index(b"\r\n\r\n", start) + 4
        end = start + last - first + 1
        assert reply.body[start:end] == blob.read(first, last - first + 1)
        start = end


CLIENTS = {client.__name__: client for client in (stargz, soci, nydus, overlaybd, chunked_zstd)}


@pytest.fixture
async def real(start_mirror: StartMirror, upstream: FakeRegistry) -> RunningMirror:
    """A mirror with the time limits of production, as the clients', before an upstream that is neither near nor fast:
    the whole blob would take it longer than most of them wait.
    """
    upstream.latency = 0.1
    upstream.rate = 4 * MIB
    return await start_mirror(timeouts=Timeouts())


@pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS.keys())
async def test_a_cold_blob_is_read_in_time(
    lines: Lines, real: RunningMirror, upstream: FakeRegistry, client: Client
) -> None:
    """Without waiting for the fill, of which there is one, and without a complaint."""
    blob = upstream.put_blob("library/demo", 2 * MIB if client is chunked_zstd else SIZE)

    await client(real, blob)

    assert sum("Range" not in seen.headers for seen in upstream.select(blob, method="GET")) == 1
    assert upstream.count(blob) <= 50
    assert lines.troubles() == []


@pytest.mark.parametrize("client", [stargz, soci, nydus, overlaybd])
async def test_a_blob_on_its_way_is_read_in_time(real: RunningMirror, upstream: FakeRegistry, client: Client) -> None:
    """While somebody pulls the whole."""
    blob = upstream.put_blob("library/demo", SIZE)
    async with await Reading.ask(real, blob_path("demo", blob)) as whole:
        await whole.take(100_000)

        await client(real, blob)


@pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS.keys())
async def test_a_held_blob_is_read_without_the_upstream(
    real: RunningMirror, upstream: FakeRegistry, client: Client
) -> None:
    """It may be gone."""
    upstream.rate = None
    blob = upstream.put_blob("library/demo", SIZE)
    assert (await real.blob("demo", blob.digest)).status == 200
    await real.quiet()
    await upstream.stop()

    await client(real, blob)


async def test_single_ranges_follow_a_refused_list(real: RunningMirror, upstream: FakeRegistry) -> None:
    """stargz after a 400, for more than there is: the same bytes, one by one."""
    blob = upstream.put_blob("library/demo", SIZE)

    refused = await get(real, blob, headers_in=30, Range=ranges([*PLACES, (0, SIZE - 1)]), Accept_Encoding="identity")

    assert (refused.status, refused.code) == (400, "UNSUPPORTED")
    for first, last in PLACES:
        check_range(await get(real, blob, headers_in=30, Range=f"bytes={first}-{last}"), blob, first, last)


async def test_a_slow_fill_keeps_no_small_range(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """nydus close behind a fill that creeps: what would come too late with it comes by a request of its own."""
    mirror = await start_mirror(timeouts=Timeouts())
    blob = upstream.put_blob("library/demo", SIZE)
    fill = upstream.fault(blob, trickle(60 * KIB), times=1)
    async with await Reading.ask(mirror, blob_path("demo", blob)) as whole:
        await whole.take(90 * KIB)

        reply = await get(mirror, blob, headers_in=5, all_in=5, Range=f"bytes={100 * KIB}-{600 * KIB}")

        check_range(reply, blob, 100 * KIB, 600 * KIB)
    assert fill.hits == 1

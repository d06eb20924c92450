"""containerd 2 with concurrent_layer_fetch_buffer: open-ended ranges at rising offsets on everything, each connection
reset after its chunk. Nothing fails, nothing is complained about, and the upstream gives each blob once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from mirror.config import Timeouts
from tests.conftest import StartMirror
from tests.harness import RunningMirror, short_timeouts
from tests.lines import Lines, lines
from tests.raw import Head, RawClient
from tests.reading import Reading, blob_path, left_behind, nothing_unheard, settled
from tests.upstream import Blob, FakeRegistry, Image, redirect, reset, stall_at, truncate

__all__ = ["lines"]

KIB = 1 << 10
MIB = 1 << 20
SHORT = short_timeouts(cold_head=0.15)
"""`cold_head` is small beside what a slow upstream takes for the chunks that are asked for ahead."""


@pytest.fixture(autouse=True)
async def heard() -> AsyncIterator[None]:
    """No test leaves an exception that nobody heard."""
    with nothing_unheard():
        yield


class Containerd:
    """Its fetcher: `parallel` workers that take the next chunk, in order; all it asks for it asks with a range.

    The first answer tells the length; its connection gives the first chunk.
    """

    def __init__(self, mirror: RunningMirror, chunk: int, parallel: int = 3) -> None:
        self._mirror = mirror
        self._chunk = chunk
        self._parallel = parallel

    async def fetch(self, path: str) -> bytes:
        """The whole of a manifest or blob, made of its chunks."""
        first = await RawClient.connect(self._mirror.app.port)
        head = await self._ask(first, path, 0)
        size = head.length
        numbers = iter(range(0, size, self._chunk))
        opened: dict[int, RawClient] = {0: first}
        chunks: dict[int, bytes] = {}

        async def work() -> None:
            for offset in numbers:
                client = opened.pop(offset, None)
                if client is None:
                    client = await RawClient.connect(self._mirror.app.port)
                    head = await self._ask(client, path, offset)
                    assert head.headers["Content-Range"] == f"bytes {offset}-{size - 1}/{size}"
                chunks[offset] = await client.read(min(self._chunk, size - offset))
                client.reset()

        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            for _ in range(self._parallel):
                group.create_task(work())
        return b"".join(chunks[offset] for offset in sorted(chunks))

    async def _ask(self, client: RawClient, path: str, offset: int) -> Head:
        encodings = "zstd;q=1.0, gzip;q=0.8, deflate;q=0.5"
        await client.ask(path, Range=f"bytes={offset}-", Accept_Encoding=encodings)
        head = await client.head()
        assert head.status == 206
        assert "Content-Encoding" not in head.headers
        return head


async def check(mirror: RunningMirror, upstream: FakeRegistry, blob: Blob, lines: Lines, most: float = 1.1) -> None:
    """Nothing is left, the upstream has given the blob once, and nobody complained."""
    await settled(mirror)
    assert left_behind(mirror) == {}
    assert upstream.bytes_for(blob) <= most * blob.size
    assert (await mirror.blob("demo", blob.digest)).cache == "hit"
    assert lines.troubles() == []
    assert not [line for line in lines.access() if line.get("status", 0) >= 500]


@pytest.mark.parametrize("clients", [1, 4])
@pytest.mark.parametrize("chunk", [5000, 64 * KIB, 512 * KIB, MIB])
async def test_a_cold_blob_of_a_few_mib(
    lines: Lines, mirror: RunningMirror, upstream: FakeRegistry, chunk: int, clients: int
) -> None:
    """By chunks of any size, by one client or by several at once."""
    blob = upstream.put_blob("library/demo", 100 * chunk // 7 if chunk < MIB else 5 * MIB + 1234)

    for content in await asyncio.gather(
        *(Containerd(mirror, chunk).fetch(blob_path("demo", blob)) for _ in range(clients))
    ):
        assert content == blob.content

    await check(mirror, upstream, blob, lines)


@pytest.mark.parametrize("clients", [1, 3])
async def test_a_slow_upstream(lines: Lines, start_mirror: StartMirror, upstream: FakeRegistry, clients: int) -> None:
    """Chunks are asked for long before the fill gets there: they wait for it, they do not overtake it."""
    mirror = await start_mirror(timeouts=SHORT)
    upstream.rate = 3 * MIB
    upstream.latency = 0.05
    blob = upstream.put_blob("library/demo", 2 * MIB + 999)

    async def pull(number: int) -> bytes:
        await asyncio.sleep(number * 0.1)
        return await Containerd(mirror, 256 * KIB, parallel=6).fetch(blob_path("demo", blob))

    assert await asyncio.gather(*map(pull, range(clients))) == [blob.content] * clients
    assert upstream.requests_for(blob) == 1
    await check(mirror, upstream, blob, lines, most=1)


@pytest.mark.parametrize("at", [0, 300_000])
async def test_an_upstream_that_pauses(
    lines: Lines, start_mirror: StartMirror, upstream: FakeRegistry, at: int
) -> None:
    """Longer than a client with a hurry would wait: the chunks come when the fill does."""
    mirror = await start_mirror(timeouts=short_timeouts(cold_head=0.15, stall=10))
    blob = upstream.put_blob("library/demo", MIB)
    held = upstream.fault(blob, stall_at(at), times=1)

    pull = asyncio.create_task(Containerd(mirror, 100 * KIB).fetch(blob_path("demo", blob)))
    await held.reached.wait()
    await asyncio.sleep(0.5)  # a few times `cold_head`
    held.release()

    assert await pull == blob.content
    assert upstream.requests_for(blob) == 1
    await check(mirror, upstream, blob, lines, most=1)


@pytest.mark.parametrize("fault", [reset(700_000), truncate(700_000)], ids=["RST", "FIN"])
async def test_an_upstream_that_breaks(
    lines: Lines, mirror: RunningMirror, upstream: FakeRegistry, fault: object
) -> None:
    """Resumed for all of them, by one request."""
    blob = upstream.put_blob("library/demo", 2 * MIB)
    upstream.fault(blob, fault, times=1)  # type: ignore[arg-type]  # parametrized

    for content in await asyncio.gather(
        *(Containerd(mirror, 256 * KIB).fetch(blob_path("demo", blob)) for _ in range(2))
    ):
        assert content == blob.content

    assert upstream.requests_for(blob) == 2
    await check(mirror, upstream, blob, lines)


async def test_an_upstream_that_redirects(lines: Lines, mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """To signed URLs: once."""
    blob = upstream.put_blob("library/demo", 2 * MIB)
    upstream.fault(blob, redirect())

    assert await Containerd(mirror, 256 * KIB).fetch(blob_path("demo", blob)) == blob.content

    assert upstream.count(blob, origin="cdn") == 1
    await check(mirror, upstream, blob, lines)


async def test_a_fill_that_somebody_else_began(lines: Lines, start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """Whoever began it leaves early: it goes on, though there are moments in which no chunk is being read."""
    mirror = await start_mirror(timeouts=SHORT, abandon_below=8 * MIB)
    blob = upstream.put_blob("library/demo", MIB)
    held = upstream.fault(blob, stall_at(200_000), times=1)
    path = blob_path("demo", blob)

    async with await Reading.ask(mirror, path) as whole:
        await whole.take(1000)
        async with await RawClient.connect(mirror.app.port) as client:
            await client.ask(path, Range="bytes=0-")
            await client.head()
            await client.read(100_000)
            client.reset()
    await mirror.app.traffic.recorded()
    assert len(mirror.app.downloads.all) == 1
    held.release()

    assert await Containerd(mirror, 100_000).fetch(path) == blob.content
    assert upstream.requests_for(blob) == 1
    await check(mirror, upstream, blob, lines, most=1)


async def test_an_image(lines: Lines, start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """HEAD of the tag, then manifest, config and layers by open ranges, layers in parallel; warm the second time."""
    mirror = await start_mirror(timeouts=Timeouts())
    image = upstream.add_image("library/demo", "1", layers=[3 * MIB, 700_000, 1, 5000])

    for _ in range(2):
        await _pull(mirror, image)
        await settled(mirror)
        asked = len(upstream.content_requests())
        assert all(upstream.bytes_for(blob) <= blob.size for blob in image.blobs)
    assert asked == 1 + len(image.blobs) + 1
    assert lines.troubles() == []


async def _pull(mirror: RunningMirror, image: Image) -> None:
    containerd = Containerd(mirror, 512 * KIB)
    head = await mirror.manifest("demo", "1", method="HEAD")
    assert head.headers["Docker-Content-Digest"] == str(image.digest)
    assert await containerd.fetch(f"/v2/demo/manifests/{image.digest}") == image.manifest.content
    contents = await asyncio.gather(*(containerd.fetch(blob_path("demo", blob)) for blob in image.blobs))
    assert contents == [blob.content for blob in image.blobs]


async def test_without_room_nothing_fails(lines: Lines, start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """A blob that cannot be kept is fetched by the chunks themselves."""
    mirror = await start_mirror(timeouts=SHORT, storage={"max_size": MIB})
    blob = upstream.put_blob("library/demo", 3 * MIB)

    assert await Containerd(mirror, 512 * KIB).fetch(blob_path("demo", blob)) == blob.content

    await settled(mirror)
    assert left_behind(mirror) == {}
    assert lines.troubles() == []

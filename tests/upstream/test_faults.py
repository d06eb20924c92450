"""Each switch of `faults` spoils the way an answer travels exactly as it says."""

from __future__ import annotations

import asyncio
import gzip
from typing import Literal

import aiohttp
import pytest
from yarl import URL

from tests.upstream import (
    ANY,
    FakeRegistry,
    Fault,
    delay,
    flip,
    garbage,
    gzipped,
    header,
    ignore_range,
    no_length,
    redirect,
    refuse,
    reset,
    stall,
    stall_at,
    status,
    too_much,
    trickle,
    truncate,
    unasked_206,
    wrong_206,
    wrong_length,
)
from tests.upstream.conftest import ask_raw

SIZE = 100_000


async def test_refuse(upstream: FakeRegistry) -> None:
    """The connection is closed in order before any byte."""
    upstream.fault(ANY, refuse())
    answer = await ask_raw(upstream, upstream.url + "/v2/")
    assert (answer.head, answer.body, answer.ending) == ([], b"", "fin")
    assert upstream.requests[0].status is None


@pytest.mark.parametrize("at", [None, 0, 1, 70_000, -1])
async def test_reset(upstream: FakeRegistry, at: int | None) -> None:
    """RST comes before the headers, or after exactly so many body bytes."""
    blob = upstream.put_blob("x", SIZE)
    upstream.fault(blob, reset(at))
    answer = await ask_raw(upstream, upstream.blob_url("x", blob))
    assert answer.ending == "rst"
    assert answer.status == (0 if at is None else 200)
    assert answer.body == (b"" if at is None else blob.content[:at])
    assert upstream.bytes_for(blob) == len(answer.body)


async def test_reset_far_into_the_body(upstream: FakeRegistry) -> None:
    """What was counted as sent reaches a receiver that is slower than the sender, whatever the buffers hold."""
    blob = upstream.put_blob("x", 12_000_000)
    upstream.fault(blob, reset(10_000_003))
    answer = await ask_raw(upstream, upstream.blob_url("x", blob), piece=4096)
    assert answer.ending == "rst"
    assert len(answer.body) == upstream.bytes_for(blob) == 10_000_003


@pytest.mark.parametrize("at", [0, 1, 70_000, -1])
async def test_truncate_short_of_the_length(upstream: FakeRegistry, at: int) -> None:
    """FIN comes short of the Content-Length that was promised."""
    blob = upstream.put_blob("x", SIZE)
    upstream.fault(blob, truncate(at=at))
    answer = await ask_raw(upstream, upstream.blob_url("x", blob))
    assert (answer.body, answer.ending) == (blob.content[:at], "fin")
    assert answer.headers["content-length"] == str(SIZE)


async def test_truncate_without_length(upstream: FakeRegistry, client: aiohttp.ClientSession) -> None:
    """A close-delimited or wrongly ended chunked body looks whole; a chunked one without its last chunk does not."""
    blob = upstream.put_blob("x", SIZE)
    url = upstream.blob_url("x", blob)
    looks_whole: list[Literal["close", "chunked-complete"]] = ["close", "chunked-complete"]
    for framing in looks_whole:
        rule = upstream.fault(blob, truncate(at=1000, framing=framing))
        async with client.get(url) as response:
            assert response.content_length is None
            assert await response.read() == blob.content[:1000]
        rule.remove()
    upstream.fault(blob, truncate(at=1000, framing="chunked"))
    async with client.get(url) as response:
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


async def test_stall_before_headers(upstream: FakeRegistry, client: aiohttp.ClientSession) -> None:
    """Nothing comes until the stall is released; then the honest answer."""
    blob = upstream.put_blob("x", SIZE)
    held = upstream.fault(blob, stall())
    asking = asyncio.create_task(client.get(upstream.blob_url("x", blob)))
    await held.reached.wait()
    assert upstream.requests[0].status is None
    assert not asking.done()
    held.release()
    async with await asking as response:
        assert await response.read() == blob.content


async def test_stall_in_the_body(upstream: FakeRegistry, client: aiohttp.ClientSession) -> None:
    """Exactly so many bytes come, then none until the stall is released; requests after that are not held."""
    blob = upstream.put_blob("x", SIZE)
    held = upstream.fault(blob, stall_at(4096))
    async with client.get(upstream.blob_url("x", blob)) as response:
        assert await response.content.readexactly(4096) == blob.content[:4096]
        await held.reached.wait()
        assert upstream.bytes_for(blob) == 4096
        held.release()
        assert await response.read() == blob.content[4096:]
    async with client.get(upstream.blob_url("x", blob)) as response:
        assert await response.read() == blob.content


async def test_delay(upstream: FakeRegistry, client: aiohttp.ClientSession) -> None:
    """Headers wait for the delay; a long one ends when it is released."""
    loop = asyncio.get_running_loop()
    rule = upstream.fault(ANY, delay(0.05))
    began = loop.time()
    await client.get(upstream.url + "/v2/")
    assert loop.time() - began >= 0.05
    rule.remove()
    long = upstream.fault(ANY, delay(3600))
    asking = asyncio.create_task(client.get(upstream.url + "/v2/"))
    await long.reached.wait()
    long.release()
    assert (await asking).status == 200


async def test_trickle(upstream: FakeRegistry, client: aiohttp.ClientSession) -> None:
    """The body comes in small pieces, no faster than the rate."""
    loop = asyncio.get_running_loop()
    blob = upstream.put_blob("x", 1000)
    upstream.fault(blob, trickle(10_000))
    began = loop.time()
    async with client.get(upstream.blob_url("x", blob)) as response:
        assert await response.content.readexactly(500) == blob.content[:500]
        assert upstream.bytes_for(blob) < 1000
        await response.read()
    assert loop.time() - began >= 0.05


@pytest.mark.parametrize("at", [0, 70_000, -1])
async def test_flip(upstream: FakeRegistry, client: aiohttp.ClientSession, at: int) -> None:
    """One byte of the content is wrong in every answer that carries it, and in no other."""
    blob = upstream.put_blob("x", SIZE)
    upstream.fault(blob, flip(at))
    where = at % SIZE
    bad = bytearray(blob.content)
    bad[where] ^= 0xFF
    url = upstream.blob_url("x", blob)
    async with client.get(url) as response:
        assert await response.read() == bad
    async with client.get(url, headers={"Range": f"bytes={where}-{where}"}) as response:
        assert await response.read() == bad[where : where + 1]
    async with client.get(url, headers={"Range": "bytes=1000-1999"}) as response:
        assert await response.read() == blob.content[1000:2000]


@pytest.mark.parametrize("framing", ["length", "declared", "chunked", "close"])
async def test_too_much(upstream: FakeRegistry, framing: Literal["length", "declared", "chunked", "close"]) -> None:
    """All of the content comes, and more after it."""
    blob = upstream.put_blob("x", 1000)
    upstream.fault(blob, too_much(50, framing))
    answer = await ask_raw(upstream, upstream.blob_url("x", blob))
    declared = {"length": "1000", "declared": "1050"}.get(framing)
    assert answer.headers.get("content-length") == declared
    assert blob.content in answer.body
    assert upstream.bytes_for(blob) == 1050


async def test_no_length(upstream: FakeRegistry, client: aiohttp.ClientSession) -> None:
    """The body is whole without a Content-Length, in chunks or until the end; HEAD has none either."""
    blob = upstream.put_blob("x", SIZE)
    url = upstream.blob_url("x", blob)
    framings: list[Literal["chunked", "close"]] = ["chunked", "close"]
    for framing in framings:
        rule = upstream.fault(blob, no_length(framing))
        async with client.get(url) as response:
            assert "Content-Length" not in response.headers
            assert (response.headers.get("Transfer-Encoding") == "chunked") == (framing == "chunked")
            assert await response.read() == blob.content
        async with client.head(url) as response:
            assert "Content-Length" not in response.headers
        rule.remove()


async def test_wrong_length(upstream: FakeRegistry, client: aiohttp.ClientSession) -> None:
    """HEAD doubles the length, GET is honest."""
    blob = upstream.put_blob("x", SIZE)
    upstream.fault(blob, wrong_length())
    async with client.head(upstream.blob_url("x", blob)) as response:
        assert response.content_length == 2 * SIZE
    async with client.get(upstream.blob_url("x", blob)) as response:
        assert await response.read() == blob.content


async def test_gzipped(upstream: FakeRegistry, client: aiohttp.ClientSession) -> None:
    """The body is compressed and labelled, although identity was asked for."""
    blob = upstream.put_blob("x", b"a" * SIZE)
    upstream.fault(blob, gzipped())
    async with client.get(upstream.blob_url("x", blob), headers={"Accept-Encoding": "identity"}) as response:
        assert response.headers["Content-Encoding"] == "gzip"
        data = await response.read()
    assert response.content_length == len(data) < SIZE
    assert gzip.decompress(data) == blob.content


async def test_ignore_range(upstream: FakeRegistry, client: aiohttp.ClientSession) -> None:
    """A ranged request gets 200 and everything; an unranged one does not use the fault up."""
    blob = upstream.put_blob("x", SIZE)
    rule = upstream.fault(blob, ignore_range(), times=1)
    url = upstream.blob_url("x", blob)
    await (await client.get(url)).read()
    assert rule.hits == 0
    for expected in (200, 206):
        async with client.get(url, headers={"Range": "bytes=10-19"}) as response:
            assert response.status == expected
            assert response.content_length == (SIZE if expected == 200 else 10)


@pytest.mark.parametrize(
    ("how", "content_range", "first", "length"),
    [
        ("start", "bytes 11-20/100", 11, 10),
        ("end", "bytes 10-18/100", 10, 9),
        ("total", "bytes 10-19/101", 10, 10),
        ("missing", None, 10, 10),
        ("star", "bytes 10-19/*", 10, 10),
        ("shifted", "bytes 10-19/100", 11, 10),
    ],
)
async def test_wrong_206(
    upstream: FakeRegistry,
    client: aiohttp.ClientSession,
    how: Literal["start", "end", "total", "missing", "star", "shifted"],
    content_range: str | None,
    first: int,
    length: int,
) -> None:
    """A 206 is off in its header, in its bytes, or in both."""
    blob = upstream.put_blob("x", 100)
    upstream.fault(blob, wrong_206(how))
    async with client.get(upstream.blob_url("x", blob), headers={"Range": "bytes=10-19"}) as response:
        assert response.status == 206
        assert response.headers.get("Content-Range") == content_range
        assert await response.read() == blob.content[first : first + length]


async def test_unasked_206(upstream: FakeRegistry, client: aiohttp.ClientSession) -> None:
    """An unranged GET gets 206; a ranged one is answered honestly."""
    blob = upstream.put_blob("x", 100)
    rule = upstream.fault(blob, unasked_206())
    async with client.get(upstream.blob_url("x", blob)) as response:
        assert (response.status, response.headers["Content-Range"]) == (206, "bytes 0-99/100")
    async with client.get(upstream.blob_url("x", blob), headers={"Range": "bytes=0-4"}) as response:
        assert response.headers["Content-Range"] == "bytes 0-4/100"
    assert rule.hits == 1


async def test_garbage(upstream: FakeRegistry, client: aiohttp.ClientSession) -> None:
    """What comes is no HTTP."""
    upstream.fault(ANY, garbage())
    with pytest.raises(aiohttp.ClientError):
        await client.get(upstream.url + "/v2/")


async def test_faults_are_aimed(upstream: FakeRegistry, client: aiohttp.ClientSession) -> None:
    """Target, method, times, skip and condition choose the requests that a fault meets."""
    image = upstream.add_image("x", "1")
    other = upstream.add_image("y", "1")
    by_tag, by_digest = upstream.manifest_url("x", "1"), upstream.manifest_url("x", image)

    async def meets(fault: Fault, url: str, method: str = "GET", **headers: str) -> bool:
        async with client.request(method, url, headers=headers) as response:
            return response.status == 418 and fault.name in upstream.requests[-1].faults

    teapot = status(418)
    upstream.fault("x:1", teapot, times=1, skip=1)
    assert [await meets(teapot, by_tag) for _ in range(3)] == [False, True, False]
    rule = upstream.fault("x:1", teapot)
    assert not await meets(teapot, by_digest)
    rule.remove()
    rule = upstream.fault(image, teapot, method="HEAD")
    assert await meets(teapot, by_digest, "HEAD")
    assert await meets(teapot, by_tag, "HEAD")
    assert not await meets(teapot, by_tag)
    assert not await meets(teapot, upstream.manifest_url("y", other), "HEAD")
    assert rule.hits == 2
    upstream.clear_faults()
    upstream.fault("/v2/y/*", teapot, when=lambda seen: "x-please" in seen.headers)
    assert not await meets(teapot, upstream.manifest_url("y", "1"))
    assert await meets(teapot, upstream.manifest_url("y", "1"), **{"X-Please": "1"})
    upstream.clear_faults()
    upstream.fault("x", teapot, kind="tags")
    assert await meets(teapot, upstream.url + "/v2/x/tags/list")
    assert not await meets(teapot, by_tag)


async def test_body_faults_leave_head_alone(upstream: FakeRegistry, client: aiohttp.ClientSession) -> None:
    """A HEAD does not use up a fault of the body."""
    blob = upstream.put_blob("x", SIZE)
    rule = upstream.fault(blob, truncate(at=10), times=1)
    await client.head(upstream.blob_url("x", blob))
    assert rule.hits == 0


async def test_faults_compose(upstream: FakeRegistry, client: aiohttp.ClientSession) -> None:
    """Faults of several rules meet in one answer; those of the CDN are its own."""
    blob = upstream.put_blob("x", SIZE)
    held = upstream.fault(blob, stall())
    upstream.fault(blob, redirect())
    upstream.fault(blob, header("X-Odd", "1"))
    upstream.fault(blob, truncate(at=10), origin="cdn")
    upstream.fault(blob, flip(5), origin="cdn")
    asking = asyncio.create_task(client.get(upstream.blob_url("x", blob), allow_redirects=False))
    await held.reached.wait()
    held.release()
    async with await asking as response:
        assert response.status == 307
        assert response.headers["X-Odd"] == "1"
        location = response.headers["Location"]
    async with client.get(URL(location, encoded=True)) as response:
        got = await response.content.readexactly(10)
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
    assert got[:5] == blob.content[:5]
    assert got[5] == blob.content[5] ^ 0xFF
    assert upstream.requests_for(blob) == 1
    assert upstream.count(blob, origin="cdn") == 1
    assert upstream.bytes_for(blob) == 10

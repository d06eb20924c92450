"""The fake is an honest registry until it is told otherwise."""

from __future__ import annotations

import asyncio
import gzip
import hashlib

import aiohttp
import pytest

from tests.upstream import ANY, FakeRegistry, Pattern, Seen, stall_at, status, tar_layer
from tests.upstream.certificates import client_tls, server_tls
from tests.upstream.fixtures import StartUpstream


async def test_image_by_tag_and_digest(upstream: FakeRegistry, client: aiohttp.ClientSession) -> None:
    """A manifest is served by tag and by digest, with type, length and digest, and its blobs are where it says."""
    image = upstream.add_image("library/demo", "1", layers=[200_000, 1000])
    for reference in ("1", image):
        async with client.get(upstream.manifest_url("library/demo", reference)) as response:
            assert response.status == 200
            assert await response.read() == image.manifest.content
            assert response.headers["Content-Type"] == image.manifest.media_type
            assert response.headers["Docker-Content-Digest"] == str(image.digest)
            assert response.content_length == image.manifest.size
    for blob in image.blobs:
        async with client.get(upstream.blob_url("library/demo", blob)) as response:
            data = await response.read()
        assert data == blob.content
        assert hashlib.sha256(data).hexdigest() == blob.digest.hex


async def test_head_equals_get_without_body(upstream: FakeRegistry, client: aiohttp.ClientSession) -> None:
    """HEAD has GET's headers, and the connection is used again."""
    image = upstream.add_image("library/demo", "1")
    urls = [upstream.manifest_url("library/demo", "1"), upstream.blob_url("library/demo", image.layers[0])]
    for url in urls:
        async with client.head(url) as head, client.get(url) as get:
            assert head.status == get.status == 200
            assert dict(head.headers) == dict(get.headers)
            assert await head.read() == b""
    assert upstream.connections <= 2


@pytest.mark.parametrize(
    ("header", "start", "end"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=100-299", 100, 299),
        ("bytes=900-", 900, 999),
        ("bytes=-5", 995, 999),
        ("bytes=990-5000", 990, 999),
    ],
)
async def test_ranges(upstream: FakeRegistry, client: aiohttp.ClientSession, header: str, start: int, end: int) -> None:
    """A single range is a 206 with its exact bytes and Content-Range."""
    blob = upstream.put_blob("a", 1000)
    async with client.get(upstream.blob_url("a", blob), headers={"Range": header}) as response:
        assert response.status == 206
        assert response.headers["Content-Range"] == f"bytes {start}-{end}/1000"
        assert await response.read() == blob.content[start : end + 1]


async def test_range_past_the_end(upstream: FakeRegistry, client: aiohttp.ClientSession) -> None:
    """A range that starts past the end is 416 with the length."""
    blob = upstream.put_blob("a", 1000)
    async with client.get(upstream.blob_url("a", blob), headers={"Range": "bytes=1000-"}) as response:
        assert response.status == 416
        assert response.headers["Content-Range"] == "bytes */1000"


async def test_what_is_missing(upstream: FakeRegistry, client: aiohttp.ClientSession) -> None:
    """Unknown repositories, tags and blobs have their own codes; a blob is served only by the repository it is in."""
    upstream.add_image("a", "1")
    blob = upstream.put_blob("b", 10)
    expected = {
        upstream.manifest_url("nowhere", "1"): (404, "NAME_UNKNOWN"),
        upstream.manifest_url("a", "2"): (404, "MANIFEST_UNKNOWN"),
        upstream.blob_url("a", blob): (404, "BLOB_UNKNOWN"),
        upstream.manifest_url("a", "sha256:bad"): (400, "DIGEST_INVALID"),
    }
    for url, (expected_status, code) in expected.items():
        async with client.get(url) as response:
            assert response.status == expected_status
            assert (await response.json())["errors"][0]["code"] == code
    async with client.put(upstream.manifest_url("a", "1"), data=b"{}") as response:
        assert response.status == 405
    async with client.get(upstream.url + "/v2/") as response:
        assert response.status == 200


async def test_tag_lists(start_upstream: StartUpstream, client: aiohttp.ClientSession) -> None:
    """Tags come sorted, in pages with a Link, after `last`; `n=0` is empty."""
    upstream = await start_upstream(page_size=2)
    for tag in ("c", "a", "b"):
        upstream.add_image("x", tag)
    async with client.get(upstream.url + "/v2/x/tags/list") as response:
        assert await response.json() == {"name": "x", "tags": ["a", "b"]}
        following = response.links["next"]["url"]
    async with client.get(following) as response:
        assert (await response.json())["tags"] == ["c"]
        assert "Link" not in response.headers
    async with client.get(upstream.url + "/v2/x/tags/list?n=0") as response:
        assert (await response.json())["tags"] == []
        assert "Link" not in response.headers
    upstream.link_style = "opaque"
    async with client.get(upstream.url + "/v2/x/tags/list?n=1") as response:
        assert str(response.links["next"]["url"]).endswith("?cursor=a")


async def test_tag_lists_of_other_registries(start_upstream: StartUpstream, client: aiohttp.ClientSession) -> None:
    """In the order of their pushes, with links that are absolute, elsewhere or misplaced, and with `last` ignored."""
    upstream = await start_upstream(page_size=2, tag_order="pushed", link_style="opaque")
    for tag in ("c", "a", "b"):
        upstream.add_image("x", tag)
    url = upstream.url + "/v2/x/tags/list"
    async with client.get(url) as response:
        assert (await response.json())["tags"] == ["c", "a"]
        following = response.links["next"]["url"]
    async with client.get(following) as response:
        assert (await response.json())["tags"] == ["b"]
    places = {"absolute": url, "elsewhere": f"{upstream.cdn_url}/v2/x/tags/list", "misplaced": "/wrong/v2/x/tags/list"}
    for upstream.link_style, place in places.items():
        async with client.get(url) as response:
            assert f"{place}?last=a&n=2" in response.headers["Link"]
    upstream.honours_last, upstream.tag_order = False, "sorted"
    async with client.get(f"{url}?last=b") as response:
        assert (await response.json())["tags"] == ["a", "b"]


async def test_referrers_in_pages(start_upstream: StartUpstream, client: aiohttp.ClientSession) -> None:
    """Lists of referrers have pages, too; a descriptor has the artifact's type and annotations."""
    upstream = await start_upstream(page_size=1, referrers=True)
    image = upstream.add_image("x", "1")
    artifact = {"artifactType": "a/b", "annotations": {"k": "v"}, "subject": image.manifest.descriptor}
    for number in range(2):
        upstream.put_manifest("x", {"schemaVersion": 2, **artifact, "number": number})
    async with client.get(f"{upstream.url}/v2/x/referrers/{image.digest}?artifactType=a/b") as response:
        (first,) = (await response.json())["manifests"]
        following = response.links["next"]["url"]
    async with client.get(following) as response:
        (second,) = (await response.json())["manifests"]
        assert "Link" not in response.headers
    assert first["digest"] != second["digest"]
    assert (first["artifactType"], first["annotations"]) == ("a/b", {"k": "v"})


async def test_referrers(start_upstream: StartUpstream, client: aiohttp.ClientSession) -> None:
    """With `referrers` on, what names a subject is listed under it; off, the endpoint does not exist."""
    upstream = await start_upstream(referrers=True)
    image = upstream.add_image("x", "1")
    signature = upstream.add_image("x", subject=image.manifest)
    url = f"{upstream.url}/v2/x/referrers/{image.digest}"
    async with client.get(url) as response:
        assert [one["digest"] for one in (await response.json())["manifests"]] == [str(signature.digest)]
    async with client.get(url + "?artifactType=none") as response:
        assert (await response.json())["manifests"] == []
        assert response.headers["OCI-Filters-Applied"] == "artifactType"
    upstream.referrers = False
    async with client.get(url) as response:
        assert response.status == 404


async def test_tags_move_and_vanish(upstream: FakeRegistry, client: aiohttp.ClientSession) -> None:
    """A moved tag means the other image at once; removed things are gone."""
    old, new = upstream.add_image("x", "1"), upstream.add_image("x", "2")
    upstream.move_tag("x", "1", new)
    async with client.head(upstream.manifest_url("x", "1")) as response:
        assert response.headers["Docker-Content-Digest"] == str(new.digest)
    upstream.remove("x", "2")
    upstream.remove("x", old)
    upstream.remove("x", old.layers[0])
    for url in (
        upstream.manifest_url("x", "2"),
        upstream.manifest_url("x", old),
        upstream.blob_url("x", old.layers[0]),
    ):
        async with client.get(url) as response:
            assert response.status == 404
    upstream.remove("x")
    async with client.get(upstream.manifest_url("x", "1")) as response:
        assert (await response.json())["errors"][0]["code"] == "NAME_UNKNOWN"


async def test_content_is_the_same_in_every_run(start_upstream: StartUpstream) -> None:
    """Two fakes filled alike hold the same digests; different names hold different ones."""
    one, other = await start_upstream(), await start_upstream()
    assert one.add_index("x", "1").digest == other.add_index("x", "1").digest
    assert one.add_image("x", "2").digest != one.add_image("y", "2").digest


def test_pattern_reads_anywhere() -> None:
    """Noise read in pieces is the noise read at once, and no shift by a block gives the same bytes."""
    pattern = Pattern("seed", 200_000)
    whole = pattern.read(0, 200_000)
    assert len(whole) == 200_000
    assert pattern.read(65_530, 70_000) == whole[65_530:135_530]
    assert pattern.read(199_999, 10) == whole[-1:]
    assert pattern.read(200_000, 10) == b""
    assert whole[:65_536] != whole[65_536:131_072]


async def test_real_layers(upstream: FakeRegistry, client: aiohttp.ClientSession) -> None:
    """A layer of files gives a config whose diff_id is that of the unpacked tar."""
    image = upstream.add_image("x", "1", layers=[tar_layer({"hello": b"#!/bin/sh\n"})], docker=True)
    assert image.layers[0].content[:2] == b"\x1f\x8b"
    unpacked = hashlib.sha256(gzip.decompress(image.layers[0].content)).hexdigest()
    assert f"sha256:{unpacked}" in image.config.content.decode()
    assert "docker" in image.manifest.media_type


async def test_everything_is_counted(upstream: FakeRegistry, client: aiohttp.ClientSession) -> None:
    """Requests and bytes are counted by what they were for, and forgotten on reset."""
    image = upstream.add_image("x", "1", layers=[5000])
    layer = image.layers[0]
    await (await client.head(upstream.manifest_url("x", "1"), headers={"User-Agent": "test/1"})).read()
    await (await client.get(upstream.blob_url("x", layer))).read()
    await (await client.get(upstream.blob_url("x", layer), headers={"Range": "bytes=0-9"})).read()
    await (await client.get(upstream.url + "/v2/")).read()
    assert upstream.count(kind="manifest", method="HEAD") == 1
    assert upstream.requests_for("x:1") == upstream.requests_for(image) == 1
    assert upstream.requests_for(layer) == upstream.requests_for(str(layer.digest)) == 2
    assert upstream.requests_for(layer, status=206) == 1
    assert upstream.bytes_for(layer) == 5010
    assert upstream.count("/v2/x/*") == len(upstream.content_requests()) == 3
    assert upstream.count() == 4
    assert upstream.select("x:1")[0].headers["user-agent"] == "test/1"
    assert upstream.in_flight == 0
    upstream.reset()
    assert upstream.count() == 0


async def test_waiting_for_a_request(upstream: FakeRegistry, client: aiohttp.ClientSession) -> None:
    """`until` wakes when a request comes, and gives up in time."""
    blob = upstream.put_blob("x", 10)
    stall = upstream.fault(blob, stall_at(5))
    asking = asyncio.create_task(client.get(upstream.blob_url("x", blob)))
    await upstream.until(lambda: upstream.bytes_for(blob) == 5)
    stall.release()
    assert await (await asking).read() == blob.content
    with pytest.raises(TimeoutError):
        await upstream.until(lambda: upstream.count() == 9, limit=0.01)


async def test_client_that_leaves_is_noticed(upstream: FakeRegistry, client: aiohttp.ClientSession) -> None:
    """A client that hangs up during an answer is written down as such."""
    blob = upstream.put_blob("x", 10)
    upstream.fault(blob, stall_at(5))
    response = await client.get(upstream.blob_url("x", blob))
    response.close()
    await upstream.until(lambda: upstream.requests[0].finished)
    assert upstream.requests[0].disconnected


async def test_outage_and_return(upstream: FakeRegistry, client: aiohttp.ClientSession) -> None:
    """Stopped, nobody listens and open answers break; started again, it is on the same port with the same content."""
    blob = upstream.put_blob("x", 10)
    upstream.fault(blob, stall_at(5), times=1)
    url = upstream.blob_url("x", blob)
    response = await client.get(url)
    await upstream.stop()
    with pytest.raises(aiohttp.ClientError):
        await response.read()
    with pytest.raises(aiohttp.ClientConnectorError):
        await client.get(url)
    await upstream.start()
    async with client.get(url) as response:
        assert await response.read() == blob.content


async def test_refused_at_accept(upstream: FakeRegistry, client: aiohttp.ClientSession) -> None:
    """Connections are reset before any request, as often as was said."""
    upstream.refuse_connections(times=1)
    with pytest.raises(aiohttp.ClientOSError):
        await client.post(upstream.url + "/v2/")
    assert (upstream.connections, upstream.count()) == (1, 0)
    async with client.get(upstream.url + "/v2/") as response:
        assert response.status == 200


async def test_rate_and_latency_of_the_whole(upstream: FakeRegistry, client: aiohttp.ClientSession) -> None:
    """The total rate is shared by all answers, and each waits for the latency."""
    loop = asyncio.get_running_loop()
    blob = upstream.put_blob("x", 3000)
    upstream.rate, upstream.latency = 30_000, 0.05

    async def get() -> bytes:
        async with client.get(upstream.blob_url("x", blob)) as response:
            return await response.read()

    began = loop.time()
    bodies = await asyncio.gather(get(), get())
    assert list(bodies) == [blob.content] * 2
    # A floor, not a speed: after the latency, the last of four pieces of 1,500 bytes leaves when three have had theirs.
    assert loop.time() - began >= 0.05 + 0.15 - 0.01
    assert upstream.rate == 30_000


async def test_large_blob_costs_no_memory(upstream: FakeRegistry, client: aiohttp.ClientSession) -> None:
    """A blob of noise is made while it is sent, and has the digest that it was given."""
    blob = upstream.put_blob("x", 40 << 20)
    hasher = hashlib.sha256()
    async with client.get(upstream.blob_url("x", blob)) as response:
        async for chunk in response.content.iter_any():
            hasher.update(chunk)
    assert hasher.hexdigest() == blob.digest.hex


async def test_tls(start_upstream: StartUpstream) -> None:
    """With a context given, it speaks TLS."""
    upstream = await start_upstream(tls=server_tls())
    blob = upstream.put_blob("x", 100_000)
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=client_tls())) as session,
        session.get(upstream.blob_url("x", blob)) as response,
    ):
        assert upstream.url.startswith("https://")
        assert await response.read() == blob.content


async def test_own_failures_are_loud(client: aiohttp.ClientSession) -> None:
    """A mistake in a test's condition does not pass for a fault of the upstream."""

    def mistaken(_: Seen) -> bool:
        raise LookupError("a bug in the test")

    upstream = await FakeRegistry().start()
    upstream.fault(ANY, status(503), when=mistaken)
    async with client.get(upstream.url + "/v2/") as response:
        assert response.status == 500
    with pytest.raises(ExceptionGroup, match="the fake registry failed"):
        await upstream.__aexit__()

"""What the pull API gives: manifests, sizes and blobs as upstreams have them, and a plain "no" where they say so."""

from __future__ import annotations

import asyncio
import gzip

import pytest

from mirror.oci.byte_range import ByteRange
from mirror.oci.digest import Digest
from mirror.oci.errors import BlobUnknown, ManifestUnknown, NameUnknown, UpstreamTimeout
from mirror.oci.reference import Tag
from mirror.upstream import ManifestHead
from tests.asking import FAST, StartAsking, failure, raw_server, soon, start_asking, whole
from tests.upstream import (
    ANY,
    Blob,
    FakeRegistry,
    Fault,
    gzipped,
    header,
    html,
    ignore_range,
    no_digest,
    no_length,
    redirect,
    reset,
    stall,
    stall_at,
    status,
    strict_accept,
    too_much,
    trickle,
    truncate,
    wrong_206,
    wrong_digest,
)
from tests.upstream.fixtures import start_upstream, upstream

__all__ = ["start_asking", "start_upstream", "upstream"]

LATEST = Tag("latest")
ABSENT = Digest.of(b"absent")


@pytest.fixture
def blob(upstream: FakeRegistry) -> Blob:
    """A blob of 100 kB in the repository that is asked for."""
    return upstream.put_blob("team/app", 100_000)


async def test_a_manifest_comes_with_its_exact_bytes(upstream: FakeRegistry, start_asking: StartAsking) -> None:
    """By tag and by digest; the digest is the upstream's word, the media type its header."""
    image = upstream.add_image("team/app", "latest")
    asking = start_asking(upstream.url)

    by_tag = await asking.upstreams.get_manifest(asking.target(), LATEST, soon())
    by_digest = await asking.upstreams.get_manifest(asking.target(), image.digest, soon())

    assert by_tag.content == by_digest.content == image.manifest.content
    assert by_tag.digest == image.digest
    assert by_tag.content_type == image.manifest.media_type


async def test_every_manifest_type_is_asked_for(upstream: FakeRegistry, start_asking: StartAsking) -> None:
    """A registry that gives only what Accept names gives an index, by GET and by HEAD."""
    index = upstream.add_index("team/app", "latest")
    upstream.fault(ANY, strict_accept())
    asking = start_asking(upstream.url)

    head = await asking.upstreams.head_manifest(asking.target(), LATEST, soon())
    body = await asking.upstreams.get_manifest(asking.target(), LATEST, soon())

    assert head == ManifestHead(index.digest, index.manifest.size, index.manifest.media_type)
    assert body.content == index.manifest.content


@pytest.mark.parametrize(
    "fault",
    [status(405), status(501), no_digest(), no_length(), header("Docker-Content-Digest", "nonsense"), redirect()],
    ids=lambda fault: fault.name,
)
async def test_a_head_without_a_use_is_no_error(
    upstream: FakeRegistry, start_asking: StartAsking, fault: Fault
) -> None:
    """405, 501, no digest, no length, or a redirect that HEAD cannot follow: the caller is told to GET."""
    upstream.add_image("team/app", "latest")
    upstream.fault(ANY, fault, kind="manifest", method="HEAD")
    if fault.name == "redirect":
        upstream.fault(ANY, status(403), origin="cdn")
    asking = start_asking(upstream.url)

    head = await asking.upstreams.head_manifest(asking.target(), LATEST, soon())

    assert head.digest is None
    assert upstream.count(method="HEAD", origin="registry") == 1


@pytest.mark.parametrize("code", ["MANIFEST_UNKNOWN", "NAME_UNKNOWN", None])
async def test_404_to_a_manifest_is_a_no(upstream: FakeRegistry, start_asking: StartAsking, code: str | None) -> None:
    """Of the repository where the upstream says so, otherwise of the manifest; asked for once."""
    fault = status(404, error=code) if code else html(404)
    upstream.fault(ANY, fault, kind="manifest")
    asking = start_asking(upstream.url)

    with pytest.raises(NameUnknown if code == "NAME_UNKNOWN" else ManifestUnknown):
        await asking.upstreams.get_manifest(asking.target(), LATEST, soon())
    with pytest.raises(ManifestUnknown):
        await asking.upstreams.head_manifest(asking.target(), LATEST, soon())

    assert upstream.count(kind="manifest") == 2


async def test_404_to_a_blob_is_a_no(upstream: FakeRegistry, start_asking: StartAsking, blob: Blob) -> None:
    """By HEAD, by GET and by range; of a repository that does not exist, as such."""
    asking = start_asking(upstream.url)

    with pytest.raises(BlobUnknown):
        await asking.upstreams.head_blob(asking.target(), ABSENT, soon())
    with pytest.raises(BlobUnknown):
        await asking.upstreams.open_blob(asking.target(), ABSENT, soon())
    with pytest.raises(BlobUnknown):
        await asking.upstreams.open_blob(asking.target(), ABSENT, soon(), ByteRange(0, 9))
    with pytest.raises(NameUnknown):
        await asking.upstreams.open_blob(asking.target("team/other"), blob.digest, soon())


@pytest.mark.parametrize("fault", [html(), status(200, b"", content_type="text/plain")], ids=["page", "nothing"])
async def test_a_page_is_no_manifest(upstream: FakeRegistry, start_asking: StartAsking, fault: Fault) -> None:
    """Login pages and empty bodies come with 200, too: no answer, rather than a manifest or a "no"."""
    upstream.fault(ANY, fault, kind="manifest")
    asking = start_asking(upstream.url)

    assert (await failure(asking.upstreams.get_manifest(asking.target(), LATEST, soon()))).reason == "content"


async def test_a_manifest_over_4_mib_is_not_taken_in(upstream: FakeRegistry, start_asking: StartAsking) -> None:
    """With its length promised or not; one of exactly 4 MiB is."""
    upstream.put_manifest("team/app", b"{" + b" " * ((4 << 20) - 2) + b"}", "latest")
    upstream.put_manifest("team/app", b"{" + b" " * ((4 << 20) - 1) + b"}", "large")
    asking = start_asking(upstream.url)

    assert len((await asking.upstreams.get_manifest(asking.target(), LATEST, soon(5))).content) == 4 << 20
    assert (await failure(asking.upstreams.get_manifest(asking.target(), Tag("large"), soon(5)))).reason == "size"
    upstream.fault(ANY, no_length())
    assert (await failure(asking.upstreams.get_manifest(asking.target(), Tag("large"), soon(5)))).reason == "size"


@pytest.mark.parametrize(
    "fault", [reset(50), truncate(50), truncate(50, "chunked"), stall_at(50)], ids=lambda f: f.name
)
async def test_a_manifest_that_breaks_is_asked_for_again(
    upstream: FakeRegistry, start_asking: StartAsking, fault: Fault
) -> None:
    """A body that breaks once, or stalls, costs one more request and nobody notices."""
    image = upstream.add_image("team/app", "latest")
    upstream.fault(ANY, fault, times=1, kind="manifest")
    asking = start_asking(upstream.url)

    body = await asking.upstreams.get_manifest(asking.target(), LATEST, soon(5))

    assert body.content == image.manifest.content
    assert upstream.count(kind="manifest") == 2


async def test_compressed_content_is_handed_on_as_it_came(
    upstream: FakeRegistry, start_asking: StartAsking, blob: Blob
) -> None:
    """Bytes are raw, the encoding is told, and a length that counts compressed bytes is not taken for the blob's."""
    image = upstream.add_image("team/app", "latest")
    upstream.fault(ANY, gzipped())
    upstream.fault(ANY, header("Content-Encoding", "gzip"), method="HEAD")
    asking = start_asking(upstream.url)

    body = await asking.upstreams.get_manifest(asking.target(), LATEST, soon())
    stream = await asking.upstreams.open_blob(asking.target(), blob.digest, soon())
    encoding, size = stream.content_encoding, stream.size

    assert (body.content_encoding, encoding, size) == ("gzip", "gzip", None)
    assert gzip.decompress(body.content) == image.manifest.content
    assert gzip.decompress(await whole(stream)) == blob.content
    assert await asking.upstreams.head_blob(asking.target(), blob.digest, soon()) is None
    assert all(seen.headers["Accept-Encoding"] == "identity" for seen in upstream.requests)


async def test_a_blob_streams_whole(upstream: FakeRegistry, start_asking: StartAsking, blob: Blob) -> None:
    """With its size told before the first byte."""
    asking = start_asking(upstream.url)

    stream = await asking.upstreams.open_blob(asking.target(), blob.digest, soon())

    assert (stream.start, stream.size, stream.partial) == (0, blob.size, False)
    assert await whole(stream) == blob.content


@pytest.mark.parametrize("redirected", [False, True])
async def test_a_range_is_asked_for_closed(
    upstream: FakeRegistry, start_asking: StartAsking, blob: Blob, redirected: bool
) -> None:
    """Open ends are refused by some registries; the range also reaches a redirect's target."""
    if redirected:
        upstream.fault(ANY, redirect())
    asking = start_asking(upstream.url)

    stream = await asking.upstreams.open_blob(asking.target(), blob.digest, soon(), ByteRange(1000, 99_999))

    assert (stream.start, stream.size, stream.partial) == (1000, blob.size, True)
    assert await whole(stream) == blob.content[1000:]
    assert {seen.headers["Range"] for seen in upstream.select(blob)} == {"bytes=1000-99999"}


async def test_the_whole_blob_in_answer_to_a_range_is_told(
    upstream: FakeRegistry, start_asking: StartAsking, blob: Blob
) -> None:
    """Registries may ignore Range: the stream then starts at 0."""
    upstream.fault(ANY, ignore_range())
    asking = start_asking(upstream.url)

    stream = await asking.upstreams.open_blob(asking.target(), blob.digest, soon(), ByteRange(1000, 1999))

    assert (stream.start, stream.size, stream.partial) == (0, blob.size, False)
    assert await whole(stream) == blob.content


async def test_a_range_that_ends_early_is_taken(upstream: FakeRegistry, start_asking: StartAsking, blob: Blob) -> None:
    """RFC 9110 lets a server send less than was asked for if it says so; an unknown length is told as such."""
    asking = start_asking(upstream.url)
    upstream.fault(ANY, wrong_206("end"), times=1)
    shorter = await asking.upstreams.open_blob(asking.target(), blob.digest, soon(), ByteRange(1000, 1999))
    assert await whole(shorter) == blob.content[1000:1999]

    upstream.fault(ANY, wrong_206("star"), times=1)
    unknown = await asking.upstreams.open_blob(asking.target(), blob.digest, soon(), ByteRange(1000, 1999))
    assert unknown.size is None
    assert await whole(unknown) == blob.content[1000:2000]


@pytest.mark.parametrize(
    "fault", [wrong_206("start"), wrong_206("missing"), status(416), status(400)], ids=lambda fault: fault.name
)
@pytest.mark.parametrize("redirected", [False, True])
async def test_a_range_that_goes_wrong_is_told_as_such(
    upstream: FakeRegistry, start_asking: StartAsking, blob: Blob, fault: Fault, redirected: bool
) -> None:
    """A 206 with another range, 416 or 400, of the registry or of a redirect's target: ask without Range."""
    if redirected:
        upstream.fault(ANY, redirect())
    upstream.fault(ANY, fault, kind="blob", origin="cdn" if redirected else "registry")
    asking = start_asking(upstream.url)

    error = await failure(asking.upstreams.open_blob(asking.target(), blob.digest, soon(), ByteRange(1000, 1999)))

    assert error.reason == "range"


@pytest.mark.parametrize(
    ("said", "length"),
    [
        pytest.param("bytes 0-9/100", 10, id="an-earlier-start"),
        pytest.param("bytes 11-19/100", 9, id="a-later-start"),
        pytest.param("bytes 10-29/100", 20, id="a-later-end"),
        pytest.param("bytes 10-19/100", 9, id="less-than-it-says"),
        pytest.param("bytes 10-19/15", 10, id="more-than-there-is"),
        pytest.param("pages 10-19/100", 10, id="another-unit"),
    ],
)
async def test_a_206_must_say_what_was_asked(start_asking: StartAsking, said: str, length: int) -> None:
    """It starts where the range does, ends no later, and has the length it speaks of; else ask without Range."""
    head = f"HTTP/1.1 206 Partial Content\r\nContent-Range: {said}\r\nContent-Length: {length}\r\nConnection: close"
    async with raw_server(lambda _: head.encode() + b"\r\n\r\n" + bytes(length)) as (url, _):
        asking = start_asking(url)
        error = await failure(asking.upstreams.open_blob(asking.target(), ABSENT, soon(), ByteRange(10, 19)))

    assert error.reason == "range"


async def test_a_206_that_nobody_asked_for_is_not_taken(start_asking: StartAsking) -> None:
    """Half a blob must not pass for a whole one."""
    answer = (
        b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 0-4/10\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"
    )
    async with raw_server(lambda _: answer) as (url, _):
        asking = start_asking(url)
        error = await failure(asking.upstreams.open_blob(asking.target(), ABSENT, soon()))

    assert error.reason == "range"


async def test_a_size_is_told_by_head(upstream: FakeRegistry, start_asking: StartAsking, blob: Blob) -> None:
    """One request, no body."""
    asking = start_asking(upstream.url)

    assert await asking.upstreams.head_blob(asking.target(), blob.digest, soon()) == blob.size
    assert [seen.method for seen in upstream.select(blob)] == ["HEAD"]
    assert upstream.bytes_for(blob) == 0


@pytest.mark.parametrize(
    "fault", [redirect(), status(405), status(501), no_length(), wrong_digest()], ids=lambda fault: fault.name
)
@pytest.mark.parametrize("size", [0, 1, 100_000])
async def test_a_head_that_proves_nothing_is_followed_by_the_first_byte(
    upstream: FakeRegistry, start_asking: StartAsking, fault: Fault, size: int
) -> None:
    """Then the size comes from Content-Range, for an empty blob from a 416; signed URLs are fetched by GET alone."""
    blob = upstream.put_blob("team/app", size)
    upstream.fault(ANY, fault, kind="blob", method=None if fault.name == "redirect" else "HEAD")
    asking = start_asking(upstream.url)

    assert await asking.upstreams.head_blob(asking.target(), blob.digest, soon()) == size
    assert upstream.bytes_for(blob, method="GET", status=206) == min(size, 1)
    assert upstream.count(blob, method="HEAD", origin="cdn") == 0


async def test_a_size_is_told_without_ranges(upstream: FakeRegistry, start_asking: StartAsking, blob: Blob) -> None:
    """Where HEAD and Range are both refused, the headers of a whole answer tell."""
    upstream.fault(ANY, status(405), method="HEAD")
    upstream.fault(ANY, status(400), when=lambda seen: "Range" in seen.headers)
    asking = start_asking(upstream.url)

    assert await asking.upstreams.head_blob(asking.target(), blob.digest, soon()) == blob.size


async def test_a_size_without_ranges_costs_no_download(upstream: FakeRegistry, start_asking: StartAsking) -> None:
    """A 200 to the first byte tells the length; the body is left alone."""
    blob = upstream.put_blob("team/app", 50_000_000)
    upstream.fault(ANY, status(405), method="HEAD")
    upstream.fault(ANY, ignore_range())
    asking = start_asking(upstream.url)

    assert await asking.upstreams.head_blob(asking.target(), blob.digest, soon()) == blob.size
    await upstream.until(lambda: upstream.in_flight == 0)
    assert upstream.bytes_for(blob) < blob.size / 2


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (reset(50_000), "reset"),
        (truncate(50_000), "reset"),
        (truncate(50_000, "chunked"), "reset"),
        (stall_at(50_000), "stall"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
async def test_a_body_that_breaks_says_how(
    upstream: FakeRegistry, start_asking: StartAsking, blob: Blob, fault: Fault, reason: str
) -> None:
    """What arrived before is delivered; then the reason is told, and nothing ends as if it were whole."""
    upstream.fault(ANY, fault, kind="blob")
    asking = start_asking(upstream.url)
    stream = await asking.upstreams.open_blob(asking.target(), blob.digest, soon())
    arrived = bytearray()

    async def read() -> None:
        async for chunk in stream.chunks():
            arrived.extend(chunk)

    assert (await failure(read())).reason == reason
    assert blob.content.startswith(arrived)
    assert len(arrived) <= 50_000
    if fault.name.startswith("stall"):
        assert len(arrived) == 50_000


@pytest.mark.parametrize("framing", ["close", "chunked-complete"])
async def test_a_range_that_breaks_silently_is_noticed(
    upstream: FakeRegistry, start_asking: StartAsking, blob: Blob, framing: str
) -> None:
    """Without a Content-Length the Content-Range still says how much was promised."""
    upstream.fault(ANY, truncate(500, framing), kind="blob")  # type: ignore[arg-type]  # parametrize gives str
    asking = start_asking(upstream.url)

    stream = await asking.upstreams.open_blob(asking.target(), blob.digest, soon(), ByteRange(1000, 1999))

    assert (await failure(whole(stream))).reason == "reset"


async def test_a_range_that_is_too_long_is_noticed(
    upstream: FakeRegistry, start_asking: StartAsking, blob: Blob
) -> None:
    """More than Content-Range says is as wrong as less."""
    upstream.fault(ANY, too_much(1000, "chunked"), kind="blob")
    asking = start_asking(upstream.url)

    stream = await asking.upstreams.open_blob(asking.target(), blob.digest, soon(), ByteRange(1000, 1999))

    assert (await failure(whole(stream))).reason == "reset"


async def test_a_trickle_is_given_up(upstream: FakeRegistry, start_asking: StartAsking, blob: Blob) -> None:
    """A body under the minimum rate ends with reason slow, though it never stalls."""
    upstream.fault(ANY, trickle(2000), kind="blob")
    asking = start_asking(upstream.url)

    stream = await asking.upstreams.open_blob(asking.target(), blob.digest, soon())

    assert (await failure(whole(stream))).reason == "slow"


async def test_a_slow_reader_is_not_a_slow_upstream(upstream: FakeRegistry, start_asking: StartAsking) -> None:
    """Only time spent waiting for the upstream counts: a reader that takes its time gets everything."""
    blob = upstream.put_blob("team/app", 2_000_000)
    asking = start_asking(upstream.url, timeouts=FAST.model_copy(update={"min_rate": 2 << 20, "min_rate_window": 0.4}))
    stream = await asking.upstreams.open_blob(asking.target(), blob.digest, soon())
    arrived = bytearray()
    busy = 0.6

    async for chunk in stream.chunks():
        arrived += chunk
        await asyncio.sleep(busy)  # counted, this alone would be a whole window far under the rate
        busy = 0

    assert arrived == blob.content


async def test_a_stream_that_is_left_closes_its_connection(upstream: FakeRegistry, start_asking: StartAsking) -> None:
    """Half a body is not drained behind the reader's back; closing twice is fine."""
    blob = upstream.put_blob("team/app", 50_000_000)
    asking = start_asking(upstream.url)

    stream = await asking.upstreams.open_blob(asking.target(), blob.digest, soon())
    await stream.close()
    await stream.close()

    await upstream.until(lambda: upstream.in_flight == 0)
    assert upstream.select(blob)[0].disconnected


async def test_connections_are_used_again(upstream: FakeRegistry, start_asking: StartAsking, blob: Blob) -> None:
    """Bodies read to the end, HEADs and refusals leave the connection for the next request."""
    asking = start_asking(upstream.url)
    for _ in range(3):
        await whole(await asking.upstreams.open_blob(asking.target(), blob.digest, soon()))
        await asking.upstreams.head_blob(asking.target(), blob.digest, soon())
        with pytest.raises(BlobUnknown):
            await asking.upstreams.open_blob(asking.target(), ABSENT, soon())

    assert upstream.connections == 1


async def test_a_caller_that_leaves_takes_its_request_along(
    upstream: FakeRegistry, start_asking: StartAsking, blob: Blob
) -> None:
    """Cancelling an open request closes its connection."""
    rule = upstream.fault(ANY, stall(), kind="blob")
    asking = start_asking(upstream.url)
    task = asyncio.create_task(asking.upstreams.open_blob(asking.target(), blob.digest, soon(5)))
    await rule.reached.wait()
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    await upstream.until(lambda: upstream.in_flight == 0)


async def test_an_upstream_that_never_answers_is_a_timeout(
    upstream: FakeRegistry, start_asking: StartAsking, blob: Blob
) -> None:
    """Whatever is asked, the deadline ends it, tries included."""
    upstream.fault(ANY, stall())
    asking = start_asking(upstream.url)
    ask = asking.upstreams
    for request in (
        ask.head_manifest(asking.target(), LATEST, soon()),
        ask.get_manifest(asking.target(), LATEST, soon()),
        ask.head_blob(asking.target(), blob.digest, soon()),
        ask.open_blob(asking.target(), blob.digest, soon()),
    ):
        assert isinstance(await failure(request), UpstreamTimeout)

"""Exact answers: the headers and bytes of `/v2/`, manifests and blobs, as clients compare them."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest

from mirror.config import Timeouts
from mirror.oci.manifest import DOCKER_MANIFEST, OCI_INDEX
from tests.conftest import StartMirror
from tests.harness import Reply, RunningMirror
from tests.raw import RawClient
from tests.reading import Reading, blob_path
from tests.upstream import Blob, FakeRegistry, Image, no_digest, redirect, stall, stall_at, unasked_206

SIZE = 300_000
EVERY = {"docker-distribution-api-version", "x-request-id", "server", "date", "content-type", "content-length"}
CONTENT = EVERY | {"docker-content-digest", "etag", "accept-ranges", "x-cache"}


@pytest.fixture
async def mirror(start_mirror: StartMirror) -> RunningMirror:
    """A mirror with the time limits of production: a slow machine changes no header."""
    return await start_mirror(timeouts=Timeouts())


@pytest.fixture
def image(upstream: FakeRegistry) -> Image:
    """An image with one layer of SIZE bytes, as library/demo:1."""
    return upstream.add_image("library/demo", "1", layers=[SIZE])


@pytest.fixture
def layer(image: Image) -> Blob:
    """Its layer."""
    return image.layers[0]


def names(reply: Reply) -> set[str]:
    """The names of its headers."""
    return {name.lower() for name in reply.headers}


def described(reply: Reply) -> dict[str, str]:
    """The headers that describe the content, and the status."""
    apart = ("date", "x-request-id", "x-cache")
    headers = {name.lower(): value for name, value in reply.headers.items() if name.lower() not in apart}
    return {"status": str(reply.status), **headers}


# The version check.


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_the_version_check_answers_by_itself(mirror: RunningMirror, upstream: FakeRegistry, method: str) -> None:
    """Clients ping first, some with ns=; the answer never depends on an upstream, nor challenges anybody."""
    for path in ("/v2/", "/v2", "/v2/?ns=docker.io", "/quay.io/v2/", "/quay.io/v2", "/docker.io/v2/?ns=docker.io"):
        reply = await mirror.get(path, method=method)

        assert reply.status == 200
        assert reply.body == (b"{}" if method == "GET" else b"")
        assert names(reply) == (EVERY | {"oci-namespace"} if "ns=" in path else EVERY)
        assert reply.headers["Content-Type"] == "application/json"
        assert reply.headers["Content-Length"] == "2"
        assert reply.headers["Docker-Distribution-Api-Version"] == "registry/2.0"
    assert upstream.count() == 0


# Manifests.


@pytest.mark.parametrize("by", ["tag", "digest"])
async def test_a_manifest_has_exact_headers(mirror: RunningMirror, image: Image, by: str) -> None:
    """Cold and warm, by tag and by digest: the bytes unchanged, the bare type, length, digest, validator."""
    reference = "1" if by == "tag" else image.digest

    replies = [await mirror.manifest("demo", reference) for _ in range(2)]

    assert [reply.cache for reply in replies] == ["miss", "hit"]
    for reply in replies:
        assert reply.status == 200
        assert reply.body == image.manifest.content
        assert names(reply) == CONTENT
        assert reply.headers["Content-Type"] == image.manifest.media_type
        assert reply.headers["Content-Length"] == str(len(image.manifest.content))
        assert reply.headers["Docker-Content-Digest"] == str(image.digest)
        assert reply.headers["ETag"] == f'"{image.digest}"'
        assert reply.headers["Accept-Ranges"] == "bytes"


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("by", ["tag", "digest"])
async def test_head_of_a_manifest_equals_get(mirror: RunningMirror, image: Image, by: str, *, warm: bool) -> None:
    """Status and headers are those of the GET, whoever is asked first; there is no body."""
    reference = "1" if by == "tag" else image.digest
    if warm:
        await mirror.manifest("demo", reference)

    head = await mirror.manifest("demo", reference, method="HEAD")
    get = await mirror.manifest("demo", reference)

    assert head.body == b""
    assert described(head) == described(get)


async def test_any_media_type_passes(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """Docker's types, indexes and artifacts nobody has heard of come with the type they were pushed with."""
    docker = upstream.add_image("library/demo", "docker", docker=True)
    upstream.add_index("library/demo", "index")
    upstream.put_manifest("library/demo", b'{"schemaVersion": 2}', "odd", media_type="application/vnd.odd.v7+json")

    types = [(await mirror.manifest("demo", tag)).headers["Content-Type"] for tag in ("docker", "index", "odd")]

    assert docker.manifest.media_type == DOCKER_MANIFEST
    assert types == [DOCKER_MANIFEST, OCI_INDEX, "application/vnd.odd.v7+json"]


async def test_a_manifest_cannot_write_our_headers(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """Its mediaType is whatever its author wrote; it is served all the same, byte for byte."""
    for media_type in ("text/html\r\nSet-Cookie: a=b", "application/x; charset=utf-8", "\u00e4"):
        manifest = upstream.put_manifest("library/demo", {"schemaVersion": 2, "mediaType": media_type}, "x")

        reply = await mirror.manifest("demo", manifest.digest)

        assert (reply.status, reply.body) == (200, manifest.content)
        assert ";" not in reply.headers["Content-Type"]
        assert names(reply) == CONTENT


async def test_the_accept_header_selects_nothing(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """One digest per tag: a client that lists other types gets the same answer as one that lists none."""
    index = upstream.add_index("library/demo", "1")

    replies = [await mirror.manifest("demo", "1", Accept=accept) for accept in (DOCKER_MANIFEST, "*/*", OCI_INDEX)]

    assert {reply.headers["Docker-Content-Digest"] for reply in replies} == {str(index.digest)}
    assert upstream.count(method="GET", kind="manifest") == 1


# Blobs.


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
async def test_a_blob_has_exact_headers(mirror: RunningMirror, layer: Blob, *, warm: bool) -> None:
    """From the upstream and from the disk alike."""
    if warm:
        await mirror.blob("demo", layer.digest)
        await mirror.quiet()

    reply = await mirror.blob("demo", layer.digest)

    assert (reply.status, reply.cache) == (200, "hit" if warm else "miss")
    assert reply.body == layer.content
    assert names(reply) == CONTENT
    assert reply.headers["Content-Type"] == "application/octet-stream"
    assert reply.headers["Content-Length"] == str(SIZE)
    assert reply.headers["Docker-Content-Digest"] == str(layer.digest)
    assert reply.headers["ETag"] == f'"{layer.digest}"'
    assert reply.headers["Accept-Ranges"] == "bytes"


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
async def test_head_of_a_blob_equals_get(
    mirror: RunningMirror, upstream: FakeRegistry, layer: Blob, *, warm: bool
) -> None:
    """Also before the blob is here, and then without fetching it."""
    if warm:
        await mirror.blob("demo", layer.digest)
        await mirror.quiet()
        upstream.reset()

    head = await mirror.blob("demo", layer.digest, method="HEAD")
    assert upstream.bytes_for(layer) == 0
    get = await mirror.blob("demo", layer.digest)

    assert head.body == b""
    assert described(head) == described(get)


async def test_the_empty_blob_is_served(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """Nothing is something: 200, length 0, again and again, and no range of it can be satisfied."""
    empty = upstream.put_blob("library/demo", b"")

    for _ in range(2):
        reply = await mirror.blob("demo", empty.digest)
        assert (reply.status, reply.body, reply.headers["Content-Length"]) == (200, b"", "0")
        await mirror.quiet()
    assert (await mirror.blob("demo", empty.digest, Range="bytes=0-")).headers["Content-Range"] == "bytes */0"


async def test_sha512_is_served_and_verified(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """The specification's other algorithm."""
    blob = upstream.put_blob("library/demo", 5000, algorithm="sha512")

    replies = [await mirror.blob("demo", blob.digest) for _ in range(2)]

    assert {reply.body for reply in replies} == {blob.content}
    assert replies[0].headers["Docker-Content-Digest"].startswith("sha512:")


async def test_headers_come_before_the_bytes_do(mirror: RunningMirror, upstream: FakeRegistry, layer: Blob) -> None:
    """A blob in flight sends its headers with its first byte, not with its last."""
    rule = upstream.fault(layer, stall_at(200_000))
    async with await RawClient.connect(mirror.app.port) as client:
        await client.ask(f"/v2/demo/blobs/{layer.digest}")
        head = await client.head()
        first = await client.read(100_000)
        rule.release()
        rest = await client.read(SIZE - 100_000)

    assert (head.status, head.length) == (200, SIZE)
    assert first + rest == layer.content


# Encodings.


async def test_nothing_is_ever_encoded(mirror: RunningMirror, image: Image) -> None:
    """Go clients send Accept-Encoding with every unranged GET, and lose the length if it is honoured."""
    for encodings in ("gzip", "zstd;q=1.0, gzip;q=0.8, deflate;q=0.5", "br", "*"):
        manifest = await mirror.manifest("demo", "1", Accept_Encoding=encodings)
        blob = await mirror.blob("demo", image.layers[0].digest, Accept_Encoding=encodings)
        for reply, content in ((manifest, image.manifest.content), (blob, image.layers[0].content)):
            assert "Content-Encoding" not in reply.headers
            assert "Transfer-Encoding" not in reply.headers
            assert reply.headers["Content-Length"] == str(len(content))
            assert reply.body == content
        await mirror.quiet()


# Ranges.

RANGES = [
    ("bytes=0-0", 0, 1),
    ("bytes=100-199", 100, 200),
    ("bytes=299999-299999", 299_999, SIZE),
    ("bytes=1000-", 1000, SIZE),
    ("bytes=0-", 0, SIZE),
    ("bytes=-1", 299_999, SIZE),
    ("bytes=-5000", 295_000, SIZE),
    ("bytes=-999999999", 0, SIZE),
    ("bytes=299000-400000", 299_000, SIZE),
    ("bytes=0-99999999999999999999999999999999", 0, SIZE),
]


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
async def test_a_range_of_a_blob_is_a_206(mirror: RunningMirror, upstream: FakeRegistry, *, warm: bool) -> None:
    """Closed, open, suffix and clamped; the bytes, their length and their place are exact. Never a 200."""
    for header, start, end in RANGES:
        blob = upstream.put_blob("library/demo", SIZE)
        if warm:
            await mirror.blob("demo", blob.digest)
            await mirror.quiet()

        reply = await mirror.blob("demo", blob.digest, Range=header)

        assert reply.status == 206, header
        assert reply.body == blob.content[start:end], header
        assert reply.headers["Content-Range"] == f"bytes {start}-{end - 1}/{SIZE}"
        assert reply.headers["Content-Length"] == str(end - start)
        assert reply.headers["Content-Type"] == "application/octet-stream"
        assert reply.headers["Docker-Content-Digest"] == str(blob.digest)
        assert reply.headers["Accept-Ranges"] == "bytes"
        assert names(reply) == CONTENT | {"content-range"}


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
async def test_a_range_without_bytes_is_a_416(mirror: RunningMirror, upstream: FakeRegistry, *, warm: bool) -> None:
    """Past the end or backwards, it tells the size; the next request gets the blob as if nothing had happened."""
    for header in ("bytes=300000-", "bytes=300000-300001", "bytes=-0", "bytes=500-0", f"bytes={'9' * 4000}-"):
        blob = upstream.put_blob("library/demo", SIZE)
        if warm:
            await mirror.blob("demo", blob.digest)
            await mirror.quiet()

        reply = await mirror.blob("demo", blob.digest, Range=header)

        assert (reply.status, reply.code) == (416, "SIZE_INVALID"), header
        assert reply.headers["Content-Range"] == f"bytes */{SIZE}"
        assert (await mirror.blob("demo", blob.digest)).body == blob.content


async def test_what_is_no_range_gets_the_whole(mirror: RunningMirror, image: Image, layer: Blob) -> None:
    """RFC 9110 has unknown units and malformed ranges ignored."""
    for header in ("items=0-5", "bytes", "bytes=", "bytes=0-1,9-5", "bytes=a-b", "bytes=-", "0-5"):
        blob = await mirror.blob("demo", layer.digest, Range=header)
        manifest = await mirror.manifest("demo", "1", Range=header)

        assert (blob.status, blob.body) == (200, layer.content), header
        assert (manifest.status, manifest.body) == (200, image.manifest.content), header
        assert "Content-Range" not in blob.headers


async def test_a_range_has_no_meaning_on_head(mirror: RunningMirror, layer: Blob) -> None:
    """RFC 9110 §14.2; also where it could not be satisfied."""
    for header in ("bytes=0-5", "bytes=999999-", "bytes=0-1,5-6"):
        reply = await mirror.blob("demo", layer.digest, method="HEAD", Range=header)
        assert (reply.status, reply.headers["Content-Length"]) == (200, str(SIZE))


@pytest.mark.parametrize("by", ["tag", "digest"])
async def test_ranges_of_manifests_are_honoured(mirror: RunningMirror, image: Image, by: str) -> None:
    """containerd with concurrent fetches sends open ranges on manifests too."""
    reference, content = "1" if by == "tag" else image.digest, image.manifest.content

    for header, start, end in (("bytes=0-", 0, None), ("bytes=10-19", 10, 20), ("bytes=-7", -7, None)):
        reply = await mirror.manifest("demo", reference, Range=header)
        assert (reply.status, reply.body) == (206, content[start:end])
        begin = len(content) + start if start < 0 else start
        assert reply.headers["Content-Range"] == f"bytes {begin}-{(end or len(content)) - 1}/{len(content)}"
        assert reply.headers["Content-Type"] == image.manifest.media_type
    past = await mirror.manifest("demo", reference, Range=f"bytes={len(content)}-")
    assert (past.status, past.headers["Content-Range"]) == (416, f"bytes */{len(content)}")


async def test_the_rest_of_something_else_is_the_whole(mirror: RunningMirror, image: Image, layer: Blob) -> None:
    """If-Range: a resumed transfer goes on only where the thing is the same one; weak tags and dates do not say so."""
    good = await mirror.blob("demo", layer.digest, Range="bytes=100-", If_Range=f'"{layer.digest}"')
    assert (good.status, good.body) == (206, layer.content[100:])
    for other in (f'"{image.digest}"', f'W/"{layer.digest}"', "Tue, 24 Nov 2026 10:00:00 GMT"):
        whole = await mirror.blob("demo", layer.digest, Range="bytes=100-", If_Range=other)
        assert (whole.status, whole.body) == (200, layer.content)


async def test_the_rest_of_a_moved_tag_is_the_whole(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """Half of the old manifest and half of the new one would be neither."""
    mirror = await start_mirror(tag_ttl=0)
    old, new = upstream.add_image("library/demo", "1"), upstream.add_image("library/demo", "2")
    assert (await mirror.manifest("demo", "1", Range="bytes=0-99")).body == old.manifest.content[:100]

    upstream.move_tag("library/demo", "1", new)
    reply = await mirror.manifest("demo", "1", Range="bytes=100-", If_Range=f'"{old.digest}"')

    assert (reply.status, reply.body) == (200, new.manifest.content)


# Conditions.


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_who_has_it_gets_a_304(mirror: RunningMirror, image: Image, layer: Blob, method: str) -> None:
    """Only with If-None-Match, by strong or weak comparison; no body, the validator, and the connection goes on."""
    for form in ('"{}"', 'W/"{}"', '"x", "{}"', "*"):
        replies = [
            await mirror.manifest("demo", "1", method=method, If_None_Match=form.format(image.digest)),
            await mirror.blob("demo", layer.digest, method=method, If_None_Match=form.format(layer.digest)),
        ]

        for reply, digest in zip(replies, (image.digest, layer.digest), strict=True):
            assert (reply.status, reply.body) == (304, b""), form
            assert reply.headers["ETag"] == f'"{digest}"'
            assert "Content-Length" not in reply.headers


async def test_nobody_else_gets_a_304(mirror: RunningMirror, image: Image, layer: Blob) -> None:
    """Another validator, or a date, is no reason to keep the bytes back."""
    for headers in ({}, {"If_None_Match": '"sha256:x"'}, {"If_Modified_Since": "Tue, 24 Nov 2099 10:00:00 GMT"}):
        assert (await mirror.manifest("demo", "1", **headers)).body == image.manifest.content
        assert (await mirror.blob("demo", layer.digest, **headers)).body == layer.content


async def test_a_condition_that_holds_fetches_nothing(
    mirror: RunningMirror, upstream: FakeRegistry, layer: Blob
) -> None:
    """Who says that it has a blob which we have not gets its 304 for one question, not for a download."""
    reply = await mirror.blob("demo", layer.digest, If_None_Match=f'"{layer.digest}"')

    assert reply.status == 304
    assert upstream.bytes_for(layer) == 0
    missing = str(layer.digest)[:-1] + ("0" if str(layer.digest)[-1] != "0" else "1")
    assert (await mirror.blob("demo", missing, If_None_Match=f'"{missing}"')).status == 404


# Request ids.


async def test_a_request_id_is_taken_or_given(mirror: RunningMirror) -> None:
    """So that a client's, a proxy's and our own log lines can be put side by side."""
    taken = await mirror.get("/v2/", X_Request_Id="abc-123/x.y:z")
    given = [(await mirror.get("/v2/")).headers["X-Request-Id"] for _ in range(3)]

    assert taken.headers["X-Request-Id"] == "abc-123/x.y:z"
    assert len(set(given)) == 3
    assert all(given)


async def test_a_bad_request_id_is_replaced(mirror: RunningMirror) -> None:
    """It goes into logs and headers, so only harmless characters pass."""
    for bad in ("", "a b", "a" * 129, '"x"', "<script>", "a\tb", "\u00e4"):
        reply = await mirror.get("/v2/", X_Request_Id=bad)

        assert reply.headers["X-Request-Id"] not in ("", bad)


async def test_errors_have_a_request_id_too(mirror: RunningMirror) -> None:
    """It is there when it is needed most."""
    reply = await mirror.manifest("demo", "absent", X_Request_Id="find-me")

    assert (reply.status, reply.headers["X-Request-Id"]) == (404, "find-me")
    assert reply.headers["Docker-Distribution-Api-Version"] == "registry/2.0"


# Connections.


async def test_a_connection_is_used_again(mirror: RunningMirror, image: Image, layer: Blob) -> None:
    """Manifests, blobs, parts, errors and HEADs one after another over one connection, each whole."""
    async with await RawClient.connect(mirror.app.port) as client:
        for _ in range(2):
            for path, method, content in (
                ("/v2/", "GET", b"{}"),
                ("/v2/demo/manifests/1", "GET", image.manifest.content),
                ("/v2/demo/manifests/1", "HEAD", b""),
                (f"/v2/demo/blobs/{layer.digest}", "GET", layer.content),
                (f"/v2/demo/blobs/{layer.digest}", "HEAD", b""),
                ("/v2/demo/manifests/absent", "GET", None),
            ):
                await client.ask(path, method)
                head, body = await client.answer(body=method == "GET")
                assert head.status == (404 if content is None else 200)
                assert "close" not in head.headers.get("Connection", "")
                assert content is None or body == content


async def test_pipelined_requests_are_answered_in_order(mirror: RunningMirror, image: Image, layer: Blob) -> None:
    """Several requests sent at once: no byte of one answer in another."""
    async with await RawClient.connect(mirror.app.port) as client:
        for _ in range(3):
            await client.ask(f"/v2/demo/blobs/{layer.digest}")
            await client.ask("/v2/demo/manifests/1")
            await client.ask("/v2/")
        for _ in range(3):
            assert (await client.answer())[1] == layer.content
            assert (await client.answer())[1] == image.manifest.content
            assert (await client.answer())[1] == b"{}"


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_client_may_want_the_connection_closed(
    mirror: RunningMirror, image: Image, layer: Blob, version: str
) -> None:
    """HTTP/1.0 and Connection: close get the whole answer and a FIN."""
    for path, content in (("manifests/1", image.manifest.content), (f"blobs/{layer.digest}", layer.content)):
        async with await RawClient.connect(mirror.app.port) as client:
            await client.ask(f"/v2/demo/{path}", version=version, Connection="close")
            head = await client.head()
            assert (head.version, head.status) == (f"HTTP/{version}", 200)
            assert await client.rest() == content


async def test_an_expectation_costs_nothing(mirror: RunningMirror, image: Image) -> None:
    """Nothing that we answer needs a body, so nobody is told to continue, and nobody is refused for asking."""
    async with await RawClient.connect(mirror.app.port) as client:
        for expectation in ("100-continue", "miracles"):
            await client.ask("/v2/demo/manifests/1", Expect=expectation)
            head, body = await client.answer()
            assert (head.status, body) == (200, image.manifest.content)


# HEADs that cost.


async def test_a_head_without_a_digest_is_replaced_by_a_get(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """An upstream whose HEAD tells nothing still gets our clients exact headers."""
    mirror = await start_mirror(upstreams={"registry.test": upstream})
    image = upstream.add_image("team/app", "1")
    upstream.fault(image, no_digest(), method="HEAD")

    head = await mirror.manifest("registry.test/team/app", "1", method="HEAD")

    assert head.headers["Docker-Content-Digest"] == str(image.digest)
    assert head.headers["Content-Length"] == str(image.manifest.size)


async def test_the_first_answer_is_bounded(start_mirror: StartMirror, upstream: FakeRegistry, layer: Blob) -> None:
    """A ranged GET and a HEAD of what never comes are told so, with an exact length, within their time limit."""
    mirror = await start_mirror()
    upstream.fault(layer, stall())

    for options in ({"method": "HEAD"}, {"Range": "bytes=5-9"}):
        reply = await mirror.blob("demo", layer.digest, **options)
        assert (reply.status, "Content-Length" in reply.headers) == (504, True)


# HEAD beside GET, wherever the content is.


@pytest.mark.parametrize("where", ["cold", "in flight", "held", "empty", "manifest", "held manifest"])
@pytest.mark.parametrize("ranges", ["bytes=0-5", "bytes=7-", "bytes=999999-", "bytes=0-1,5-6", "bytes=0-,0-"])
async def test_a_head_with_ranges_is_a_head_without(
    mirror: RunningMirror, upstream: FakeRegistry, image: Image, layer: Blob, where: str, ranges: str
) -> None:
    """RFC 9110 §14.2: in every header it is the unranged GET, also where the ranges could not be served."""
    empty = upstream.put_blob("library/demo", b"")
    path = "/v2/demo/manifests/1" if "manifest" in where else blob_path("demo", empty if where == "empty" else layer)
    async with AsyncExitStack() as stack:
        if where == "in flight":
            held = upstream.fault(layer, stall_at(100_000), times=1)
            stack.callback(held.release)
            whole = await stack.enter_async_context(await Reading.ask(mirror, path))
            await whole.take(1000)
        elif where.startswith("held"):
            await mirror.get(path)
            await mirror.quiet()

        heads = [
            await mirror.get(path, method="HEAD"),
            await mirror.get(path, method="HEAD", Range=ranges, If_Range='"x"'),
            await mirror.get(path, method="HEAD", Range=ranges),
        ]
    get = await mirror.get(path)

    assert [described(head) for head in heads] == [described(get)] * 3
    assert described(get)["accept-ranges"] == "bytes"
    assert ";" not in get.headers["Content-Type"]


async def test_an_unranged_get_is_a_200(mirror: RunningMirror, upstream: FakeRegistry, layer: Blob) -> None:
    """overlaybd takes nothing else. Whatever the upstream does, it is never a 206 or a redirect of ours."""
    upstream.fault(layer, redirect())
    upstream.fault(layer, unasked_206(), times=1)

    reply = await mirror.blob("demo", layer.digest)

    assert (reply.status, reply.body) == (200, layer.content)
    assert not {"content-range", "location"} & names(reply)

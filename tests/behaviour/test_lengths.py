"""Where a blob's length comes from, and what happens where nobody tells it or somebody tells it wrong."""

from __future__ import annotations

import json
from typing import Literal

import pytest

from tests.conftest import StartMirror
from tests.harness import RunningMirror
from tests.reading import blob_path, left_behind, settled
from tests.storing import until
from tests.upstream import (
    Blob,
    FakeRegistry,
    gzipped,
    header,
    no_length,
    ranged,
    status,
    too_much,
    wrong_length,
)

MIB = 1 << 20


def forge(upstream: FakeRegistry, blob: Blob, size: int) -> None:
    """A manifest in the blob's repository that gives it another size, tagged with that."""
    config = upstream.put_blob("library/demo", b"{}")
    named = {**blob.descriptor, "size": size}
    body = {"schemaVersion": 2, "config": config.descriptor, "layers": [named]}
    upstream.put_manifest("library/demo", json.dumps(body).encode(), str(size))


SIZES = (0, 1, 4097, 3 * MIB)


@pytest.mark.parametrize("framing", ["chunked", "close"])
async def test_head_tells_the_length_that_get_does_not(
    mirror: RunningMirror, upstream: FakeRegistry, framing: Literal["chunked", "close"]
) -> None:
    """Clients get a Content-Length all the same."""
    for size in SIZES:
        blob = upstream.put_blob("library/demo", size)
        upstream.fault(blob, no_length(framing), method="GET")

        replies = await mirror.together(3, blob_path("demo", blob))
        await mirror.quiet()

        assert [(reply.status, reply.body) for reply in replies] == [(200, blob.content)] * 3
        assert all(reply.headers["Content-Length"] == str(size) for reply in replies)
        assert (await mirror.blob("demo", blob.digest)).cache == "hit"
        assert upstream.requests_for(blob, method="GET") == 1


@pytest.mark.parametrize("framing", ["chunked", "close"])
async def test_a_blob_whose_length_nobody_tells_is_taken_in_whole_first(
    mirror: RunningMirror, upstream: FakeRegistry, framing: Literal["chunked", "close"]
) -> None:
    """Neither GET nor HEAD nor a range: it is spooled and verified before our headers."""
    for size in SIZES:
        blob = upstream.put_blob("library/demo", size)
        upstream.fault(blob, no_length(framing))
        upstream.fault(blob, header("Content-Range", None))

        replies = await mirror.together(3, blob_path("demo", blob))
        await mirror.quiet()

        assert [(reply.status, reply.body) for reply in replies] == [(200, blob.content)] * 3
        assert (await mirror.blob("demo", blob.digest)).cache == "hit"


async def test_a_manifest_tells_the_length_before_anybody_else(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """The upstream's HEAD is not asked, which is as well, since it doubles the length."""
    image = upstream.add_image("library/demo", "1", layers=[100_000])
    blob = image.layers[0]
    upstream.fault(blob, no_length(), method="GET")
    upstream.fault(blob, wrong_length())
    await mirror.manifest("demo", "1")

    reply = await mirror.blob("demo", blob.digest)

    assert (reply.status, reply.body) == (200, blob.content)
    assert upstream.requests_for(blob, method="HEAD") == 0


@pytest.mark.parametrize("size", [5000, 200_000])
async def test_a_doubled_length_is_found_out_by_the_digest(
    mirror: RunningMirror, upstream: FakeRegistry, size: int
) -> None:
    """Some registries double it. Who was told the wrong one gets a short body; the blob is kept, the next is served."""
    blob = upstream.put_blob("library/demo", size)
    upstream.fault(blob, no_length(), method="GET")
    upstream.fault(blob, wrong_length())

    first = await mirror.get(blob_path("demo", blob), Range="bytes=0-0")
    await mirror.quiet()

    assert first.body == blob.read(0, 1)
    again = await mirror.blob("demo", blob.digest)
    assert (again.status, again.body, again.cache) == (200, blob.content, "hit")
    assert upstream.requests_for(blob, method="GET") <= 2


@pytest.mark.parametrize("size", [1, MIB])
async def test_a_manifest_settles_a_length_that_counts_garbage(
    mirror: RunningMirror, upstream: FakeRegistry, size: int
) -> None:
    """Content-Length and body are too long; the blob that the manifest describes is inside, and no more is given."""
    image = upstream.add_image("library/demo", "1", layers=[size])
    blob = image.layers[0]
    upstream.fault(blob, too_much(3000, "declared"))
    await mirror.manifest("demo", "1")

    replies = await mirror.together(3, blob_path("demo", blob))

    assert [(reply.status, reply.body) for reply in replies] == [(200, blob.content)] * 3


async def test_a_manifest_that_lies_hurts_nobody(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """Whoever may push a manifest can write any size: the digest decides before anybody is told a length."""
    for lie in (0, 1, 99_999, 100_001, 200_000, 10 * MIB):
        blob = upstream.put_blob("library/demo", 100_000)
        forge(upstream, blob, lie)
        await mirror.manifest("demo", str(lie))

        replies = await mirror.together(3, blob_path("demo", blob))
        await mirror.quiet()

        assert [(reply.status, reply.body) for reply in replies] == [(200, blob.content)] * 3
        assert (await mirror.blob("demo", blob.digest)).cache == "hit"
        assert upstream.requests_for(blob) <= 2


@pytest.mark.parametrize("lie", [50_000, 200_000])
async def test_a_lie_about_a_blob_without_a_length_is_found_out(
    mirror: RunningMirror, upstream: FakeRegistry, lie: int
) -> None:
    """Here the lie is all there is to tell; whoever believed it gets a short body, and the next client the blob."""
    blob = upstream.put_blob("library/demo", 100_000)
    upstream.fault(blob, no_length(), method="GET")
    forge(upstream, blob, lie)
    await mirror.manifest("demo", str(lie))

    await mirror.get(blob_path("demo", blob), Range="bytes=0-0")
    await mirror.quiet()

    again = await mirror.blob("demo", blob.digest)
    assert (again.status, again.body, again.cache) == (200, blob.content, "hit")


@pytest.mark.parametrize("label", ["gzip", "x-gzip"])
@pytest.mark.parametrize("known", [False, True], ids=["unknown", "manifest"])
async def test_a_needlessly_compressed_blob_is_unpacked(
    mirror: RunningMirror, upstream: FakeRegistry, label: str, known: bool
) -> None:
    """Content-Encoding in spite of identity: the right bytes are inside, with or without a manifest that names them."""
    image = upstream.add_image("library/demo", "1", layers=[b"layer" * 5000])
    blob = image.layers[0]
    upstream.fault(blob, gzipped(label))
    if known:
        await mirror.manifest("demo", "1")

    replies = await mirror.together(3, blob_path("demo", blob))
    await mirror.quiet()

    assert [(reply.status, reply.body) for reply in replies] == [(200, blob.content)] * 3
    assert (await mirror.blob("demo", blob.digest)).cache == "hit"
    assert upstream.requests_for(blob, method="GET") == 1


async def test_a_blob_that_only_claims_to_be_compressed_is_given_as_it_is(
    mirror: RunningMirror, upstream: FakeRegistry
) -> None:
    """Some servers label every .gz file with an encoding; the bytes have their digest as they came."""
    blob = upstream.put_blob("library/demo", 100_000)
    upstream.fault(blob, header("Content-Encoding", "gzip"))

    reply = await mirror.blob("demo", blob.digest)

    assert (reply.status, reply.body) == (200, blob.content)
    assert "Content-Encoding" not in reply.headers


async def test_a_head_that_fails_does_not_matter(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """The length stays unknown, and the blob arrives."""
    blob = upstream.put_blob("library/demo", 100_000)
    upstream.fault(blob, no_length(), method="GET")
    upstream.fault(blob, status(405), method="HEAD")
    upstream.fault(blob, status(500), method="GET", when=ranged)

    reply = await mirror.blob("demo", blob.digest)

    assert (reply.status, reply.body) == (200, blob.content)


async def test_an_unknown_length_without_room_is_said(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """There is no place to find it out: 503, and nothing stays."""
    mirror = await start_mirror(storage={"max_size": MIB})
    blob = upstream.put_blob("library/demo", 2 * MIB)
    upstream.fault(blob, no_length())
    upstream.fault(blob, header("Content-Range", None))

    reply = await mirror.blob("demo", blob.digest)
    await settled(mirror)

    assert reply.status == 503
    await until(lambda: left_behind(mirror) == {})  # the spool that was made ahead goes when the disk has time

"""Upstream faults stay upstream: a blob whose stream breaks is resumed, with exactly what is missing."""

from __future__ import annotations

import pytest

from tests.conftest import StartMirror
from tests.harness import RunningMirror, short_timeouts
from tests.reading import Reading, blob_path, left_behind, settled
from tests.upstream import (
    Bearer,
    Blob,
    FakeRegistry,
    Fault,
    header,
    ignore_range,
    no_length,
    ranged,
    redirect,
    refuse,
    reset,
    stall_at,
    status,
    trickle,
    truncate,
    wrong_206,
)

MIB = 1 << 20
SIZE = 2 * MIB
QUICK = short_timeouts(stall=0.1, min_rate_window=0.2)


@pytest.fixture
def blob(upstream: FakeRegistry) -> Blob:
    """A blob of 2 MiB."""
    return upstream.put_blob("library/demo", SIZE)


def ranges(upstream: FakeRegistry, blob: Blob, **filters: object) -> list[str | None]:
    """The Range headers of the GETs for a blob, in order."""
    return [seen.headers.get("Range") for seen in upstream.select(blob, method="GET", **filters)]


# Every kind of break, at several places.


@pytest.mark.parametrize("at", [0, 100_000, SIZE - 1])
@pytest.mark.parametrize("kind", [truncate, reset, stall_at], ids=["fin", "rst", "stall"])
async def test_a_break_is_resumed_with_what_is_missing(
    start_mirror: StartMirror, upstream: FakeRegistry, blob: Blob, kind: object, at: int
) -> None:
    """The client notices nothing; the upstream sends every byte once, the rest in answer to a closed range."""
    mirror = await start_mirror(timeouts=QUICK)
    upstream.fault(blob, kind(at), times=1)  # type: ignore[operator]  # parametrized

    reply = await mirror.blob("demo", blob.digest)
    await mirror.quiet()

    assert (reply.status, reply.body) == (200, blob.content)
    resumed = f"bytes={at}-{SIZE - 1}" if at else None
    assert ranges(upstream, blob) == [None, resumed]
    assert upstream.bytes_for(blob) == SIZE
    assert (await mirror.blob("demo", blob.digest)).cache == "hit"


async def test_a_trickle_is_given_up_for_a_new_stream(
    start_mirror: StartMirror, upstream: FakeRegistry, blob: Blob
) -> None:
    """Under `min_rate` over its window is as good as a break."""
    mirror = await start_mirror(timeouts=QUICK)
    upstream.fault(blob, trickle(1000), times=1)

    reply = await mirror.blob("demo", blob.digest)

    assert reply.body == blob.content
    assert upstream.requests_for(blob) == 2
    assert mirror.metric("mirror_upstream_retries_total", reason="slow") == 1


async def test_many_drops_with_progress_come_to_an_end(
    mirror: RunningMirror, upstream: FakeRegistry, blob: Blob
) -> None:
    """An upstream that drops every 100 kB is resumed twenty times."""
    upstream.fault(blob, truncate(100_000), times=20)

    reply = await mirror.blob("demo", blob.digest)

    assert reply.body == blob.content
    assert upstream.requests_for(blob) == 21
    assert upstream.bytes_for(blob) == SIZE


async def test_drops_without_progress_end_in_a_short_body(
    start_mirror: StartMirror, upstream: FakeRegistry, blob: Blob
) -> None:
    """After `no_progress` the clients get a FIN short of Content-Length, and nothing is kept."""
    mirror = await start_mirror(timeouts=short_timeouts(no_progress=0.5))
    upstream.fault(blob, truncate(MIB), times=1)
    upstream.fault(blob, refuse(), skip=1)

    async with await Reading.ask(mirror, blob_path("demo", blob)) as reading:
        assert await reading.rest() == blob.read(0, MIB)

        assert reading.ending == "short"
    await settled(mirror)
    assert left_behind(mirror) == {}
    assert upstream.requests_for(blob) > 3


async def test_an_outage_shorter_than_no_progress_is_outlasted(
    start_mirror: StartMirror, upstream: FakeRegistry, blob: Blob
) -> None:
    """However often the connection is refused meanwhile."""
    mirror = await start_mirror(timeouts=short_timeouts(no_progress=8))
    upstream.fault(blob, truncate(MIB), times=1)
    refused = upstream.fault(blob, refuse(), skip=1, times=15)

    reply = await mirror.blob("demo", blob.digest)

    assert reply.body == blob.content
    assert refused.hits == 15


# The way of the second request.


async def test_a_resume_asks_the_registry_for_a_fresh_redirect(
    mirror: RunningMirror, upstream: FakeRegistry, blob: Blob
) -> None:
    """Signed URLs expire: the registry is asked again, and the storage behind it gets the closed range."""
    upstream.fault(blob, redirect())
    upstream.fault(blob, truncate(MIB), times=1, origin="cdn")

    reply = await mirror.blob("demo", blob.digest)

    assert reply.body == blob.content
    assert upstream.requests_for(blob) == 2
    assert ranges(upstream, blob, origin="cdn") == [None, f"bytes={MIB}-{SIZE - 1}"]
    first, second = (seen.target for seen in upstream.select(blob, origin="cdn"))
    assert first != second


async def test_a_token_that_expires_in_the_middle_is_renewed(
    start_mirror: StartMirror, upstream: FakeRegistry, blob: Blob
) -> None:
    """The resume is refused to the old token, and goes on with a new one."""
    upstream.auth = auth = Bearer()
    mirror = await start_mirror()
    cut = upstream.fault(blob, stall_at(MIB), times=1)
    async with await Reading.ask(mirror, blob_path("demo", blob)) as reading:
        head = await reading.take(MIB - 4096)
        await cut.reached.wait()

        auth.expire_tokens()

        assert head + await reading.rest() == blob.content


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(status(500), id="500"),
        pytest.param(status(503, retry_after=0), id="503"),
        pytest.param(status(429, retry_after=0.1), id="429"),
        pytest.param(reset(), id="reset"),
        pytest.param(refuse(), id="refuse"),
        pytest.param(wrong_206("start"), id="206 start"),
        pytest.param(wrong_206("total"), id="206 total"),
        pytest.param(wrong_206("missing"), id="206 missing"),
        pytest.param(wrong_206("end"), id="206 end"),
        pytest.param(wrong_206("star"), id="206 star"),
        pytest.param(ignore_range(), id="200"),
        pytest.param(status(416), id="416"),
        pytest.param(status(400), id="400"),
    ],
)
async def test_a_fault_of_the_resume_is_outlived(
    mirror: RunningMirror, upstream: FakeRegistry, blob: Blob, fault: Fault
) -> None:
    """Refusals, other ranges than asked for, or no range at all: the client still gets exact bytes."""
    upstream.fault(blob, truncate(MIB + 1), times=1)
    rule = upstream.fault(blob, fault, times=1, when=ranged)

    reply = await mirror.blob("demo", blob.digest)

    assert (reply.status, reply.body) == (200, blob.content)
    assert rule.hits == 1
    assert mirror.metric("mirror_digest_mismatches_total") == 0


async def test_a_shifted_range_is_wrong_bytes(mirror: RunningMirror, upstream: FakeRegistry, blob: Blob) -> None:
    """A 206 that says what was asked but carries other bytes shows only in the digest; the next client is served."""
    upstream.fault(blob, truncate(MIB), times=1)
    upstream.fault(blob, wrong_206("shifted"), times=1)

    async with await Reading.ask(mirror, blob_path("demo", blob)) as reading:
        await reading.rest()
        assert reading.ending == "short"
    await mirror.quiet()

    assert (await mirror.blob("demo", blob.digest)).body == blob.content
    assert mirror.metric("mirror_digest_mismatches_total") == 1


async def test_a_pause_that_the_upstream_asks_for_is_kept(
    mirror: RunningMirror, upstream: FakeRegistry, blob: Blob
) -> None:
    """429 in the middle: exactly one more request, after the time it named."""
    upstream.fault(blob, truncate(MIB), times=1)
    upstream.fault(blob, status(429, retry_after=0.3), times=1, when=ranged)

    reply = await mirror.blob("demo", blob.digest)

    assert reply.body == blob.content
    assert upstream.requests_for(blob) == 3


async def test_a_pause_longer_than_patience_ends_it_at_once(
    mirror: RunningMirror, upstream: FakeRegistry, blob: Blob
) -> None:
    """Nobody is left hanging for a time that is known to be too long."""
    upstream.fault(blob, truncate(MIB), times=1)
    upstream.fault(blob, status(429, retry_after=300), when=ranged)

    async with await Reading.ask(mirror, blob_path("demo", blob)) as reading:
        await reading.rest(limit=mirror.settings.timeouts.no_progress)
        assert reading.ending == "short"


async def test_a_refusal_of_the_resume_is_final(mirror: RunningMirror, upstream: FakeRegistry, blob: Blob) -> None:
    """404 in the middle is a no: the body ends short, and the next client hears 404."""
    upstream.fault(blob, truncate(MIB), times=1)
    upstream.fault(blob, status(404), when=ranged)

    async with await Reading.ask(mirror, blob_path("demo", blob)) as reading:
        await reading.rest()
        assert reading.ending == "short"

    assert (await mirror.blob("demo", blob.digest)).status == 404


async def test_an_upstream_that_never_does_ranges_is_not_asked_forever(
    start_mirror: StartMirror, upstream: FakeRegistry, blob: Blob
) -> None:
    """Bytes that are thrown away count: it ends after a few times the blob's size, however patient we are."""
    mirror = await start_mirror(timeouts=short_timeouts(no_progress=60))
    upstream.fault(blob, ignore_range())
    upstream.fault(blob, truncate(MIB))

    async with await Reading.ask(mirror, blob_path("demo", blob)) as reading:
        assert await reading.rest() == blob.read(0, MIB)
        assert reading.ending == "short"
    assert upstream.bytes_for(blob) < 5 * SIZE


# Blobs that promise no length can be resumed where something else told it.


@pytest.mark.parametrize("cut", [truncate(MIB, "chunked-complete"), truncate(MIB, "close")], ids=["chunked", "close"])
async def test_a_cut_that_looks_whole_is_resumed(mirror: RunningMirror, upstream: FakeRegistry, cut: Fault) -> None:
    """Without a length the cut looks like the end; the manifest's length and the digest tell that it is none."""
    image = upstream.add_image("library/demo", "1", layers=[SIZE])
    blob = image.layers[0]
    await mirror.manifest("demo", "1")
    upstream.fault(blob, cut, times=1)

    reply = await mirror.blob("demo", blob.digest)

    assert (reply.status, reply.body) == (200, blob.content)
    assert ranges(upstream, blob) == [None, f"bytes={MIB}-{SIZE - 1}"]
    assert upstream.bytes_for(blob) == SIZE


async def test_a_blob_of_unknown_length_that_breaks_is_fetched_anew(
    mirror: RunningMirror, upstream: FakeRegistry, blob: Blob
) -> None:
    """Nobody has a byte of it yet, so that nobody notices."""
    upstream.fault(blob, no_length())
    upstream.fault(blob, header("Content-Range", None), when=ranged)  # nor does a range tell it
    upstream.fault(blob, truncate(MIB, "chunked"), times=1)

    reply = await mirror.blob("demo", blob.digest)

    assert (reply.status, reply.body) == (200, blob.content)

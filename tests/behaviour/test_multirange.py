"""Several ranges in one request: multipart/byteranges, wherever the bytes are, for few requests to the upstream."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator

import pytest

from mirror.config import Timeouts
from mirror.oci.byte_range import MOST_RANGES
from mirror.store.files import Files
from tests.conftest import StartMirror
from tests.faulty import FullDisk
from tests.harness import RunningMirror, short_timeouts
from tests.lines import Lines, lines
from tests.parts import expected, parts_of, read_parts, split_parts
from tests.raw import RawClient
from tests.reading import Reading, blob_path, left_behind, nothing_unheard, settled
from tests.upstream import (
    Blob,
    FakeRegistry,
    gzipped,
    ignore_range,
    ranged,
    reset,
    stall_at,
    status,
    truncate,
    wrong_206,
)

__all__ = ["lines"]

KIB = 1 << 10
MIB = 1 << 20
SIZE = 4 * MIB
BLOB_TYPE = "application/octet-stream"
PATIENT = short_timeouts(stall=10, first_byte=10, cold_head=10, no_progress=30)
Pairs = list[tuple[int, int]]


@pytest.fixture(autouse=True)
async def heard() -> AsyncIterator[None]:
    """No test leaves an exception that nobody heard."""
    with nothing_unheard():
        yield


def header(pairs: Pairs) -> str:
    """The Range header for first and last bytes."""
    return "bytes=" + ",".join(f"{first}-{last}" for first, last in pairs)


def asked(upstream: FakeRegistry, blob: Blob) -> list[str]:
    """The ranges that were asked of the upstream, in order."""
    return [seen.headers["Range"] for seen in upstream.select(blob) if "Range" in seen.headers]


def fills(upstream: FakeRegistry, blob: Blob) -> int:
    """How often the whole blob was asked for."""
    return sum("Range" not in seen.headers for seen in upstream.select(blob, method="GET"))


async def hold(mirror: RunningMirror, upstream: FakeRegistry, size: int = SIZE) -> Blob:
    """A new blob of library/demo that the mirror holds."""
    blob = upstream.put_blob("library/demo", size)
    assert (await mirror.blob("demo", blob.digest)).body == blob.content
    await mirror.quiet()
    return blob


# What is answered.

ORDERS: dict[str, Pairs] = {
    "rising": [(0, 0), (10, 19), (MIB, 2 * MIB), (SIZE - 1, SIZE - 1)],
    "falling": [(SIZE - 10, SIZE - 1), (MIB, MIB + 70_000), (5, 5), (0, 4)],
    "adjacent": [(100, 199), (200, 299), (300, 300)],
    "overlapping": [(100, 300_000), (200, 299), (0, 150), (100, 101), (100, 101)],
    "nearly all of it": [(0, 2 * MIB), (2 * MIB + 2, SIZE - 1)],
}


@pytest.mark.parametrize("where", ["held", "in flight", "cold", "passing through"])
async def test_each_range_is_a_part_of_its_own(start_mirror: StartMirror, upstream: FakeRegistry, where: str) -> None:
    """In the order that was asked for, none merged, with exact lengths, and the headers of a single range."""
    room = {"max_size": 1 * MIB} if where == "passing through" else {}
    mirror = await start_mirror(timeouts=PATIENT, storage=room)
    for pairs in ORDERS.values():
        blob = await hold(mirror, upstream) if where == "held" else upstream.put_blob("library/demo", SIZE)
        if where == "in flight":
            held = upstream.fault(blob, stall_at(MIB + 50_000), times=1)
            async with await Reading.ask(mirror, blob_path("demo", blob)) as whole:
                await whole.take(MIB)
                held.release()
                reply = await mirror.get(blob_path("demo", blob), Range=header(pairs))
        else:
            reply = await mirror.get(blob_path("demo", blob), Range=header(pairs))

        assert parts_of(reply) == expected(pairs, blob.content, BLOB_TYPE)
        assert reply.headers["Docker-Content-Digest"] == str(blob.digest)
        assert reply.headers["ETag"] == f'"{blob.digest}"'
        assert reply.headers["Accept-Ranges"] == "bytes"
        assert "Content-Range" not in reply.headers
    await settled(mirror)
    assert left_behind(mirror) == {}


@pytest.mark.parametrize("by", ["tag", "digest"])
async def test_manifests_are_given_in_parts_too(mirror: RunningMirror, upstream: FakeRegistry, by: str) -> None:
    """With their own type in each part; an open range and a suffix among them."""
    image = upstream.add_image("library/demo", "1")
    content, media_type = image.manifest.content, image.manifest.media_type
    size = len(content)

    reply = await mirror.manifest("demo", "1" if by == "tag" else image.digest, Range=f"bytes=7-9,0-0,-3,{size - 4}-")

    pairs = [(7, 9), (0, 0), (size - 3, size - 1), (size - 4, size - 1)]
    assert parts_of(reply) == expected(pairs, content, media_type)
    assert reply.headers["Docker-Content-Digest"] == str(image.digest)


@pytest.mark.parametrize("where", ["held", "cold"])
async def test_what_lies_past_the_end_is_left_out(mirror: RunningMirror, upstream: FakeRegistry, where: str) -> None:
    """Ends are clamped; one part that is left comes as a plain range; none is a 416 with the size."""
    for ranges, pairs in (
        ("5-9,900-,990-2000", [(5, 9), (900, 999), (990, 999)]),
        ("1000-,0-1,-0,3-4", [(0, 1), (3, 4)]),
    ):
        blob = await hold(mirror, upstream, 1000) if where == "held" else upstream.put_blob("library/demo", 1000)
        reply = await mirror.get(blob_path("demo", blob), Range=f"bytes={ranges}")
        assert parts_of(reply) == expected(pairs, blob.content, BLOB_TYPE)

    blob = await hold(mirror, upstream, 1000) if where == "held" else upstream.put_blob("library/demo", 1000)
    one = await mirror.get(blob_path("demo", blob), Range="bytes=1000-,7-8,2000-2001")
    none = await mirror.get(blob_path("demo", blob), Range="bytes=1000-,-0,2000-2001")

    assert (one.status, one.headers["Content-Type"], one.body) == (206, BLOB_TYPE, blob.content[7:9])
    assert one.headers["Content-Range"] == "bytes 7-8/1000"
    assert (none.status, none.code, none.headers["Content-Range"]) == (416, "SIZE_INVALID", "bytes */1000")


async def test_nothing_has_no_parts(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """An empty blob: 416, cold and held."""
    blob = upstream.put_blob("library/demo", b"")
    for _ in range(2):
        reply = await mirror.get(blob_path("demo", blob), Range="bytes=0-,-5")
        assert (reply.status, reply.headers["Content-Range"]) == (416, "bytes */0")
        await mirror.quiet()


@pytest.mark.parametrize("where", ["held", "cold", "manifest"])
async def test_so_many_ranges_and_no_more_than_there_is(
    mirror: RunningMirror, upstream: FakeRegistry, where: str
) -> None:
    """A 400 in the specification's words for more ranges than are served, or for more bytes than there are: clients
    then ask for fewer. A list of one is a plain range.
    """
    image = upstream.add_image("library/demo", "1", layers=[5000])
    content = image.manifest.content if where == "manifest" else image.layers[0].content
    path = "/v2/demo/manifests/1" if where == "manifest" else blob_path("demo", image.layers[0])
    if where == "held":
        await mirror.get(path)
        await mirror.quiet()

    for ranges in (",".join("0-0" for _ in range(MOST_RANGES + 1)), "0-,0-0", "-1,0-", f"0-99,0-{len(content) - 100}"):
        reply = await mirror.get(path, Range=f"bytes={ranges}")
        assert (reply.status, reply.code) == (400, "UNSUPPORTED"), ranges[:20]
    assert parts_of(await mirror.get(path, Range="bytes=" + ",".join(["0-0"] * 100)))[99][1] == content[:1]
    one = await mirror.get(path, Range="bytes=,4-5,")
    assert (one.status, one.body, one.headers["Content-Range"]) == (206, content[4:6], f"bytes 4-5/{len(content)}")


async def test_a_malformed_list_is_ignored(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """The whole, as RFC 9110 has it, be there a good range in the list, or a second line of the header."""
    blob = await hold(mirror, upstream, 5000)
    for ranges in ("0-1,x", "0-1,5-4", "0-1;2-3", "0-1, bytes=3-4", "0-1,-"):
        reply = await mirror.get(blob_path("demo", blob), Range=f"bytes={ranges}")
        assert (reply.status, reply.body) == (200, blob.content), ranges


async def test_more_ranges_than_a_line_holds_are_a_400(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """In the specification's words. 1,024 of a blob of many GiB fit."""
    blob = await hold(mirror, upstream, 2000)
    longest = "bytes=" + ",".join(f"{10**12 + number}-{10**12 + number}" for number in range(MOST_RANGES - 1)) + ",3-3"
    async with await RawClient.connect(mirror.app.port) as client:
        await client.ask(blob_path("demo", blob), Range=longest)
        head, body = await client.answer()
        assert (head.status, body) == (206, blob.content[3:4])
        await client.ask(blob_path("demo", blob), Range=longest + longest)
        code, error = await client.error()
    assert (code, error["code"]) == (400, "UNSUPPORTED")


async def test_conditions_go_before_ranges(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """Who has it is told so, whatever ranges he asks for; parts of another thing are the whole of this one."""
    blob = await hold(mirror, upstream, 5000)
    tag, path = f'"{blob.digest}"', blob_path("demo", blob)
    for ranges in ("bytes=0-1,3-4", "bytes=9000-", "bytes=0-,0-"):
        has = await mirror.get(path, Range=ranges, If_None_Match=f'"other,", W/{tag}', If_Range=tag)
        assert (has.status, has.body, has.headers["ETag"]) == (304, b"", tag)
        other = await mirror.get(path, Range=ranges, If_Range=f"W/{tag}")
        assert (other.status, other.body) == (200, blob.content)
    reply = await mirror.get(path, Range="bytes=0-1,3-4", If_Range=tag, If_None_Match='"other"')
    assert parts_of(reply) == expected([(0, 1), (3, 4)], blob.content, BLOB_TYPE)


# What the upstream is asked.


async def test_neighbours_share_a_request(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """A part 64 KiB after another comes with it, and what lies between counts as bypassed; the blob is filled once."""
    mirror = await start_mirror(timeouts=PATIENT)
    blob = upstream.put_blob("library/demo", 8 * MIB)
    held = upstream.fault(blob, stall_at(0), times=1)
    first, second, last = 3 * MIB, 3 * MIB + 10 + 64 * KIB, 6 * MIB
    pairs = [(first, first + 9), (second, second + 10), (last, last + 99), (last + 200, last + 299)]

    reply = await mirror.get(blob_path("demo", blob), Range=header(pairs))

    assert parts_of(reply) == expected(pairs, blob.content, BLOB_TYPE)
    assert reply.cache == "bypass"
    assert asked(upstream, blob) == [header([(first, second + 10)]), header([(last, last + 299)])]
    assert fills(upstream, blob) == 1
    assert mirror.metric("mirror_bypass_bytes_total", reason="range") == 21 + 64 * KIB + 300
    held.release()
    await mirror.quiet()
    assert (await mirror.blob("demo", blob.digest)).cache == "hit"
    assert fills(upstream, blob) == 1


@pytest.mark.parametrize("where", ["held", "cold"])
async def test_a_thousand_parts_cost_one_fetch(start_mirror: StartMirror, upstream: FakeRegistry, where: str) -> None:
    """As many as fit, each with its bytes. All over a cold blob they come with the fill, which has to bring them
    anyway: own requests would do it for the second time.
    """
    mirror = await start_mirror(timeouts=PATIENT)
    size = 8 * MIB
    blob = await hold(mirror, upstream, size) if where == "held" else upstream.put_blob("library/demo", size)
    step = size // MOST_RANGES
    pairs = [((n + 8) * step, (n + 8) * step + n % 50) for n in range(MOST_RANGES - 8)]
    pairs += [(100 + 8 * n, 103 + 8 * n) for n in range(8)]

    reply = await mirror.get(blob_path("demo", blob), Range=header(pairs))

    assert reply.status == 206
    assert split_parts(reply.headers["Content-Type"], reply.body) == expected(pairs, blob.content, BLOB_TYPE)
    assert upstream.requests_for(blob) == 1
    assert upstream.bytes_for(blob) == size


async def test_scattered_parts_share_requests(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """Too many for a request each: what lies between them is then fetched with them, as it is less than the blob."""
    mirror = await start_mirror(timeouts=PATIENT)
    blob = upstream.put_blob("library/demo", 16 * MIB)
    upstream.fault(blob, stall_at(0), times=1)
    pairs = [(9 * MIB + n * 150_000, 9 * MIB + n * 150_000 + n) for n in range(40)]

    reply = await mirror.get(blob_path("demo", blob), Range=header(pairs))

    assert parts_of(reply) == expected(pairs, blob.content, BLOB_TYPE)
    assert len(asked(upstream, blob)) <= 4
    assert fills(upstream, blob) == 1
    assert upstream.bytes_for(blob) <= 40 * 150_000


async def test_parts_without_order_wait_for_the_fill(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """They cannot share requests: after 32 of their own the rest comes with the fill, however far that is."""
    mirror = await start_mirror(timeouts=PATIENT)
    blob = upstream.put_blob("library/demo", 8 * MIB)
    held = upstream.fault(blob, stall_at(0), times=1)
    step = blob.size // 64
    pairs = [(n * step, n * step + 9) for n in reversed(range(64))]

    async with await Reading.ask(mirror, blob_path("demo", blob), Range=header(pairs)) as reading:
        await upstream.until(lambda: len(asked(upstream, blob)) == 32)
        start = await reading.take(31 * 100)
        held.release()
        body = start + await reading.rest()

    assert read_parts(reading.headers["Content-Type"], body) == expected(pairs, blob.content, BLOB_TYPE)
    await mirror.quiet()
    assert len(asked(upstream, blob)) == 32
    assert fills(upstream, blob) == 1


async def test_a_stretch_of_any_length_is_one(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """Its pieces end between parts: that is no new stretch, however many they are. Here nothing else could serve it."""
    mirror = await start_mirror(timeouts=PATIENT, storage={"max_size": 2 * MIB})
    blob = upstream.put_blob("library/demo", 280 * MIB)
    pairs = [(MIB // 2 + n * MIB * 3 // 10, MIB // 2 + n * MIB * 3 // 10 + 9) for n in range(930)]

    reply = await mirror.get(blob_path("demo", blob), Range=header(pairs))

    assert split_parts(reply.headers["Content-Type"], reply.body) == [
        ({"Content-Type": BLOB_TYPE, "Content-Range": f"bytes {first}-{last}/{blob.size}"}, blob.read(first, 10))
        for first, last in pairs
    ]
    assert len(asked(upstream, blob)) > 32


async def test_the_same_byte_again_and_again_costs_few_requests(
    start_mirror: StartMirror, upstream: FakeRegistry
) -> None:
    """Together they are less than the blob, but each would be a request of its own."""
    mirror = await start_mirror(timeouts=PATIENT)
    blob = upstream.put_blob("library/demo", 8 * MIB)
    held = upstream.fault(blob, stall_at(0), times=1)
    pairs = [(4 * MIB, 7 * MIB), *[(4 * MIB, 4 * MIB), (6 * MIB, 6 * MIB)] * 200]

    async with await Reading.ask(mirror, blob_path("demo", blob), Range=header(pairs)) as reading:
        start = await reading.take(3 * MIB)
        await upstream.until(lambda: len(asked(upstream, blob)) >= 33)
        held.release()
        body = start + await reading.rest()

    assert split_parts(reading.headers["Content-Type"], body) == expected(pairs, blob.content, BLOB_TYPE)
    await mirror.quiet()
    assert len(asked(upstream, blob)) <= 35
    assert fills(upstream, blob) == 1


async def test_parts_without_order_and_without_a_fill_are_refused(
    start_mirror: StartMirror, upstream: FakeRegistry
) -> None:
    """There is no room to wait for them in; fewer are served."""
    mirror = await start_mirror(timeouts=PATIENT, storage={"max_size": MIB})
    blob = upstream.put_blob("library/demo", 8 * MIB)
    pairs = [(n * 100_000, n * 100_000 + 9) for n in reversed(range(33))]

    many = await mirror.get(blob_path("demo", blob), Range=header(pairs))
    fewer = await mirror.get(blob_path("demo", blob), Range=header(pairs[1:]))

    assert (many.status, many.code) == (400, "UNSUPPORTED")
    assert parts_of(fewer) == expected(pairs[1:], blob.content, BLOB_TYPE)
    await settled(mirror)
    assert left_behind(mirror) == {}


async def test_what_the_fill_has_reached_comes_from_it(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """The first part is asked for, the others are there by the time that their turn comes."""
    mirror = await start_mirror(timeouts=PATIENT)
    blob = upstream.put_blob("library/demo", 8 * MIB)
    fill = upstream.fault(blob, stall_at(0), times=1)
    own = upstream.fault(blob, stall_at(500), when=ranged)
    pairs = [(7 * MIB, 7 * MIB + 999), (MIB, 2 * MIB), (5 * MIB, 6 * MIB), (0, 0)]

    async with await Reading.ask(mirror, blob_path("demo", blob), Range=header(pairs)) as reading:
        start = await reading.take(400)
        fill.release()
        await mirror.quiet()
        own.release()
        body = start + await reading.rest()

    assert read_parts(reading.headers["Content-Type"], body) == expected(pairs, blob.content, BLOB_TYPE)
    assert asked(upstream, blob) == [header(pairs[:1])]


@pytest.mark.parametrize("fault", [truncate(400), reset(400)], ids=["FIN", "RST"])
async def test_a_break_between_parts_is_resumed(
    start_mirror: StartMirror, upstream: FakeRegistry, fault: object
) -> None:
    """In the gap, and in the part after it."""
    mirror = await start_mirror(timeouts=PATIENT)
    blob = upstream.put_blob("library/demo", SIZE)
    upstream.fault(blob, stall_at(0), times=1)
    upstream.fault(blob, fault, times=2, when=ranged)  # type: ignore[arg-type]  # parametrized
    start = 2 * MIB
    pairs = [(start, start + 299), (start + 500, start + 999)]

    reply = await mirror.get(blob_path("demo", blob), Range=header(pairs))

    assert parts_of(reply) == expected(pairs, blob.content, BLOB_TYPE)
    assert asked(upstream, blob)[:2] == [header([(start, start + 999)]), header([(start + 400, start + 999)])]


@pytest.mark.parametrize("fault", [ignore_range(), gzipped(), status(416), status(400)], ids=lambda fault: fault.name)
async def test_an_upstream_without_ranges_gives_the_whole(
    start_mirror: StartMirror, upstream: FakeRegistry, fault: object
) -> None:
    """Once: every part waits for the fill."""
    mirror = await start_mirror(timeouts=PATIENT)
    blob = upstream.put_blob("library/demo", SIZE)
    upstream.fault(blob, fault, when=ranged)  # type: ignore[arg-type]  # parametrized
    pairs = [(3 * MIB, 3 * MIB + 9), (2 * MIB, 2 * MIB + 9), (5, 9), (SIZE - 5, SIZE - 1)]

    reply = await mirror.get(blob_path("demo", blob), Range=header(pairs))

    assert parts_of(reply) == expected(pairs, blob.content, BLOB_TYPE)
    await mirror.quiet()
    assert fills(upstream, blob) <= 2  # one may be the answer to a range that was ignored


async def test_an_upstream_without_ranges_gives_parts_that_are_not_kept(
    start_mirror: StartMirror, upstream: FakeRegistry
) -> None:
    """Nor is there room for the blob: it is read from its start as far as the last part, which takes rising order."""
    mirror = await start_mirror(timeouts=PATIENT, storage={"max_size": MIB})
    blob = upstream.put_blob("library/demo", 8 * MIB)
    upstream.fault(blob, ignore_range(), when=ranged)
    rising = [(2 * MIB, 2 * MIB + 9), (2 * MIB + 100_000, 3 * MIB), (4 * MIB, 4 * MIB + 9)]

    several = await mirror.get(blob_path("demo", blob), Range=header(rising))
    one = await mirror.get(blob_path("demo", blob), Range="bytes=8388000-")
    falling = await mirror.get(blob_path("demo", blob), Range=header(rising[::-1]))

    assert parts_of(several) == expected(rising, blob.content, BLOB_TYPE)
    assert (one.status, one.body) == (206, blob.read(8388000, 1 << 20))
    assert falling.status == 503
    await settled(mirror)
    assert left_behind(mirror) == {}


WRONG = [wrong_206("start"), wrong_206("end"), wrong_206("total"), wrong_206("missing"), wrong_206("star")]


@pytest.mark.parametrize("fault", WRONG, ids=lambda fault: fault.name)
async def test_an_upstream_whose_parts_are_off_hurts_nobody(
    start_mirror: StartMirror, upstream: FakeRegistry, fault: object
) -> None:
    """What is legal is taken, and the rest of it asked for; what is not is not believed: the fill has to come."""
    mirror = await start_mirror(timeouts=PATIENT)
    blob = upstream.put_blob("library/demo", SIZE)
    upstream.fault(blob, fault, when=ranged)  # type: ignore[arg-type]  # parametrized
    pairs = [(3 * MIB, 3 * MIB + 9), (2 * MIB, 2 * MIB + 9), (2 * MIB + 100, 2 * MIB + 199), (0, 0)]

    async with asyncio.timeout(10):  # not as long as an upstream is given that may come back
        reply = await mirror.get(blob_path("demo", blob), Range=header(pairs))

    assert parts_of(reply) == expected(pairs, blob.content, BLOB_TYPE)


async def test_all_that_is_fetched_past_the_fill_is_counted(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """Also what was thrown away: what is left of the upstream's bytes is then what was stored."""
    mirror = await start_mirror(timeouts=PATIENT)
    for fault in (None, ignore_range()):
        blob = upstream.put_blob("library/demo", SIZE)
        if fault is not None:
            upstream.fault(blob, fault, when=ranged)
        held = upstream.fault(blob, stall_at(0), times=1)
        await mirror.get(blob_path("demo", blob), Range="bytes=500000-500009,510000-510009")
        held.release()
        await mirror.quiet()

    fetched = mirror.metric("mirror_upstream_bytes_total", kind="blob")
    assert (
        fetched - mirror.metric("mirror_bypass_bytes_total") == mirror.metric("mirror_stored_bytes_total") == 2 * SIZE
    )
    assert mirror.metric("mirror_bypass_bytes_total") >= 10_010 + 510_010


async def test_an_upstream_that_loses_its_ranges_between_parts_gives_the_whole(
    start_mirror: StartMirror, upstream: FakeRegistry
) -> None:
    """The first part came by a request of its own, the next cannot: it waits for the fill, and for nothing else."""
    mirror = await start_mirror(timeouts=short_timeouts(stall=60, first_byte=60, cold_head=10, no_progress=600))
    blob = upstream.put_blob("library/demo", SIZE)
    held = upstream.fault(blob, stall_at(0), times=1)
    upstream.fault(blob, ignore_range(), skip=1, when=ranged)
    pairs = [(3 * MIB, 3 * MIB + 9), (2 * MIB, 2 * MIB + 9)]

    async with await Reading.ask(mirror, blob_path("demo", blob), Range=header(pairs)) as reading:
        await upstream.until(lambda: upstream.count(blob) >= 3)
        held.release()
        body = await reading.rest()

    assert read_parts(reading.headers["Content-Type"], body) == expected(pairs, blob.content, BLOB_TYPE)
    assert upstream.count(blob) == 3


async def test_an_upstream_that_fails_before_the_first_part_has_a_status(
    mirror: RunningMirror, upstream: FakeRegistry
) -> None:
    """Not a cut body: nothing was promised yet."""
    blob = upstream.put_blob("library/demo", SIZE)
    upstream.fault(blob, status(404))

    reply = await mirror.get(blob_path("demo", blob), Range="bytes=1000000-1000001,5-6")

    assert (reply.status, reply.code) == (404, "BLOB_UNKNOWN")


async def test_an_upstream_that_fails_between_parts_cuts_the_answer_short(
    start_mirror: StartMirror, upstream: FakeRegistry
) -> None:
    """A FIN short of Content-Length, after everything that came; nothing that looks complete, no reset."""
    mirror = await start_mirror(timeouts=short_timeouts(no_progress=0.3, cold_head=5))
    blob = upstream.put_blob("library/demo", SIZE)
    upstream.fault(blob, status(500), skip=1, when=ranged)
    upstream.fault(blob, stall_at(0), times=1)
    pairs = [(2 * MIB, 2 * MIB + 999), (3 * MIB, 3 * MIB + 999)]

    async with await Reading.ask(mirror, blob_path("demo", blob), Range=header(pairs)) as reading:
        body = await reading.rest()

    assert (reading.status, reading.ending) == (206, "short")
    assert blob.read(2 * MIB, 1000) in body


# Our own disk.


class FailingDisk(Files):
    """Fails to send from `fails_at` on, once it is set."""

    def __init__(self, code: int | None) -> None:
        self.fails_at: int | None = None
        self._code = code

    def sendfile(self, out: int, fd: int, offset: int, count: int) -> int:
        if self.fails_at is None or offset + count <= self.fails_at:
            return super().sendfile(out, fd, offset, count)
        if offset < self.fails_at:
            return super().sendfile(out, fd, offset, self.fails_at - offset)
        if self._code is None:
            return 0
        raise OSError(self._code, "planted")


@pytest.mark.parametrize("code", [errno.EIO, None], ids=["EIO", "shorter than it was"])
async def test_a_file_that_fails_between_parts_costs_no_byte(
    start_mirror: StartMirror, upstream: FakeRegistry, code: int | None
) -> None:
    """The parts that it cannot give any more come from the upstream, in any order."""
    disk = FailingDisk(code)
    mirror = await start_mirror(files=disk, timeouts=Timeouts())
    blob = await hold(mirror, upstream)
    disk.fails_at = 2 * MIB + 500
    pairs = [(0, 99), (2 * MIB, 2 * MIB + 999), (3 * MIB, 3 * MIB + 9), (100, 199)]

    reply = await mirror.get(blob_path("demo", blob), Range=header(pairs))

    assert parts_of(reply) == expected(pairs, blob.content, BLOB_TYPE)
    assert asked(upstream, blob)[0] == header([(2 * MIB + 500, 2 * MIB + 999)])


async def test_a_spool_that_fails_between_parts_costs_no_byte(
    start_mirror: StartMirror, upstream: FakeRegistry
) -> None:
    """As a held blob."""
    disk = FailingDisk(errno.EIO)
    mirror = await start_mirror(files=disk, timeouts=PATIENT)
    blob = upstream.put_blob("library/demo", SIZE)
    held = upstream.fault(blob, stall_at(3 * MIB), times=1)
    async with await Reading.ask(mirror, blob_path("demo", blob)) as whole:
        await whole.take(2 * MIB)
        disk.fails_at = MIB
        pairs = [(0, 99), (MIB - 5, MIB + 999), (MIB // 2, MIB // 2 + 9), (2 * MIB, 2 * MIB + 9)]

        reply = await mirror.get(blob_path("demo", blob), Range=header(pairs))

        assert parts_of(reply) == expected(pairs, blob.content, BLOB_TYPE)
        disk.fails_at = None
        held.release()
        assert await whole.rest() == blob.read(2 * MIB, SIZE)


async def test_a_disk_that_takes_no_more_costs_no_part(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """What it has taken comes from it, the rest by own requests, in any order."""
    mirror = await start_mirror(files=FullDisk(2 * MIB), timeouts=PATIENT)
    blob = upstream.put_blob("library/demo", SIZE)
    held = upstream.fault(blob, stall_at(MIB), times=1)
    pairs = [(0, MIB // 2), (MIB - 100, MIB + 99), (3 * MIB, 3 * MIB + 9), (50, 99), (SIZE - 5, SIZE - 1)]
    async with await Reading.ask(mirror, blob_path("demo", blob)) as whole:
        await whole.take(MIB)
        async with await Reading.ask(mirror, blob_path("demo", blob), Range=header(pairs)) as reading:
            start = await reading.take(MIB // 2)
            held.release()
            body = start + await reading.rest()
        assert await whole.rest() == blob.read(MIB, SIZE)

    assert read_parts(reading.headers["Content-Type"], body) == expected(pairs, blob.content, BLOB_TYPE)
    await settled(mirror)
    assert left_behind(mirror) == {}


async def test_a_blob_that_is_evicted_between_parts_stays_readable(
    start_mirror: StartMirror, upstream: FakeRegistry
) -> None:
    """Who has begun ends with it."""
    mirror = await start_mirror(timeouts=PATIENT)
    blob = await hold(mirror, upstream, 8 * MIB)
    pairs = [(0, 4 * MIB), (5 * MIB, 8 * MIB - 1), (4 * MIB + 5, 4 * MIB + 9)]

    async with await Reading.ask(mirror, blob_path("demo", blob), receive_buffer=65536, Range=header(pairs)) as reading:
        start = await reading.take(1000)
        await mirror.app.blobs.remove(blob.digest)
        body = start + await reading.rest()

    assert read_parts(reading.headers["Content-Type"], body) == expected(pairs, blob.content, BLOB_TYPE)
    assert upstream.requests_for(blob) == 1
    await settled(mirror)


# The wire.


async def test_answers_follow_each_other_on_one_connection(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """Requests that were sent ahead: the next answer begins where the last part has ended."""
    blob = await hold(mirror, upstream, 300_000)
    cold = upstream.put_blob("library/demo", 300_000)
    pairs = [(5, 9), (200_000, 299_999), (0, 0)]
    async with await RawClient.connect(mirror.app.port) as client:
        for one in (blob, cold, blob):
            await client.ask(blob_path("demo", one), Range=header(pairs))
        await client.ask("/v2/")
        for one in (blob, cold, blob):
            head, body = await client.answer()
            assert head.status == 206
            assert read_parts(head.headers["Content-Type"], body) == expected(pairs, one.content, BLOB_TYPE)
        assert (await client.answer())[1] == b"{}"


async def test_a_client_that_leaves_between_parts_leaves_nothing(
    lines: Lines, start_mirror: StartMirror, upstream: FakeRegistry
) -> None:
    """By a reset, in the middle of parts from the disk and of parts from the upstream: no error line, nothing open."""
    mirror = await start_mirror(timeouts=PATIENT)
    blob = await hold(mirror, upstream, 16 * MIB)
    cold = upstream.put_blob("library/demo", 16 * MIB)
    upstream.fault(cold, stall_at(0), times=1).release()
    pairs = [(MIB, 5 * MIB), (6 * MIB, 10 * MIB), (0, 9)]
    for one in (blob, cold):
        for taken in (1, 4 * MIB + 300, 5 * MIB):
            async with await RawClient.connect(mirror.app.port, receive_buffer=4096) as client:
                await client.ask(blob_path("demo", one), Range=header(pairs))
                assert (await client.head()).status == 206
                await client.read(taken)
                client.reset()

    await settled(mirror)
    assert mirror.metric("mirror_requests_total", kind="blob", status="499") == 6
    assert lines.troubles() == []


async def test_a_client_that_has_every_part_has_not_left(
    lines: Lines, start_mirror: StartMirror, upstream: FakeRegistry
) -> None:
    """The access line counts the bytes of the body, framing and all."""
    mirror = await start_mirror(timeouts=PATIENT)
    blob = await hold(mirror, upstream, 100_000)
    async with await RawClient.connect(mirror.app.port) as client:
        await client.ask(blob_path("demo", blob), Range="bytes=0-49999,60000-99999")
        head, body = await client.answer()
        client.close()
    await mirror.app.traffic.recorded()

    line = lines.access()[-1]
    assert (line["status"], line["result"], line["bytes"]) == (206, "hit", head.length)
    assert len(body) == head.length

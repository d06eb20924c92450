"""Ranges of every form by many clients at once, who stay, leave or stall, while the upstream breaks and blobs go."""

from __future__ import annotations

import asyncio
import random

import pytest

from mirror.oci.byte_range import parse_ranges
from mirror.oci.errors import RangeInvalid, RangeNotSatisfiable
from tests.conftest import StartMirror
from tests.harness import RunningMirror, short_timeouts
from tests.lines import Lines, lines
from tests.parts import Part, expected, split_parts
from tests.raw import Head, RawClient
from tests.reading import blob_path, left_behind, nothing_unheard, settled
from tests.upstream import ANY, Blob, FakeRegistry, ignore_range, ranged, reset, truncate

__all__ = ["lines"]

KIB = 1 << 10
BLOB_TYPE = "application/octet-stream"
SIZES = (1, 4095, 5000, 300_000, 1_500_000, 3_000_000)


def any_ranges(chance: random.Random, size: int) -> str:
    """A Range header of one to forty ranges, near each other or not, in order or not, some of them out of reach."""
    count = chance.choice((1, 1, 2, 3, 10, 40))
    longest = max(1, chance.choice((10, 3000, size)) // count)
    texts = []
    for _ in range(count):
        first = chance.randrange(size + size // 20 + 1)
        last = first + chance.randrange(longest)
        texts.append(chance.choices((f"{first}-{last}", f"{first}-", f"-{last - first}"), (12, 1, 1))[0])
    if chance.random() < 0.5:
        texts.sort(key=lambda text: int(text.partition("-")[0] or 0))
    return "bytes=" + ",".join(texts)


def check(head: Head, body: bytes, header: str, blob: Blob, *, room: bool) -> None:
    """The answer is the one that the header and the blob's bytes lead to.

    Without room some are refused: parts too many and too scattered to be asked for one by one.
    """
    ranges = parse_ranges(header)
    assert ranges is not None
    try:
        parts = ranges.resolve(blob.size)
    except RangeNotSatisfiable:
        assert (head.status, head.headers["Content-Range"]) == (416, f"bytes */{blob.size}")
        return
    except RangeInvalid:
        assert head.status == 400
        return
    if head.status == 400 and not room:
        assert len(parts) > 32
        return
    assert head.status == 206, (header, body)
    got: list[Part] = (
        split_parts(head.headers["Content-Type"], body)
        if len(parts) > 1
        else [({name: head.headers[name] for name in ("Content-Type", "Content-Range")}, body)]
    )
    assert got == expected([(part.start, part.end) for part in parts], blob.content, BLOB_TYPE)


async def one(mirror: RunningMirror, blob: Blob, chance: random.Random, *, room: bool) -> None:
    """A client with some requests on one connection, sent ahead of the answers; half of them leave at some byte."""
    headers = [any_ranges(chance, blob.size) for _ in range(chance.choice((1, 1, 3)))]
    stays = chance.random() < 0.5
    async with await RawClient.connect(mirror.app.port, receive_buffer=chance.choice((4096, 1 << 20))) as client:
        for header in headers:
            await client.ask(blob_path("demo", blob), Range=header)
        for header in headers:
            head = await client.head()
            if not stays:
                await client.read(chance.randrange(head.length + 1))
                client.reset() if chance.random() < 0.7 else client.close()
                return
            check(head, await client.read(head.length), header, blob, room=room)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("room", ["room", "no room"])
async def test_every_answer_is_right_or_cut(
    lines: Lines, start_mirror: StartMirror, upstream: FakeRegistry, seed: int, room: str
) -> None:
    """Whoever stays has exactly what he asked for; nothing is left of those who do not, and nobody complains."""
    chance = random.Random(seed)
    storage = {"max_size": 500 * KIB} if room == "no room" else {}
    with nothing_unheard():
        mirror = await start_mirror(
            timeouts=short_timeouts(cold_head=2, first_byte=8, try_=4, stall=8, no_progress=20), storage=storage
        )
        blobs = [upstream.put_blob("library/demo", chance.choice(SIZES)) for _ in range(4)]
        upstream.fault(ANY, truncate(chance.randrange(200_000)), kind="blob", times=3, skip=2)
        upstream.fault(ANY, reset(chance.randrange(200_000)), kind="blob", times=3, skip=5)
        if room == "room":  # else there is no way to the end of it
            upstream.fault(blobs[0], ignore_range(), when=ranged)

        async def evict() -> None:
            for _ in range(6):
                await asyncio.sleep(0.05)
                await mirror.app.blobs.remove(chance.choice(blobs).digest)

        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            group.create_task(evict())
            for _ in range(40):
                group.create_task(
                    one(mirror, chance.choice(blobs), random.Random(chance.random()), room=room == "room")
                )

        await settled(mirror, 20)
        assert left_behind(mirror) == {}
    assert [line for line in lines.troubles() if "exception" in line or line["level"] == "error"] == []

"""Bytes that changed on our disk: a wrong length is noticed when the blob is wanted, a wrong bit by the scrub."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import StartMirror
from tests.faulty import FaultyFiles
from tests.harness import RunningMirror, short_timeouts
from tests.reading import Reading, blob_path, settled
from tests.storing import bytes_in, path_of, until
from tests.upstream import Blob, FakeRegistry, stall, wrong_length
from tests.upstream.fixtures import StartUpstream

MIB = 1 << 20
SIZE = 300_000
FAST = 1 << 40
PATIENT = short_timeouts(first_byte=10.0, cold_head=10.0, stall=10.0, no_progress=20.0)

Damage = Callable[[Path], None]


def truncated(path: Path) -> None:
    """The file's end is lost."""
    path.write_bytes(path.read_bytes()[:-1])


def emptied(path: Path) -> None:
    """All of it is lost but its name."""
    path.write_bytes(b"")


def extended(path: Path) -> None:
    """Something was written behind it."""
    path.write_bytes(path.read_bytes() + b"x")


def flipped(path: Path) -> None:
    """One bit of it has changed; its length has not."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


WRONG_LENGTHS = pytest.mark.parametrize("damage", [truncated, emptied, extended])


async def hold(mirror: RunningMirror, blob: Blob, repository: str = "demo") -> Path:
    """Pulls the blob; returns where its file is."""
    assert (await mirror.blob(repository, blob.digest)).body == blob.content
    await mirror.quiet()
    return path_of(mirror.settings.storage.path, blob.digest)


# A wrong length


@WRONG_LENGTHS
async def test_a_wrong_length_is_healed_within_the_request(
    mirror: RunningMirror, upstream: FakeRegistry, damage: Damage
) -> None:
    """Twenty clients get 200 and every byte, by one fetch; afterwards the blob is held as before, and counted so."""
    blob = upstream.put_blob("library/demo", SIZE)
    path = await hold(mirror, blob)
    damage(path)
    await mirror.app.budget.scan(0)
    upstream.reset()

    replies = await mirror.together(20, blob_path("demo", blob))

    assert {(reply.status, reply.body) for reply in replies} == {(200, blob.content)}
    assert all(reply.headers["Content-Length"] == str(SIZE) for reply in replies)
    assert upstream.bytes_for(blob) == SIZE
    await settled(mirror)
    assert (await mirror.blob("demo", blob.digest)).cache == "hit"
    assert mirror.app.budget.committed == bytes_in(path.parents[2]) == SIZE


@WRONG_LENGTHS
async def test_parts_of_a_blob_of_wrong_length_are_right(
    mirror: RunningMirror, upstream: FakeRegistry, damage: Damage
) -> None:
    """A range counts from the length that the blob has, and the fetch that it starts heals it."""
    blob = upstream.put_blob("library/demo", SIZE)
    damage(await hold(mirror, blob))

    for asked, start, end in (("bytes=-10", SIZE - 10, SIZE), ("bytes=5-9", 5, 10)):
        reply = await mirror.blob("demo", blob.digest, Range=asked)
        assert (reply.status, reply.body) == (206, blob.content[start:end])
        assert reply.headers["Content-Range"] == f"bytes {start}-{end - 1}/{SIZE}"

    await settled(mirror)
    upstream.reset()
    assert (await mirror.blob("demo", blob.digest)).body == blob.content
    assert upstream.content_requests() == []


@WRONG_LENGTHS
async def test_head_tells_the_length_that_the_blob_has(
    mirror: RunningMirror, upstream: FakeRegistry, damage: Damage
) -> None:
    """Not the one that its file has by now."""
    blob = upstream.put_blob("library/demo", SIZE)
    damage(await hold(mirror, blob))

    reply = await mirror.blob("demo", blob.digest, method="HEAD")

    assert (reply.status, reply.headers["Content-Length"]) == (200, str(SIZE))


@WRONG_LENGTHS
async def test_a_wrong_length_is_noticed_without_what_was_noted(
    mirror: RunningMirror, upstream: FakeRegistry, damage: Damage
) -> None:
    """The records are lost with the bytes: what the upstream says of the length is enough to notice."""
    blob = upstream.put_blob("library/demo", SIZE)
    path = await hold(mirror, blob)
    await mirror.stop()
    damage(path)
    (mirror.settings.storage.path / "records" / "cache.db").write_bytes(b"garbage" * 5000)
    await mirror.start()

    assert (await mirror.blob("demo", blob.digest)).body == blob.content
    await settled(mirror)
    assert path.read_bytes() == blob.content


async def test_a_wrong_length_is_noticed_by_a_repository_that_has_the_blob_too(
    mirror: RunningMirror, upstream: FakeRegistry
) -> None:
    """Its upstream names the right length when it is asked for leave."""
    blob = upstream.put_blob("library/demo", SIZE)
    upstream.put_blob("library/other", blob)
    truncated(await hold(mirror, blob))

    assert (await mirror.blob("other", blob.digest)).body == blob.content


async def test_who_lies_about_a_length_costs_others_nothing(
    start_mirror: StartMirror, upstream: FakeRegistry, start_upstream: StartUpstream
) -> None:
    """A rival that agrees with what is left of our file has that believed of its own repository, and no longer than the
    file is wrong: the right one is neither dropped nor fetched again for it.
    """
    rival = await start_upstream()
    mirror = await start_mirror(upstreams={"docker.io": upstream, "rival.test": rival})
    blob = upstream.put_blob("library/demo", SIZE)
    rival.put_blob("copy/app", blob)
    rival.fault(blob, wrong_length(0.5))
    path = await hold(mirror, blob)
    path.write_bytes(blob.content[: SIZE // 2])
    await mirror.blob("rival.test/copy/app", blob.digest)
    assert (await mirror.blob("demo", blob.digest)).body == blob.content
    await settled(mirror)
    upstream.reset()

    for _ in range(3):
        assert (await mirror.blob("rival.test/copy/app", blob.digest)).body == blob.content
        await settled(mirror)
        assert (await mirror.blob("demo", blob.digest)).cache == "hit"
        assert path.read_bytes() == blob.content
    assert upstream.content_requests() == []
    assert rival.bytes_for(blob) <= 2 * SIZE


async def test_a_wrong_length_is_an_error_while_the_upstream_is_away(
    mirror: RunningMirror, upstream: FakeRegistry
) -> None:
    """Nobody gets the bytes that are left as if they were all; when it is back everything is."""
    blob = upstream.put_blob("library/demo", SIZE)
    truncated(await hold(mirror, blob))
    rule = upstream.fault(blob, stall())

    assert (await mirror.blob("demo", blob.digest)).status in (503, 504)

    rule.remove()
    rule.release()
    assert (await mirror.blob("demo", blob.digest)).body == blob.content


async def test_a_file_that_shrinks_while_it_is_sent(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """What is missing comes from the upstream: every byte is right, and none is left out."""
    mirror = await start_mirror(timeouts=PATIENT)
    blob = upstream.put_blob("library/demo", 24 * MIB)
    path = await hold(mirror, blob)
    upstream.reset()

    async with await Reading.ask(mirror, blob_path("demo", blob), receive_buffer=64 << 10) as reading:
        assert reading.headers["X-Cache"] == "hit"
        begin = await reading.take(MIB)
        with path.open("r+b") as file:
            file.truncate(20 * MIB + 77)
        body = begin + await reading.rest(20)
        assert reading.ending == "complete"

    assert body == blob.content
    assert upstream.requests_for(blob) == 1
    await settled(mirror)
    assert (await mirror.blob("demo", blob.digest)).body == blob.content


async def test_what_was_put_right_is_not_dropped_by_those_who_still_read_the_old(
    start_mirror: StartMirror, upstream: FakeRegistry
) -> None:
    """A slow client meets the end of the bad file long after another request has brought a good one."""
    mirror = await start_mirror(timeouts=PATIENT)
    blob = upstream.put_blob("library/demo", 24 * MIB)
    path = await hold(mirror, blob)
    async with await Reading.ask(mirror, blob_path("demo", blob), receive_buffer=64 << 10) as slow:
        begin = await slow.take(MIB)
        with path.open("r+b") as file:
            file.truncate(20 * MIB)
        assert (await mirror.blob("demo", blob.digest)).body == blob.content
        await mirror.quiet()
        good = path.stat().st_ino

        assert begin + await slow.rest(20) == blob.content

    await settled(mirror)
    assert path.stat().st_ino == good


async def test_a_rotten_manifest_is_never_served(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """A flipped bit in its record shows when it is read: it is fetched again, within the request."""
    image = upstream.add_image("library/demo", "1")
    assert (await mirror.manifest("demo", "1")).status == 200
    await mirror.stop()
    database = mirror.settings.storage.path / "records" / "cache.db"
    data, where = bytearray(database.read_bytes()), []
    at = data.find(image.manifest.content)
    while at >= 0:
        where.append(at)
        data[at + 20] ^= 1
        at = data.find(image.manifest.content)
    assert where
    database.write_bytes(data)
    await mirror.start()
    upstream.reset()

    for reference in ("1", image.digest):
        reply = await mirror.manifest("demo", reference)
        assert (reply.status, reply.body) == (200, image.manifest.content)
    assert upstream.count(image.manifest, method="GET") == 1


# A wrong bit


async def test_a_flipped_bit_is_found_before_anybody_asks(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """The scrub drops the blob and counts it; who wants it then gets right bytes by one fetch of it, and no other."""
    mirror = await start_mirror()
    blobs = [upstream.put_blob("library/demo", SIZE + number) for number in range(5)]
    paths = [await hold(mirror, blob) for blob in blobs]
    await mirror.stop()
    flipped(paths[2])
    upstream.reset()

    scrubbed = await start_mirror(path=mirror.settings.storage.path, storage={"scrub_rate": FAST})
    await until(lambda: not paths[2].exists())
    await until(lambda: scrubbed.metric("mirror_scrub_corrupt_total") == 1)
    await until(lambda: scrubbed.metric("mirror_scrub_bytes_total") == sum(blob.size for blob in blobs))
    await until(lambda: scrubbed.app.budget.counted)
    assert scrubbed.app.budget.committed == bytes_in(mirror.settings.storage.path / "blobs")

    for blob in blobs:
        assert (await scrubbed.blob("demo", blob.digest)).body == blob.content
    assert [upstream.bytes_for(blob) for blob in blobs] == [0, 0, blobs[2].size, 0, 0]


async def test_a_scrub_goes_on_after_a_restart(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """A clean stop notes how far it has come, and waits for no more than the piece that is being read."""
    mirror = await start_mirror()
    blobs = sorted((upstream.put_blob("library/demo", SIZE) for _ in range(8)), key=lambda blob: blob.digest)
    paths = [await hold(mirror, blob) for blob in blobs]
    await mirror.stop()
    disk = FaultyFiles()
    trap = disk.hold("read", path=str(paths[5]))
    scrubbed = await start_mirror(path=mirror.settings.storage.path, files=disk, storage={"scrub_rate": 2 * MIB})
    await trap.met()
    stopping = asyncio.create_task(scrubbed.stop())
    trap.release()
    await stopping
    first = checked(disk)

    disk.log.clear()
    await scrubbed.start()
    await until(lambda: checked(disk)[-1:] == paths[-1:] or first == paths)

    second = checked(disk)
    assert first == paths[: len(first)]
    assert second == paths[len(paths) - len(second) :]
    assert 8 <= len(first + second) <= 9


def checked(disk: FaultyFiles) -> list[Path]:
    """The blobs that were read, in order."""
    return list(dict.fromkeys(path for method, path in disk.log if method == "read" and path and "blobs" in path.parts))

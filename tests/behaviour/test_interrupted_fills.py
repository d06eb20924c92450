"""Fills that a stop interrupts, and that the next process resumes; and fills whose disk gives up under them."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mirror import server
from mirror.store.files import Files
from tests.conftest import StartMirror
from tests.harness import RunningMirror, short_timeouts
from tests.reading import Reading, blob_path, left_behind, nothing_unheard, open_files, readings, settled, spools
from tests.upstream import Blob, FakeRegistry, flip, refuse, stall, stall_at, status
from tests.upstream.fixtures import StartUpstream

MIB = 1 << 20
PATIENT = short_timeouts(stall=10, first_byte=10, cold_head=10)


@pytest.fixture(autouse=True)
async def heard() -> AsyncIterator[None]:
    """No test leaves an exception that nobody heard."""
    with nothing_unheard():
        yield


async def interrupt(mirror: RunningMirror, upstream: FakeRegistry, blob: Blob, at: int) -> None:
    """Stops the mirror when `at` bytes of the blob have come, and starts it again."""
    held = upstream.fault(blob, stall_at(at), times=1, method="GET")
    async with await Reading.ask(mirror, blob_path("demo", blob)) as reading:
        await reading.take(at)
        await mirror.stop()
    held.release()
    upstream.reset()
    await mirror.start()


async def test_the_next_process_fetches_only_what_is_missing(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """A spool of at least 1 MiB outlives a stop; one question for permission, one closed range."""
    mirror = await start_mirror(timeouts=PATIENT)
    blob = upstream.put_blob("library/demo", 4 * MIB)
    await interrupt(mirror, upstream, blob, 3 * MIB)
    assert len(spools(mirror)) == 1

    replies = await mirror.together(3, blob_path("demo", blob))
    await mirror.quiet()

    assert [(reply.status, reply.body) for reply in replies] == [(200, blob.content)] * 3
    assert [(seen.method, seen.headers.get("Range")) for seen in upstream.select(blob)] == [
        ("HEAD", None),
        ("GET", f"bytes={3 * MIB}-{4 * MIB - 1}"),
    ]
    assert (await mirror.blob("demo", blob.digest)).cache == "hit"
    await settled(mirror)
    assert left_behind(mirror) == {}


async def test_a_shorter_spool_is_not_worth_it(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """It is removed at the start, and the blob fetched from its beginning."""
    mirror = await start_mirror(timeouts=PATIENT)
    blob = upstream.put_blob("library/demo", 4 * MIB)
    await interrupt(mirror, upstream, blob, MIB - 1)

    assert spools(mirror) == []
    assert (await mirror.blob("demo", blob.digest)).body == blob.content
    assert upstream.requests_for(blob) == 1


async def test_bytes_of_one_upstream_are_not_resumed_from_another(
    start_mirror: StartMirror, upstream: FakeRegistry, start_upstream: StartUpstream
) -> None:
    """The other has not shown the beginning; it is fetched from there in whole."""
    other = await start_upstream()
    mirror = await start_mirror(upstreams={"docker.io": upstream, "other.test": other}, timeouts=PATIENT)
    blob = upstream.put_blob("library/demo", 4 * MIB)
    other.put_blob("app", blob)
    await interrupt(mirror, upstream, blob, 3 * MIB)

    reply = await mirror.blob("other.test/app", blob.digest)

    assert (reply.status, reply.body) == (200, blob.content)
    assert [seen.headers.get("Range") for seen in other.select(blob)] == [None]


@pytest.mark.parametrize("damage", ["byte", "longer"])
async def test_a_damaged_spool_is_not_served_twice(
    start_mirror: StartMirror, upstream: FakeRegistry, damage: str
) -> None:
    """A flipped byte shows in the digest, and the blob is fetched anew; no upstream is blamed for it."""
    mirror = await start_mirror(timeouts=PATIENT)
    blob = upstream.put_blob("library/demo", 4 * MIB)
    held = upstream.fault(blob, stall_at(3 * MIB), times=1, method="GET")
    async with await Reading.ask(mirror, blob_path("demo", blob)) as reading:
        await reading.take(3 * MIB)
        await mirror.stop()
    held.release()
    (name,) = spools(mirror)
    with (mirror.settings.storage.path / "spool" / name).open("r+b") as file:
        file.seek(5 if damage == "byte" else 8 * MIB)
        file.write(b"\x00\xff")
    await mirror.start()

    async with await Reading.ask(mirror, blob_path("demo", blob)) as reading:
        body = await reading.rest()
        assert reading.ending == "complete" if damage == "longer" else "short"
    assert damage == "byte" or body == blob.content
    await mirror.quiet()

    assert (await mirror.blob("demo", blob.digest)).body == blob.content
    assert mirror.metric("mirror_digest_mismatches_total") == 0


async def test_a_resume_that_fails_keeps_the_spool_for_the_next(
    start_mirror: StartMirror, upstream: FakeRegistry
) -> None:
    """The upstream answers the question and then goes away: what was fetched is not lost, and still counts."""
    mirror = await start_mirror(timeouts=short_timeouts(stall=10))
    blob = upstream.put_blob("library/demo", 4 * MIB)
    await interrupt(mirror, upstream, blob, 3 * MIB)
    away = upstream.fault(blob, refuse(), method="GET")

    assert (await mirror.blob("demo", blob.digest)).status == 503
    await mirror.quiet()
    assert len(spools(mirror)) == 1
    budget = mirror.app.budget
    assert budget.used - budget.committed - budget.records == 3 * MIB

    away.remove()
    upstream.reset()
    assert (await mirror.blob("demo", blob.digest)).body == blob.content
    assert upstream.bytes_for(blob, method="GET") == MIB


@pytest.mark.parametrize("fault", [stall(), status(500), status(405)], ids=["stall", "500", "405"])
async def test_a_head_that_fails_does_not_block_a_blob_with_a_spool(
    start_mirror: StartMirror, upstream: FakeRegistry, fault: object
) -> None:
    """The blob is fetched whole, or as far as needed, all the same."""
    mirror = await start_mirror(timeouts=short_timeouts(stall=10, first_byte=10, cold_head=0.5))
    blob = upstream.put_blob("library/demo", 4 * MIB)
    await interrupt(mirror, upstream, blob, 3 * MIB)
    upstream.fault(blob, fault, method="HEAD")  # type: ignore[arg-type]  # parametrized

    reply = await mirror.blob("demo", blob.digest)

    assert (reply.status, reply.body) == (200, blob.content)


async def test_a_spool_without_room_to_go_on_passes_through_whole(
    start_mirror: StartMirror, upstream: FakeRegistry
) -> None:
    """After a restart with a smaller budget: the client misses nothing of what is in the spool."""
    mirror = await start_mirror(timeouts=PATIENT)
    blob = upstream.put_blob("library/demo", 4 * MIB)
    held = upstream.fault(blob, stall_at(3 * MIB), times=1, method="GET")
    async with await Reading.ask(mirror, blob_path("demo", blob)) as reading:
        await reading.take(3 * MIB)
        await mirror.stop()
    held.release()
    smaller = mirror.settings.storage.model_copy(update={"max_size": 4 * MIB})
    mirror.settings = mirror.settings.model_copy(update={"storage": smaller})
    await mirror.start()

    reply = await mirror.blob("demo", blob.digest)
    await settled(mirror)

    assert (reply.status, reply.body) == (200, blob.content)
    assert mirror.metric("mirror_digest_mismatches_total") == 0
    assert mirror.app.budget.used <= 4 * MIB


async def test_a_stop_lets_a_fill_finish_within_its_grace(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """Also one that nobody reads any more; after the stop the blob is held."""
    mirror = await start_mirror(timeouts=PATIENT)
    blob = upstream.put_blob("library/demo", 4 * MIB)
    held = upstream.fault(blob, stall_at(2 * MIB), times=1)
    async with await Reading.ask(mirror, blob_path("demo", blob)) as reading:
        await reading.take(2 * MIB)

    stopping = asyncio.create_task(mirror.stop(grace=5))
    await asyncio.sleep(0)
    held.release()
    await stopping
    await mirror.start()

    assert (await mirror.blob("demo", blob.digest)).cache == "hit"
    assert upstream.requests_for(blob) == 1


async def test_a_stop_leaves_no_task_and_no_file(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """With fills, detours and questions under way; and nothing begins any more."""
    mirror = await start_mirror(timeouts=PATIENT)
    blobs = [upstream.put_blob("library/demo", 4 * MIB) for _ in range(4)]
    for blob in blobs:
        upstream.fault(blob, stall_at(MIB))
    upstream.fault(blobs[0], stall(), method="HEAD")
    clients = [asyncio.create_task(Reading.ask(mirror, blob_path("demo", blob))) for blob in blobs[1:]]
    readings = await asyncio.gather(*clients)
    question = asyncio.create_task(mirror.get(blob_path("demo", blobs[0]), method="HEAD"))
    await upstream.until(lambda: upstream.count(method="HEAD") == 1)

    await mirror.app.stop()

    code = str(Path(server.__file__).parent)
    ours = [task for task in asyncio.all_tasks() if task.get_coro().cr_code.co_filename.startswith(code)]  # type: ignore[union-attr]  # coroutines all
    assert ours == []
    assert open_files(mirror) == []
    for reading in readings:
        reading.leave()
    question.cancel()
    await asyncio.gather(question, return_exceptions=True)


# The disk gives up.


class FailingWrites(Files):
    """Writes fail once `room` bytes have been written; reads fail while `unreadable`."""

    def __init__(self, room: int, code: int = errno.EIO) -> None:
        self.room = room
        self.unreadable = False
        self._code = code

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        """Takes what there is room for."""
        if self.room <= 0:
            raise OSError(self._code, "no more")
        taken = super().write(fd, bytes(data[: self.room]), offset)
        self.room -= taken
        return taken

    def sendfile(self, out: int, fd: int, offset: int, count: int) -> int:
        """Fails while `unreadable`."""
        if self.unreadable:
            raise OSError(errno.EIO, "unreadable")
        return super().sendfile(out, fd, offset, count)


@pytest.mark.parametrize("room", [0, MIB, 4 * MIB - 1])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
async def test_a_disk_that_fails_in_the_middle_costs_no_client_a_byte(
    start_mirror: StartMirror, upstream: FakeRegistry, room: int, code: int
) -> None:
    """What is in the file is read from there; each client goes on by himself, with a closed range."""
    mirror = await start_mirror(timeouts=PATIENT, files=FailingWrites(room, code))
    blob = upstream.put_blob("library/demo", 4 * MIB)

    async with readings(3, mirror, blob_path("demo", blob)) as clients:
        bodies = await asyncio.gather(*(client.rest() for client in clients))

    assert all(body == blob.content for body in bodies)
    await settled(mirror)
    assert left_behind(mirror) == {}
    assert mirror.metric("mirror_stored_bytes_total") == 0


async def test_wrong_bytes_after_the_disk_failed_end_short(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """Who goes on alone verifies the whole blob, with the tail withheld."""
    mirror = await start_mirror(timeouts=PATIENT, files=FailingWrites(2 * MIB))
    blob = upstream.put_blob("library/demo", 4 * MIB)
    upstream.fault(blob, flip(-1))

    async with await Reading.ask(mirror, blob_path("demo", blob)) as reading:
        body = await reading.rest()
        assert reading.ending == "short"
    assert len(body) <= blob.size - 4096


async def test_a_spool_that_cannot_be_read_is_left_for_a_shared_fetch(
    start_mirror: StartMirror, upstream: FakeRegistry
) -> None:
    """Reads fail while the fill goes on: its readers share one fetch past the disk."""
    files = FailingWrites(1 << 40)
    mirror = await start_mirror(timeouts=PATIENT, files=files)
    blob = upstream.put_blob("library/demo", 4 * MIB)
    held = upstream.fault(blob, stall_at(MIB), times=1)
    async with readings(3, mirror, blob_path("demo", blob)) as clients:
        heads = await asyncio.gather(*(client.take(MIB) for client in clients))
        files.unreadable = True
        held.release()

        tails = await asyncio.gather(*(client.rest() for client in clients))
    files.unreadable = False

    assert all(head + tail == blob.content for head, tail in zip(heads, tails, strict=True))


async def test_a_held_blob_that_cannot_be_read_is_fetched_past_the_disk(
    start_mirror: StartMirror, upstream: FakeRegistry
) -> None:
    """Whole and in part; the clients see nothing of it."""
    files = FailingWrites(1 << 40)
    mirror = await start_mirror(timeouts=PATIENT, files=files)
    blob = upstream.put_blob("library/demo", 4 * MIB)
    await mirror.blob("demo", blob.digest)
    await mirror.quiet()
    files.unreadable = True

    whole = await mirror.blob("demo", blob.digest)
    part = await mirror.get(blob_path("demo", blob), Range=f"bytes={MIB}-{MIB + 99}")

    assert (whole.status, whole.body) == (200, blob.content)
    assert (part.status, part.body) == (206, blob.read(MIB, 100))

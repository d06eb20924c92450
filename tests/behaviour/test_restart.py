"""A restart costs nothing: nothing is asked again, and after a crash only right bytes are given."""

from __future__ import annotations

import errno
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from mirror.store.sealed import seal
from tests.conftest import StartMirror
from tests.faulty import FaultyFiles
from tests.harness import RunningMirror, short_timeouts
from tests.reading import Reading, blob_path
from tests.storing import bytes_in, path_of, until
from tests.upstream import FakeRegistry, Image, stall_at, status

KIB = 1 << 10
MIB = 1 << 20
PATIENT = short_timeouts(first_byte=10.0, cold_head=10.0, stall=10.0, no_progress=20.0)


@pytest.fixture
def image(upstream: FakeRegistry) -> Image:
    return upstream.add_image("library/demo", "1", layers=[MIB, 300 * KIB, 1000])


def paths(image: Image) -> list[str]:
    """All that a pull asks for, by tag and by digest."""
    named = ["1", str(image.digest)]
    return [*(f"/v2/demo/manifests/{name}" for name in named), *(blob_path("demo", blob) for blob in image.blobs)]


async def pull(mirror: RunningMirror, image: Image) -> list[str | None]:
    """HEAD and GET of everything; returns what X-Cache said to the GETs."""
    said = []
    for path, thing in zip(paths(image), [image.manifest] * 2 + list(image.blobs), strict=True):
        head = await mirror.get(path, method="HEAD")
        reply = await mirror.get(path)
        assert (head.status, reply.status, reply.body) == (200, 200, thing.content)
        assert head.headers["Content-Length"] == str(thing.size)
        said.append(reply.cache)
    await mirror.quiet()
    return said


Crash = Callable[[RunningMirror], Path]


@pytest.fixture
def crash(tmp_path: Path) -> Crash:
    """What is on the disk at this moment, as the next process finds it after a kill."""

    def copy(mirror: RunningMirror) -> Path:
        top = tmp_path / "after the crash"
        shutil.copytree(mirror.settings.storage.path, top)
        return top

    return copy


# A clean restart


async def test_nothing_is_asked_again_because_we_restarted(
    mirror: RunningMirror, upstream: FakeRegistry, image: Image
) -> None:
    """No tag, no link, no blob, no absence; not even where the upstream is gone meanwhile."""
    await pull(mirror, image)
    assert (await mirror.manifest("demo", "none")).status == 404
    await mirror.stop()
    await upstream.stop()
    upstream.reset()

    await mirror.start()

    assert await pull(mirror, image) == ["hit"] * 6
    assert (await mirror.manifest("demo", "none")).status == 404
    assert upstream.content_requests() == []


async def test_the_used_total_counts_from_the_start(
    start_mirror: StartMirror, upstream: FakeRegistry, image: Image
) -> None:
    """It is a record: fills are reserved against it while the first scan has not yet looked."""
    disk = FaultyFiles()
    mirror = await start_mirror(files=disk, timeouts=PATIENT)
    await pull(mirror, image)
    await mirror.app.upkeep.round()
    await mirror.stop()
    trap = disk.hold("scan", path="blobs")

    await mirror.start()
    await trap.met()

    assert not mirror.app.budget.counted
    assert mirror.app.budget.committed == sum(blob.size for blob in image.blobs)
    blob = upstream.put_blob("library/demo", 5 * MIB)
    assert (await mirror.blob("demo", blob.digest)).cache == "miss"
    await mirror.quiet()
    assert (await mirror.blob("demo", blob.digest)).cache == "hit"
    trap.release()
    await until(lambda: mirror.app.budget.counted)
    assert mirror.app.budget.committed == bytes_in(mirror.settings.storage.path / "blobs")


async def test_uses_survive_a_restart(start_mirror: StartMirror, upstream: FakeRegistry, image: Image) -> None:
    """What was used last before the stop is not what is evicted first after it."""
    now = [3_000_000_000.0]
    mirror = await start_mirror(clock=lambda: now[0], storage={"max_size": 10 * MIB})
    blobs = [upstream.put_blob("library/demo", 2 * MIB + number) for number in range(4)]
    for blob in (*blobs, blobs[0]):
        now[0] += 60
        assert (await mirror.blob("demo", blob.digest)).body == blob.content
        await mirror.quiet()

    await mirror.restart()
    await mirror.app.budget.make_room(4 * MIB, "budget")

    held = [path_of(mirror.settings.storage.path, blob.digest).exists() for blob in blobs]
    assert held == [True, False, False, True]


async def test_a_fill_that_a_stop_broke_off_is_resumed(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """Only what is missing is fetched by the next process."""
    mirror = await start_mirror(timeouts=PATIENT)
    blob = upstream.put_blob("library/demo", 6 * MIB)
    rule = upstream.fault(blob, stall_at(4 * MIB), times=1)
    async with await Reading.ask(mirror, blob_path("demo", blob)) as reading:
        await reading.take(3 * MIB)
        await mirror.stop()
    rule.release()
    upstream.reset()
    await mirror.start()

    reply = await mirror.blob("demo", blob.digest)

    assert reply.body == blob.content
    assert upstream.bytes_for(blob) == 2 * MIB


# After a crash


async def test_only_right_bytes_are_given_after_a_crash(
    start_mirror: StartMirror, upstream: FakeRegistry, image: Image, crash: Crash
) -> None:
    """What the power loss damaged is fetched again, what it spared is served; names are not asked again."""
    mirror = await start_mirror()
    await pull(mirror, image)
    upstream.reset()
    top = crash(mirror)
    flipped, zeroed, truncated, whole = image.layers[0], image.layers[1], image.layers[2], image.config
    data = bytearray(flipped.content)
    data[5] ^= 1
    path_of(top, flipped.digest).write_bytes(data)
    path_of(top, zeroed.digest).write_bytes(bytes(zeroed.size))
    path_of(top, truncated.digest).write_bytes(truncated.content[:-1])

    after = await start_mirror(path=top)
    said = await pull(after, image)

    assert said[:2] == ["hit", "hit"]
    assert upstream.requests_for(image.manifest) == 0
    for blob in (flipped, zeroed, truncated):
        assert upstream.bytes_for(blob) == blob.size
    assert upstream.bytes_for(whole) == 0
    assert await pull(after, image) == ["hit"] * 6


async def test_a_herd_after_a_crash_verifies_and_fetches_once(
    start_mirror: StartMirror, upstream: FakeRegistry, crash: Crash
) -> None:
    """Fifty clients for a damaged blob: one reading of it, one fetch, and every byte right."""
    mirror = await start_mirror()
    blob = upstream.put_blob("library/demo", 2 * MIB)
    await mirror.blob("demo", blob.digest)
    await mirror.quiet()
    upstream.reset()
    top = crash(mirror)
    path_of(top, blob.digest).write_bytes(bytes(blob.size))

    after = await start_mirror(path=top, timeouts=PATIENT)
    replies = await after.together(50, blob_path("demo", blob))

    assert all(reply.body == blob.content for reply in replies)
    assert upstream.bytes_for(blob) == blob.size


async def test_spools_are_resumed_or_removed_after_a_crash(
    start_mirror: StartMirror, upstream: FakeRegistry, crash: Crash
) -> None:
    """From 1 MiB on they are worth it; a damaged one costs the blob once more, and nobody gets its bytes as a whole."""
    mirror = await start_mirror(timeouts=PATIENT)
    large, small = upstream.put_blob("library/demo", 5 * MIB), upstream.put_blob("library/demo", 5 * MIB + 1)
    upstream.fault(large, stall_at(3 * MIB), times=1)
    upstream.fault(small, stall_at(100 * KIB), times=1)
    async with (
        await Reading.ask(mirror, blob_path("demo", large)) as one,
        await Reading.ask(mirror, blob_path("demo", small)) as other,
    ):
        await one.take(3 * MIB)
        await other.take(90 * KIB)
        top = crash(mirror)
    upstream.clear_faults()
    upstream.reset()

    after = await start_mirror(path=top, timeouts=PATIENT)
    assert bytes_in(top / "spool") == 3 * MIB

    for blob in (large, small):
        assert (await after.blob("demo", blob.digest)).body == blob.content
    await after.quiet()
    assert upstream.bytes_for(large) == 2 * MIB
    assert upstream.bytes_for(small) == small.size
    assert bytes_in(top / "spool") == 0


async def test_a_damaged_spool_never_becomes_a_whole_blob(
    start_mirror: StartMirror, upstream: FakeRegistry, crash: Crash
) -> None:
    """A power loss may have left zeros in it: no client gets all the bytes but the right ones."""
    mirror = await start_mirror(timeouts=PATIENT)
    blob = upstream.put_blob("library/demo", 3 * MIB)
    upstream.fault(blob, stall_at(2 * MIB), times=1)
    async with await Reading.ask(mirror, blob_path("demo", blob)) as reading:
        await reading.take(2 * MIB)
        top = crash(mirror)
    (spool,) = (top / "spool").iterdir()
    data = bytearray(spool.read_bytes())
    data[1 * MIB : 1 * MIB + 4096] = bytes(4096)
    spool.write_bytes(data)

    after = await start_mirror(path=top, timeouts=PATIENT)
    async with await Reading.ask(after, blob_path("demo", blob)) as first:
        body = await first.rest()
        assert first.ending == "short" or body == blob.content
    await after.quiet()

    assert (await after.blob("demo", blob.digest)).body == blob.content
    assert after.metric("mirror_digest_mismatches_total") == 0  # no upstream is to blame


async def test_a_total_from_before_the_crash_is_corrected(
    start_mirror: StartMirror, upstream: FakeRegistry, image: Image, crash: Crash
) -> None:
    """It is only believed until the scan; far too much or too little in it evicts nobody and breaks nothing."""
    mirror = await start_mirror()
    await pull(mirror, image)
    await mirror.app.upkeep.round()
    top = crash(mirror)
    for wrong in (b"0", b"999999999999"):
        with sqlite3.connect(top / "records" / "cache.db") as database:
            database.execute("UPDATE Cache SET value = ? WHERE key = ?", (seal('["used"]', wrong), '["used"]'))
        database.close()
        async with RunningMirror(top, {"docker.io": upstream}) as after:
            await until(lambda: after.app.budget.counted)
            assert after.app.budget.committed == bytes_in(top / "blobs")
            assert await pull(after, image) == ["hit"] * 6
            assert after.metric("mirror_evictions_total") == 0


async def test_the_budget_holds_right_after_a_crash(
    start_mirror: StartMirror, upstream: FakeRegistry, crash: Crash
) -> None:
    """What came since the total was last written counts: a fill waits for the scan, and without it passes through."""
    mirror = await start_mirror(storage={"max_size": 10 * MIB})
    await mirror.app.upkeep.round()
    held = [upstream.put_blob("library/demo", 4 * MIB + number) for number in range(2)]
    for blob in held:
        await mirror.blob("demo", blob.digest)
        await mirror.quiet()
    top, disk = crash(mirror), FaultyFiles()
    trap = disk.hold("scan", path="blobs")

    after = await start_mirror(path=top, files=disk, storage={"max_size": 10 * MIB}, timeouts=PATIENT)
    blob = upstream.put_blob("library/demo", 3 * MIB)
    assert (await after.blob("demo", blob.digest)).body == blob.content
    await after.quiet()

    assert bytes_in(top) < 10 * MIB
    trap.release()


@pytest.mark.parametrize("locked", [False, True])
async def test_a_refusal_survives_a_kill(
    start_mirror: StartMirror, upstream: FakeRegistry, image: Image, crash: Crash, locked: bool
) -> None:
    """Also where the database could not hear of it: nothing of the repository is given while nobody can be asked."""
    timeouts = short_timeouts(stale_after=10.0, try_=8.0, first_byte=15.0)
    mirror = await start_mirror(timeouts=timeouts, tag_ttl=0)
    await pull(mirror, image)
    upstream.make_private("library/demo")
    with closing(sqlite3.connect(mirror.settings.storage.path / "records" / "cache.db", isolation_level=None)) as other:
        if locked:
            other.execute("BEGIN IMMEDIATE")
        assert (await mirror.manifest("demo", "1")).status == 403
        top = crash(mirror)
    await upstream.stop()

    after = await start_mirror(path=top)

    assert {(await after.get(path)).status for path in paths(image)} == {503}


async def test_a_journal_that_cannot_be_read_stops_the_start(
    start_mirror: StartMirror, upstream: FakeRegistry, image: Image
) -> None:
    """Without it nobody knows which blobs to trust; and it is not emptied on the way out."""
    disk = FaultyFiles()
    mirror = await start_mirror(files=disk)
    await pull(mirror, image)
    top = mirror.settings.storage.path
    journal = (top / "unsettled").read_bytes()
    assert journal
    await mirror.stop()
    (top / "unsettled").write_bytes(journal)
    disk.fail(errno.EIO, "read", path="unsettled")

    with pytest.raises(Exception, match="cannot use"):
        await mirror.start()

    assert (top / "unsettled").read_bytes() == journal
    disk.clear()
    await mirror.start()


# Records lost


async def test_lost_records_cost_questions_and_no_bytes(
    mirror: RunningMirror, upstream: FakeRegistry, image: Image
) -> None:
    """Bytes are kept; each name is asked once more, and each blob has to be shown to be the same by a few of them."""
    await pull(mirror, image)
    await mirror.stop()
    upstream.reset()
    (mirror.settings.storage.path / "records" / "cache.db").write_bytes(b"garbage" * 5000)

    await mirror.start()
    await pull(mirror, image)

    assert (mirror.settings.storage.path / "records.aside").is_dir()
    for blob in image.blobs:
        assert upstream.count(blob, method="HEAD") == 1
        assert upstream.count(blob, method="GET") == 1  # whose bytes these were is lost too: a proof of possession
        assert upstream.bytes_for(blob) <= 4096
    assert await pull(mirror, image) == ["hit"] * 6


async def test_locked_records_cost_no_client_an_answer(start_mirror: StartMirror, image: Image) -> None:
    """Somebody looks into our database: names are asked upstream meanwhile, and the mirror tells of it."""
    mirror = await start_mirror(timeouts=PATIENT)
    lock = sqlite3.connect(mirror.settings.storage.path / "records" / "cache.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")

    await pull(mirror, image)
    assert "records: locked" in mirror.app.trouble.reasons
    assert mirror.metric("mirror_storage_degraded", reason="locked") == 1

    lock.execute("ROLLBACK")
    lock.close()


async def test_the_upstream_is_asked_again_only_when_a_no_is_too_old(
    mirror: RunningMirror, upstream: FakeRegistry
) -> None:
    """A blob that is absent stays absent over a restart, for as long as a no is believed."""
    blob = upstream.put_blob("library/demo", 1000)
    upstream.fault(blob, status(404, "BLOB_UNKNOWN"))
    assert (await mirror.blob("demo", blob.digest)).status == 404
    upstream.reset()

    await mirror.restart()

    assert (await mirror.blob("demo", blob.digest)).status == 404
    assert upstream.requests_for(blob) == 0

"""The blob store: what becomes visible when, what is counted, and what a failing or hanging disk does to it."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mirror.oci.digest import Digest
from mirror.oci.errors import StorageError
from mirror.store.blobs import BlobStore, is_full
from mirror.store.files import SharedFile
from mirror.store.shelves import DIRECTORIES, BlobEntry
from mirror.store.survey import Everyone
from mirror.store.victims import Oldest
from tests.faulty import METHODS, FaultyFiles
from tests.storing import HOST, bytes_in, content, path_of, put, read, spool, until

MIB = 1 << 20
NOW = 1_790_000_000.0


@pytest.fixture
def disk() -> FaultyFiles:
    return FaultyFiles()


@pytest.fixture
async def store(tmp_path: Path, disk: FaultyFiles) -> AsyncIterator[BlobStore]:
    store = BlobStore(tmp_path / "data", disk, lambda: NOW)
    await store.open()
    yield store
    disk.clear()
    await store.close()


async def after_a_crash(store: BlobStore, disk: FaultyFiles, tmp_path: Path, **options: Any) -> BlobStore:
    """A new process over what is on the disk now, the old one having had no time to tidy up."""
    shutil.copytree(store.root, tmp_path / "after")
    successor = BlobStore(tmp_path / "after", disk, lambda: NOW, **options)
    assert not await successor.open()
    return successor


async def total(store: BlobStore) -> int:
    """The bytes of all blobs as a scan counts them."""
    _, before = await store.survey(store.directories(), Oldest(0))
    return before + store.net


# Commits


async def test_a_commit_survives_a_power_loss_at_any_moment(store: BlobStore, disk: FaultyFiles) -> None:
    """Bytes, then the journal, are on the disk before the name is; the directory is synced last."""
    made = await spool(store, content(1))
    disk.log.clear()

    await store.commit(made)

    made.file.release()
    steps = [(method, path.name) for method, path in disk.log if path and method in ("fsync", "rename", "mkdir")]
    assert steps == [
        ("mkdir", made.digest.hex[:2]),
        ("fsync", "sha256"),
        ("fsync", made.path.name),
        ("fsync", "unsettled"),
        ("rename", made.digest.hex),
        ("fsync", made.digest.hex[:2]),
    ]


@pytest.mark.parametrize("method", METHODS)
async def test_a_commit_that_fails_leaves_no_wrong_blob_and_no_wrong_count(
    store: BlobStore, disk: FaultyFiles, method: str
) -> None:
    """Whichever call fails: the blob is whole or absent, and what is counted is what is there."""
    made = await spool(store, content(1))
    for skip in range(4):
        disk.fail(errno.EIO, method, skip=skip, times=1)
        try:
            await store.commit(made)
        except StorageError:
            pass
        disk.clear()
        assert store.net == bytes_in(store.root / "blobs")
        assert await read(store, made.digest) in (None, content(1))
        if not made.path.exists():
            break
    made.file.release()


async def test_nothing_is_visible_before_the_rename(store: BlobStore, disk: FaultyFiles) -> None:
    """While the commit is on its way the blob is not held."""
    made = await spool(store, content(1))
    trap = disk.hold("rename", path=made.digest.hex)
    committing = asyncio.create_task(store.commit(made))
    await trap.met()

    assert await store.open_blob(made.digest) is None

    trap.release()
    await committing
    made.file.release()
    assert await read(store, made.digest) == content(1)


async def test_a_replaced_blob_is_counted_once(store: BlobStore) -> None:
    """A commit over a file that could not be read counts the difference."""
    digest = await put(store, content(1))
    path_of(store.root, digest).write_bytes(b"torn")

    await put(store, content(1))

    assert await total(store) == 1000
    assert store.net == 2000 - 4  # those behind our back are for the next scan to find


async def test_a_blob_that_is_being_read_outlives_its_name(store: BlobStore) -> None:
    """Whoever is being sent a blob reads on after its eviction, to the end."""
    digest = await put(store, content(1))
    file = await store.open_blob(digest)
    assert file is not None

    assert await store.remove(digest) == 1000

    assert await store.read(file, 2000, 0) == content(1)
    assert await store.open_blob(digest) is None
    file.release()


async def test_a_blob_removed_twice_at_once_is_counted_once(store: BlobStore, disk: FaultyFiles) -> None:
    """An eviction and the dropping of an unreadable blob may meet."""
    digest = await put(store, content(1))
    trap = disk.hold("unlink", path=digest.hex)
    removals = [asyncio.create_task(store.remove(digest)) for _ in range(3)]
    await trap.met()
    trap.release()

    assert sorted(await asyncio.gather(*removals)) == [0, 0, 1000]
    assert store.net == 0


async def test_files_that_are_not_ours_are_neither_counted_nor_touched(store: BlobStore) -> None:
    """Whatever somebody puts beside the blobs stays there."""
    path = path_of(store.root, await put(store, content(1)))
    elsewhere = "00" if path.name[:2] != "00" else "01"
    for name in ("README", path.name[:-1], path.name + "0", path.name.upper()[:-1] + "X", elsewhere + path.name[2:]):
        path.with_name(name).write_text("hands off")
    path.with_name(path.name[:2] + "0" * 62).mkdir()
    found = Everyone()

    await store.survey(DIRECTORIES, found)

    assert [entry.digest.hex for entry in found.entries] == [path.name]
    assert await total(store) == 1000
    assert await store.remove_unused([BlobEntry(entry.digest, 1, 4e9) for entry in found.entries]) == [1000]
    assert len(list(path.parent.iterdir())) == 6


async def test_data_is_for_us_alone(store: BlobStore) -> None:
    """Nobody else on the machine can list or read what we hold."""
    digest = await put(store, content(1))

    assert path_of(store.root, digest).stat().st_mode & 0o077 == 0
    for directory in ("blobs/sha256", "spool"):
        assert (store.root / directory).stat().st_mode & 0o077 == 0


# Who holds a file


async def test_a_file_closes_with_its_last_holder(store: BlobStore, disk: FaultyFiles) -> None:
    """Not before, and not twice."""
    digest = await put(store, content(1))
    file = await store.open_blob(digest)
    assert file is not None
    file.hold()

    file.release()
    assert await store.read(file, 10, 0) == content(1)[:10]
    file.release()

    with pytest.raises(AssertionError):
        file.release()
    with pytest.raises(AssertionError):
        file.hold()
    await until_closed(disk)


async def until_closed(disk: FaultyFiles) -> None:
    """Threads close files in their own time."""
    await until(lambda: not disk.open_paths)


async def test_a_small_blob_comes_with_its_content(store: BlobStore, disk: FaultyFiles) -> None:
    """If it is in memory; a large one, and one that the disk has to bring, are left to the sender."""
    small, large = content(1, 64 << 10), content(2, (64 << 10) + 1)
    for data, expected in ((small, small), (large, None), (b"", None)):
        file = await store.open_blob(await put(store, data))
        assert file is not None
        assert file.content == expected
        file.release()
    disk.evicted = True
    file = await store.open_blob(Digest.of(small))
    assert file is not None
    assert file.content is None
    file.release()


async def test_a_file_outlives_the_pool_that_would_close_it(tmp_path: Path, disk: FaultyFiles) -> None:
    """A request that ends after the store was closed still closes its file."""
    store = BlobStore(tmp_path, disk)
    await store.open()
    file = await store.open_blob(await put(store, content(1)))
    assert isinstance(file, SharedFile)
    await store.close()

    file.release()

    assert disk.open_paths == []


@pytest.mark.parametrize("method", ["open", "size"])
async def test_a_client_that_leaves_while_a_blob_is_opened_leaves_no_descriptor(
    store: BlobStore, disk: FaultyFiles, method: str
) -> None:
    """The thread opens the file after all, for nobody; it is closed."""
    digest = await put(store, content(1))
    trap = disk.hold(method, path=digest.hex)
    opening = asyncio.create_task(store.open_blob(digest))
    await trap.met()

    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)
    trap.release()

    await until_closed(disk)


async def test_a_spool_that_nobody_waits_for_any_more_leaves_nothing(store: BlobStore, disk: FaultyFiles) -> None:
    """Neither a descriptor nor a file."""
    trap = disk.hold("open", path="spool")
    making = asyncio.create_task(store.create_spool(Digest.of(b""), HOST))
    await trap.met()

    making.cancel()
    await asyncio.gather(making, return_exceptions=True)
    trap.release()

    await until_closed(disk)
    await until(lambda: not list((store.root / "spool").iterdir()))


@pytest.mark.parametrize("how", ["append", "commit", "read"])
async def test_a_file_stays_open_while_a_thread_works_on_it(store: BlobStore, disk: FaultyFiles, how: str) -> None:
    """Its owner may be cancelled and let go meanwhile: the number must not become somebody else's file."""
    made = await spool(store, content(1))
    method = {"append": "write", "commit": "fsync", "read": "read"}[how]
    trap = disk.hold(method, path="spool")
    task: asyncio.Task[object]
    if how == "append":
        task = asyncio.create_task(store.append(made, [b"more"]))
    elif how == "commit":
        task = asyncio.create_task(store.commit(made))
    else:
        task = asyncio.create_task(store.read(made.file, 10, 0))
    await trap.met()

    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    made.file.release()
    await asyncio.sleep(0.02)
    assert disk.open_paths == [made.path]  # the faulty disk would also raise KeyError for a closed descriptor
    trap.release()

    await until_closed(disk)


# A disk that fails or hangs


async def test_hits_do_not_wait_behind_slow_writes(store: BlobStore, disk: FaultyFiles) -> None:
    """However many fills wait for the disk, a blob is opened and read, and what passes by is hashed."""
    digest = await put(store, content(1))
    spools = [await store.create_spool(Digest.of(bytes([number])), HOST) for number in range(30)]
    trap = disk.hold("write", path="spool")
    fills = [asyncio.create_task(store.append(made, [b"bytes"])) for made in spools]
    await trap.met()

    assert await read(store, digest) == content(1)
    hasher = digest.hasher()
    await store.compute(hasher.update, content(1))
    assert hasher.hexdigest() == digest.hex

    trap.release()
    await asyncio.gather(*fills)
    for made in spools:
        made.file.release()


async def test_the_loop_turns_while_the_disk_hangs(store: BlobStore, disk: FaultyFiles) -> None:
    """No call on the disk is made on the event loop: it goes round while every call of the store hangs."""
    digest = await put(store, content(1))
    made = await spool(store, content(2))
    trap = disk.hold()
    waiting = [
        asyncio.create_task(work)
        for work in (
            store.open_blob(digest),
            store.remove(digest),
            store.create_spool(digest, HOST),
            store.append(made, [b"x"]),
            store.commit(made),
            store.survey(DIRECTORIES, Everyone()),
            store.free(),
            store.probe(),
        )
    ]
    store.touch(digest)
    waiting.append(asyncio.create_task(store.flush_uses()))
    for _ in range(1000):
        await asyncio.sleep(0)
    made.file.release()

    assert not any(task.done() for task in waiting)
    trap.release()
    done = await asyncio.gather(*waiting, return_exceptions=True)
    for result in done:
        if isinstance(result, SharedFile):
            result.release()


@pytest.mark.parametrize("method", ["open", "size"])
async def test_a_disk_that_does_not_answer_counts_as_failed(tmp_path: Path, disk: FaultyFiles, method: str) -> None:
    """A client waits for our disk only so long; what it brings later is let go."""
    store = BlobStore(tmp_path, disk, patience=0.05)
    await store.open()
    digest = await put(store, content(1))
    trap = disk.hold(method, path=digest.hex)

    with pytest.raises(StorageError) as caught:
        await store.open_blob(digest)

    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ETIMEDOUT
    trap.release()
    await until_closed(disk)
    await store.close()


async def test_a_spool_given_up_stays_as_it_is(tmp_path: Path, disk: FaultyFiles) -> None:
    """Readers go on from its end with its hash: a write that comes through late must not change either."""
    store = BlobStore(tmp_path, disk, patience=0.05)
    await store.open()
    made = await spool(store, content(1))
    trap = disk.hold("write", path="spool")
    with pytest.raises(StorageError, match="does not answer"):
        await store.append(made, [content(2), content(3)])

    trap.release()
    made.file.release()
    await until_closed(disk)

    assert made.written == 1000
    assert made.hasher.hexdigest() == Digest.of(content(1)).hex
    await store.close()


async def test_an_append_that_found_the_disk_full_can_be_repeated(store: BlobStore, disk: FaultyFiles) -> None:
    """After room was made the fill goes on where it stood, even in the middle of a piece."""
    data = content(1, 3000)
    made = await store.create_spool(Digest.of(data), HOST)
    disk.fail(errno.ENOSPC, "write", path="spool", skip=1, times=1)

    with pytest.raises(StorageError) as caught:
        await store.append(made, [data[:1000], data[1000:]])
    assert is_full(caught.value)
    assert made.written == 1000
    await store.append(made, [data[made.written :]])

    await store.commit(made)
    made.file.release()
    assert await read(store, made.digest) == data


async def test_short_writes_are_completed(tmp_path: Path) -> None:
    """A disk may take fewer bytes than it was given."""

    class Sips(FaultyFiles):
        def write(self, fd: int, data: bytes | memoryview, offset: int) -> int:
            return super().write(fd, memoryview(data)[:7], offset)

    store = BlobStore(tmp_path, Sips())
    await store.open()

    digest = await put(store, content(1))

    assert await read(store, digest) == content(1)
    assert (tmp_path / "unsettled").read_text().split() == [str(digest)]
    await store.close()


async def test_a_file_that_takes_no_bytes_is_an_error(tmp_path: Path) -> None:
    """Not a loop without end."""

    class Stuck(FaultyFiles):
        def write(self, fd: int, data: bytes | memoryview, offset: int) -> int:
            return 0

    store = BlobStore(tmp_path, Stuck())
    await store.open()
    made = await store.create_spool(Digest.of(content(1)), HOST)

    with pytest.raises(StorageError):
        await store.append(made, [content(1)])

    made.file.release()
    await store.close()


async def test_a_probe_tells_whether_the_disk_works(store: BlobStore, disk: FaultyFiles) -> None:
    """It writes, syncs, reads and removes, and leaves nothing."""
    await store.probe()
    assert list((store.root / "spool").iterdir()) == []

    for method in ("open", "write", "fsync", "read", "unlink"):
        disk.fail(errno.EROFS, method)
        with pytest.raises(StorageError):
            await store.probe()
        disk.clear()
    await store.probe()


async def test_a_closed_store_refuses(tmp_path: Path, disk: FaultyFiles) -> None:
    """A request that comes too late hears that the disk is of no use, and passes it by."""
    store = BlobStore(tmp_path, disk)
    await store.open()
    await store.close()

    with pytest.raises(StorageError):
        await store.open_blob(Digest.of(b""))


async def test_a_hanging_disk_does_not_keep_us_from_leaving(store: BlobStore, disk: FaultyFiles) -> None:
    """The wait for what still runs is bounded."""
    made = await spool(store, content(1))
    trap = disk.hold("write", path="spool")
    fill = asyncio.create_task(store.append(made, [b"x"]))
    await trap.met()

    with pytest.raises(StorageError, match="does not answer"):
        await store.close(limit=0.05)

    trap.release()
    await fill
    made.file.release()


async def test_one_blob_that_cannot_be_removed_keeps_no_other_from_going(store: BlobStore, disk: FaultyFiles) -> None:
    """What went is counted; where nothing goes the disk has failed."""
    entries = [BlobEntry(await put(store, content(number)), 1000, 4e9) for number in range(4)]
    disk.fail(errno.EIO, "unlink", path=entries[1].digest.hex)

    assert await store.remove_unused(entries) == [1000, 0, 1000, 1000]
    with pytest.raises(StorageError):
        await store.remove_unused(entries[1:2])
    assert store.net == bytes_in(store.root / "blobs") == 1000


# Uses


async def test_uses_reach_the_disk_in_batches(store: BlobStore, disk: FaultyFiles) -> None:
    """A use writes nothing; the flush writes the time of use."""
    digest = await put(store, content(1))
    calls = disk.calls.total()
    for _ in range(100):
        store.touch(digest)
    assert disk.calls.total() == calls

    await store.flush_uses()

    assert disk.calls["utime"] == 1
    assert path_of(store.root, digest).stat().st_mtime == NOW
    assert store.unflushed == 0


async def test_a_use_counts_while_it_is_being_written(store: BlobStore, disk: FaultyFiles) -> None:
    """Nor is one lost that the disk does not take."""
    digest = await put(store, content(1))
    os.utime(path_of(store.root, digest), (1, 1))
    store.touch(digest)
    trap = disk.hold("utime")
    flush = asyncio.create_task(store.flush_uses())
    await trap.met()

    assert await store.remove_unused([BlobEntry(digest, 1000, 1.0)]) == [0]

    disk.fail(errno.EROFS, "utime")
    trap.release()
    await flush
    store.touch(digest)
    with pytest.raises(StorageError):
        await store.flush_uses()
    assert store.unflushed == 1


async def test_a_use_during_the_flush_is_written_by_the_next(store: BlobStore, disk: FaultyFiles) -> None:
    """The flush forgets only what it has written."""
    now = [NOW]
    late = BlobStore(store.root, disk, lambda: now[0])
    digest = await put(store, content(1))
    late.touch(digest)
    trap = disk.hold("utime")
    flush = asyncio.create_task(late.flush_uses())
    await trap.met()
    now[0] += 1
    late.touch(digest)
    trap.release()
    await flush

    assert late.unflushed == 1
    await late.flush_uses()
    assert path_of(store.root, digest).stat().st_mtime == NOW + 1
    await late.close()


async def test_one_bad_file_does_not_keep_other_uses_from_being_written(store: BlobStore, disk: FaultyFiles) -> None:
    """Each blob's time is written for itself; blobs that are gone are passed over."""
    digests = [await put(store, content(number)) for number in range(5)]
    for digest in digests:
        store.touch(digest)
    store.touch(Digest.of(b"gone"))
    disk.fail(errno.EIO, "utime", path=digests[1].hex)

    with pytest.raises(StorageError):
        await store.flush_uses()

    times = [path_of(store.root, digest).stat().st_mtime for digest in digests]
    assert [time == NOW for time in times] == [True, False, True, True, True]


async def test_noted_uses_are_bounded(tmp_path: Path, disk: FaultyFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a disk that takes no times, memory still has an end."""
    monkeypatch.setattr("mirror.store.uses._MOST", 10)
    store = BlobStore(tmp_path, disk)
    for number in range(100):
        store.touch(Digest.of(bytes([number])))

    assert store.unflushed == 10


# After a crash


@pytest.mark.parametrize("damage", ["flipped", "truncated", "zeroed", "empty", "longer"])
async def test_a_blob_damaged_by_a_power_loss_is_dropped_before_its_first_use(
    store: BlobStore, disk: FaultyFiles, tmp_path: Path, damage: str
) -> None:
    """The others committed since the last clean stop are verified too, and served."""
    good, bad = await put(store, content(1)), await put(store, content(2))
    data = content(2)
    path_of(store.root, bad).write_bytes(
        {
            "flipped": bytes([data[0] ^ 1]) + data[1:],
            "truncated": data[:-1],
            "zeroed": bytes(len(data)),
            "empty": b"",
            "longer": data + b"\0",
        }[damage]
    )

    successor = await after_a_crash(store, disk, tmp_path)

    assert await read(successor, bad) is None
    assert await read(successor, good) == content(1)
    assert not path_of(successor.root, bad).exists()
    await successor.close()


async def test_a_herd_verifies_a_blob_once(store: BlobStore, disk: FaultyFiles, tmp_path: Path) -> None:
    """Fifty clients that want a young blob after a crash cost one reading of it; the next ones none."""
    digest = await put(store, content(1, 3 * MIB))
    successor = await after_a_crash(store, disk, tmp_path)
    reads = disk.calls["read"]

    files = await asyncio.gather(*(successor.open_blob(digest) for _ in range(50)))

    assert disk.calls["read"] - reads == 4  # three pieces and the end
    for file in [*files, await successor.open_blob(digest)]:
        assert file is not None
        file.release()
    assert disk.calls["read"] - reads == 4
    await successor.close()


async def test_a_clean_stop_leaves_nothing_to_verify(store: BlobStore, disk: FaultyFiles) -> None:
    """The next process believes every blob."""
    digest = await put(store, content(1))
    assert (store.root / "unsettled").read_text().split() == [str(digest)]

    await store.close()

    assert (store.root / "unsettled").read_bytes() == b""
    successor = BlobStore(store.root, disk)
    assert await successor.open()
    reads = disk.calls["read"]
    file = await successor.open_blob(digest)
    assert file is not None
    file.release()
    assert disk.calls["read"] == reads
    await successor.close()


async def test_a_blob_never_verified_stays_suspect_over_a_clean_stop(
    store: BlobStore, disk: FaultyFiles, tmp_path: Path
) -> None:
    """Only verifying, replacing or removing it settles it."""
    digest = await put(store, content(1))
    path_of(store.root, digest).write_bytes(b"wrong")
    second = await after_a_crash(store, disk, tmp_path)
    await second.close()

    third = BlobStore(second.root, disk)
    assert not await third.open()
    assert await read(third, digest) is None
    await third.close()


async def test_a_store_that_was_never_opened_touches_no_journal(store: BlobStore, disk: FaultyFiles) -> None:
    """A process that found the directory locked leaves the holder's journal alone as it goes."""
    await put(store, content(1))
    journal = (store.root / "unsettled").read_bytes()
    assert journal

    await BlobStore(store.root, disk).close()

    assert (store.root / "unsettled").read_bytes() == journal


async def test_a_failed_verification_decides_nothing(store: BlobStore, disk: FaultyFiles, tmp_path: Path) -> None:
    """A blob that cannot be read now is neither served nor dropped; it is verified when it can be."""
    digest = await put(store, content(1))
    successor = await after_a_crash(store, disk, tmp_path)
    disk.fail(errno.EIO, "read", path=digest.hex)
    with pytest.raises(StorageError):
        await successor.open_blob(digest)

    disk.clear()

    assert await read(successor, digest) == content(1)
    await successor.close()


@pytest.mark.parametrize("method", ["fsync", "stat", "rename", "write"])
async def test_a_suspect_blob_stays_suspect_until_it_has_been_replaced(
    store: BlobStore, disk: FaultyFiles, tmp_path: Path, method: str
) -> None:
    """A replacement that fails on the disk does not make the old bytes trusted."""
    digest = await put(store, content(1))
    path_of(store.root, digest).write_bytes(b"wrong" * 200)
    successor = await after_a_crash(store, disk, tmp_path)
    made = await spool(successor, content(1))
    disk.fail(errno.EIO, method)
    with pytest.raises(StorageError):
        await successor.commit(made)
    disk.clear()
    made.file.release()

    assert await read(successor, digest) is None
    await successor.close()


async def test_a_verification_that_ends_late_does_not_remove_the_replacement(
    store: BlobStore, disk: FaultyFiles, tmp_path: Path
) -> None:
    """It looked at the old file; the name means another one by now."""
    digest = await put(store, content(1))
    path_of(store.root, digest).write_bytes(b"wrong")
    successor = await after_a_crash(store, disk, tmp_path, patience=0.1)
    trap = disk.hold("read", path=digest.hex)
    assert await successor.open_blob(digest) is None  # not known in time: as if it were not held
    await put(successor, content(1))

    trap.release()
    await until_closed(disk)

    assert await read(successor, digest) == content(1)
    await successor.close()


async def test_an_evicted_suspect_is_no_suspect(store: BlobStore, disk: FaultyFiles, tmp_path: Path) -> None:
    """The journal does not grow by what is long gone."""
    digest = await put(store, content(1))
    successor = await after_a_crash(store, disk, tmp_path)

    await successor.remove(digest)
    await successor.close()

    assert (successor.root / "unsettled").read_bytes() == b""


async def test_suspects_of_many_crashes_are_no_more_than_there_are_blobs(
    store: BlobStore, disk: FaultyFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who was evicted before the last crash is not suspected for ever."""
    monkeypatch.setattr("mirror.store.blobs._MOST_SUSPECTS", 3)
    digests = [await put(store, content(number)) for number in range(5)]
    for digest in digests[:4]:
        await store.remove(digest)

    successor = await after_a_crash(store, disk, tmp_path)

    assert successor.checks.suspects == (digests[4],)
    await successor.close()


async def test_closing_does_not_wait_for_a_long_verification(
    store: BlobStore, disk: FaultyFiles, tmp_path: Path
) -> None:
    """It stops at the next piece, and the blob stays suspect."""
    digest = await put(store, content(1, 8 * MIB))
    successor = await after_a_crash(store, disk, tmp_path)
    trap = disk.hold("read", path=digest.hex, skip=1, times=1)
    opening = asyncio.create_task(successor.open_blob(digest))
    await trap.met()
    reads = disk.calls["read"]

    closing = asyncio.create_task(successor.close())
    await asyncio.sleep(0)
    trap.release()
    await closing

    assert disk.calls["read"] - reads <= 1
    await asyncio.gather(opening, return_exceptions=True)
    assert str(digest) in (successor.root / "unsettled").read_text()


# Leftover spools


async def test_leftover_spools_are_resumed_if_they_are_worth_it(
    store: BlobStore, disk: FaultyFiles, tmp_path: Path
) -> None:
    """From 1 MiB on, and from the same upstream; smaller ones and strange files are removed."""
    large, small = content(1, 2 * MIB), content(2, 1000)
    for data in (large, small):
        (await spool(store, data)).file.release()
    (store.root / "spool" / "probe").write_bytes(b"x" * MIB * 2)

    successor = await after_a_crash(store, disk, tmp_path) if await put(store, b"x") else store

    digest = Digest.of(large)
    assert list(successor.leftovers) == [digest]
    assert len(list((successor.root / "spool").iterdir())) == 1
    assert not successor.has_leftover(digest, "another.example")
    assert successor.take_leftover(digest, "another.example") is None
    leftover = successor.take_leftover(digest, HOST)
    assert leftover is not None
    resumed = await successor.resume_spool(digest, leftover)
    assert resumed.written == len(large)
    assert resumed.hasher.hexdigest() == digest.hex
    await successor.commit(resumed)
    resumed.file.release()
    assert await read(successor, digest) == large
    await successor.close()


async def test_a_leftover_of_a_blob_that_is_held_is_removed(
    store: BlobStore, disk: FaultyFiles, tmp_path: Path
) -> None:
    """At the start, and when the blob is committed."""
    data, other = content(1, 2 * MIB), content(2, 2 * MIB)
    for each in (data, data, other):
        (await spool(store, each)).file.release()
    await put(store, data)

    successor = await after_a_crash(store, disk, tmp_path)

    assert list(successor.leftovers) == [Digest.of(other)]
    await put(successor, other)
    assert successor.leftovers == {}
    assert list((successor.root / "spool").iterdir()) == []
    await successor.close()


async def test_a_leftover_that_takes_long_to_read_is_put_back(
    store: BlobStore, disk: FaultyFiles, tmp_path: Path
) -> None:
    """The client does not wait for it, and it is no failure of the disk; a later process may have the time."""
    data = content(1, 2 * MIB)
    (await spool(store, data)).file.release()
    await put(store, b"x")
    successor = await after_a_crash(store, disk, tmp_path, patience=0.2)
    leftover = successor.take_leftover(Digest.of(data), HOST)
    assert leftover is not None
    trap = disk.hold("read", path="spool")

    with pytest.raises(StorageError) as caught:
        await successor.resume_spool(Digest.of(data), leftover)

    assert caught.value.__cause__ is None
    assert successor.leftovers == {}
    trap.release()
    await until_closed(disk)
    await asyncio.sleep(0)
    assert successor.has_leftover(Digest.of(data), HOST)
    await successor.close()


async def test_a_leftover_that_cannot_be_read_is_removed(store: BlobStore, disk: FaultyFiles, tmp_path: Path) -> None:
    """Its blob is fetched from scratch."""
    data = content(1, 2 * MIB)
    (await spool(store, data)).file.release()
    await put(store, b"x")
    successor = await after_a_crash(store, disk, tmp_path)
    leftover = successor.take_leftover(Digest.of(data), HOST)
    assert leftover is not None
    disk.fail(errno.EIO, "read", path="spool")

    with pytest.raises(StorageError):
        await successor.resume_spool(Digest.of(data), leftover)

    assert bytes_in(successor.root / "spool") == 0
    await successor.close()


async def test_a_leftover_that_cannot_be_removed_stays_counted(
    store: BlobStore, disk: FaultyFiles, tmp_path: Path
) -> None:
    """What is on the disk counts, whatever went wrong."""
    data = content(1, 2 * MIB)
    (await spool(store, data)).file.release()
    await put(store, b"x")
    successor = await after_a_crash(store, disk, tmp_path)
    disk.fail(errno.EIO, "unlink")

    with pytest.raises(StorageError):
        await successor.discard_leftover(Digest.of(data))

    assert list(successor.leftovers) == [Digest.of(data)]
    disk.clear()
    assert await successor.discard_leftover(Digest.of(data)) == len(data)
    await successor.close()


# What the kernel has in memory


@pytest.fixture
def at_work(disk: FaultyFiles) -> list[tuple[str, str]]:
    """The thread of each call that opens or closes a blob's file, from now on."""
    seen: list[tuple[str, str]] = []

    def watch(method: str, path: Path | None) -> None:
        if method in ("open", "close") and path is not None and path.parent.parent.name == "sha256":
            seen.append((method, threading.current_thread().name))

    disk.watch = watch
    return seen


async def test_what_is_at_hand_is_opened_and_closed_without_a_thread(
    store: BlobStore, disk: FaultyFiles, at_work: list[tuple[str, str]]
) -> None:
    """On a file system that answers from memory alone; one that asks somebody else could keep everybody waiting."""
    if not disk.is_prompt(store.root):
        pytest.skip("the tests' directory is on a file system that may ask somebody else")
    digest = await put(store, content(1))
    at_work.clear()

    file = await store.open_blob(digest)

    assert file is not None
    file.release()
    assert at_work == [("open", "MainThread"), ("close", "MainThread")]


async def test_an_evicted_blob_is_closed_by_a_thread(
    store: BlobStore, disk: FaultyFiles, at_work: list[tuple[str, str]]
) -> None:
    """Whoever closes it last has to wait until its blocks are free."""
    digest = await put(store, content(1))
    file = await store.open_blob(digest)
    assert file is not None
    await store.remove(digest)
    at_work.clear()

    file.release()
    await store.close()

    assert [thread.startswith("disk-tidy") for method, thread in at_work if method == "close"] == [True]


async def test_a_served_file_system_is_not_prompt(disk: FaultyFiles) -> None:
    """Nor is one that nobody knows."""
    assert not disk.is_prompt(Path("/proc"))


async def test_what_is_wanted_of_an_absent_blob_is_asked_for_meanwhile(store: BlobStore, disk: FaultyFiles) -> None:
    """It does not wait for the disk."""
    trap = disk.hold("stat")
    asked = asyncio.Event()

    async def beside() -> None:
        asked.set()

    opening = asyncio.create_task(store.open_blob(Digest.of(b"absent"), beside))
    await asyncio.wait_for(asked.wait(), 5)
    trap.release()
    assert await opening is None

"""How far readers may go in a blob on its way: never into its last 4 KiB before the digest, never past the window."""

from __future__ import annotations

import asyncio
import errno
import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.download.tracks import HEAD_BYTES, WINDOW_BYTES, WITHHELD, SpoolTrack, Track, WindowTrack
from mirror.oci.digest import Digest
from mirror.oci.errors import StorageError, UpstreamCorrupt, UpstreamUnavailable
from mirror.store.blobs import BlobStore
from mirror.transport.rate import MinimumRate
from tests.faulty import FaultyFiles
from tests.storing import HOST, content

KIB = 1 << 10
PIECE = 256 * KIB


@pytest.fixture
def disk() -> FaultyFiles:
    """The disk under the store."""
    return FaultyFiles()


@pytest.fixture
async def store(tmp_path: Path, disk: FaultyFiles) -> AsyncIterator[BlobStore]:
    """An open blob store."""
    store = BlobStore(tmp_path, disk)
    await store.open()
    yield store
    disk.clear()
    await store.close()


@pytest.fixture
async def spool_track(store: BlobStore) -> AsyncIterator[SpoolTrack]:
    """A track on a new spool."""
    track = SpoolTrack(await store.create_spool(Digest.of(b"whatever"), HOST), store)
    yield track
    track.release()


@pytest.fixture
def window(store: BlobStore) -> WindowTrack:
    """A track in memory."""
    return WindowTrack(Digest.of(b"whatever"), store, MinimumRate(0, 60))


# Any track.


@given(st.integers(0, 20_000), st.lists(st.integers(0, 8000), max_size=10))
def test_the_tail_is_withheld_until_the_digest_matches(size: int, steps: list[int]) -> None:
    """Whatever has come, no byte of the last 4 KiB is visible, and what was visible stays so."""

    async def check() -> None:
        track = Track()
        track.size = size
        written = before = 0
        for step in steps:
            written = min(size, written + step)
            track.advance(written)
            assert before <= track.visible <= max(0, size - WITHHELD)
            assert track.visible == max(0, min(written, size - WITHHELD))
            before = track.visible
        track.written = size
        track.complete()
        assert track.visible == size
        assert track.is_complete

    asyncio.run(check())


async def test_nothing_is_visible_while_the_length_is_unknown() -> None:
    """The tail could be among what has come."""
    track = Track()

    track.advance(1 << 20)

    assert (track.visible, track.is_complete) == (0, False)
    track.complete()
    assert (track.size, track.visible, track.is_complete) == (1 << 20, 1 << 20, True)


async def test_everybody_who_waits_is_woken() -> None:
    """By bytes, by the end and by an error; who comes afterwards waits for the next news."""
    track = Track()
    track.size = 1 << 20
    changes: list[Callable[[], None]] = [
        lambda: track.advance(10),
        lambda: track.complete(),
        lambda: track.fail(UpstreamUnavailable("gone")),
    ]
    for change in changes:
        waiting = [asyncio.create_task(track.news()) for _ in range(3)]
        await asyncio.sleep(0)

        change()

        await asyncio.wait_for(asyncio.gather(*waiting), 1)


async def test_the_first_error_counts() -> None:
    """What follows from it is no news."""
    track = Track()
    first = UpstreamCorrupt("wrong bytes")

    track.fail(first)
    track.fail(UpstreamUnavailable("stopped"))

    assert track.error is first


# In a spool.


async def test_a_spool_hashes_what_it_holds(spool_track: SpoolTrack) -> None:
    """Bytes on the disk, their hash and the place that readers see go together."""
    spool_track.size = 100_000
    data = content(1, 50_000)

    await spool_track.append([data[:20_000], data[20_000:]])

    assert (spool_track.written, spool_track.visible) == (50_000, 50_000)
    assert spool_track.hexdigest == hashlib.sha256(data).hexdigest()
    assert spool_track.spool.read_all() == data


async def test_the_first_bytes_do_not_wait_for_the_disk(disk: FaultyFiles, spool_track: SpoolTrack) -> None:
    """They are there while the disk still takes them, and only then come from the file."""
    spool_track.size = 1 << 20
    data = content(1, 200_000)
    trap = disk.hold("write")
    appending = asyncio.create_task(spool_track.append([data]))
    await trap.met()

    assert spool_track.head == data[:HEAD_BYTES]
    assert (spool_track.written, spool_track.visible) == (0, 0)

    trap.release()
    await appending
    assert (spool_track.head, spool_track.visible) == (b"", 200_000)


@pytest.mark.parametrize(("size", "shown"), [(None, 0), (WITHHELD, 0), (WITHHELD + 1, 1), (20_000, 20_000 - WITHHELD)])
async def test_the_first_bytes_are_never_the_last(
    disk: FaultyFiles, spool_track: SpoolTrack, size: int | None, shown: int
) -> None:
    """Of a small blob, and of one whose length nobody knows, the tail could be among them."""
    spool_track.size = size
    disk.fail(errno.EIO, "write")

    with pytest.raises(StorageError):
        await spool_track.append([content(1, 20_000)])

    assert len(spool_track.head) == shown


async def test_what_was_shown_counts_when_the_disk_fails(disk: FaultyFiles, spool_track: SpoolTrack) -> None:
    """Whoever goes on alone has the hash of all that it was given, of the file or not."""
    spool_track.size = 1 << 20
    data = content(1, 200_000)
    disk.fail(errno.EIO, "write")
    with pytest.raises(StorageError):
        await spool_track.append([data])

    spool_track.freeze()

    assert spool_track.frozen is not None
    assert spool_track.frozen_at == len(spool_track.head) == HEAD_BYTES
    assert spool_track.frozen.hexdigest() == hashlib.sha256(data[:HEAD_BYTES]).hexdigest()


async def test_a_frozen_spool_gives_what_it_has_but_never_the_last_byte(spool_track: SpoolTrack) -> None:
    """Whoever goes on alone withholds the rest; all of an unverified blob would look complete."""
    spool_track.size = 10_000
    await spool_track.append([content(1, 9_999)])

    spool_track.freeze()

    assert spool_track.visible == 9_999
    assert spool_track.frozen is not None
    assert spool_track.frozen.hexdigest() == spool_track.hexdigest


async def test_a_spool_that_is_whole_when_the_disk_fails_shows_no_tail(spool_track: SpoolTrack) -> None:
    """Its digest has not been compared."""
    spool_track.size = 10_000
    await spool_track.append([content(1, 10_000)])

    spool_track.freeze()

    assert spool_track.visible == 10_000 - WITHHELD


async def test_a_file_is_released_once(store: BlobStore, spool_track: SpoolTrack) -> None:
    """However many say so; who holds it reads on."""
    held = spool_track.spool.file.hold()

    spool_track.release()
    spool_track.release()

    assert await store.read(held, 1, 0) == b""
    held.release()


# In a window.


async def fill(window: WindowTrack, count: int, first: int = 0) -> None:
    """Appends `count` pieces, numbered from `first`."""
    for number in range(first, first + count):
        await window.append([content(number, PIECE)])


async def test_a_window_holds_so_much_and_then_waits(window: WindowTrack) -> None:
    """Nobody has taken the oldest piece: no further one is accepted until somebody has."""
    window.size = 64 * PIECE
    await fill(window, WINDOW_BYTES // PIECE)
    more = asyncio.create_task(fill(window, 1, 8))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not more.done()
    assert window.start == 0

    window.reached(PIECE)
    await asyncio.wait_for(more, 1)

    assert (window.start, window.written) == (PIECE, 9 * PIECE)


async def test_the_fastest_reader_decides(window: WindowTrack) -> None:
    """A slow one holds up nobody: his bytes are forgotten under him."""
    window.size = 64 * PIECE
    window.reached(100)
    await fill(window, 8)
    window.reached(3 * PIECE)
    window.reached(PIECE)  # another one, behind

    await asyncio.wait_for(fill(window, 3, 8), 1)

    assert window.start == 3 * PIECE
    assert window.piece(PIECE) is None


async def test_a_piece_comes_with_the_hash_up_to_its_end(window: WindowTrack) -> None:
    """From which a reader who is cut loose goes on."""
    window.size = 64 * PIECE
    await fill(window, 3)

    piece = window.piece(PIECE + 10)

    assert piece is not None
    assert piece.data == content(1, PIECE)[10:]
    assert piece.end == piece.hashed == 2 * PIECE
    assert piece.hasher.hexdigest() == hashlib.sha256(content(0, PIECE) + content(1, PIECE)).hexdigest()


async def test_a_piece_that_reaches_into_the_tail_says_that_its_hash_goes_further(window: WindowTrack) -> None:
    """Its bytes end where the tail begins; the hash has seen the tail."""
    window.size = PIECE
    await fill(window, 1)

    piece = window.piece(0)

    assert piece is not None
    assert (piece.end, piece.hashed) == (PIECE - WITHHELD, PIECE)


@given(st.lists(st.integers(1, 1_600_000), min_size=1, max_size=12))
def test_a_window_of_pieces_of_any_size_never_waits_for_what_nobody_may_take(sizes: list[int]) -> None:
    """With a reader that takes all that is visible, everything passes, tail included."""

    async def check() -> None:
        class Store:
            async def compute(self, work: object, data: bytes) -> None:
                """Hashing is not what this is about."""

        window = WindowTrack(Digest.of(b""), Store(), MinimumRate(0, 60))  # type: ignore[arg-type]  # it only hashes
        window.size = sum(sizes)

        async def read() -> None:
            offset = 0
            while offset < sum(sizes):
                window.reached(offset)
                piece = window.piece(offset) if offset < window.visible else None
                if piece is None:
                    await window.news()
                else:
                    offset = piece.end

        reading = asyncio.create_task(read())
        for size in sizes:
            await window.append([bytes(size)])
            assert sum(len(piece.data) for piece in window._window) <= max(WINDOW_BYTES, size)
        window.complete()
        await reading

    asyncio.run(asyncio.wait_for(check(), 5))

"""Verifying all blobs at once: what is found and removed, and what a failing disk or a server at work does to it."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest

from mirror.oci.digest import Digest
from mirror.store.verification import Finding, Verification
from tests.faulty import FaultyFiles
from tests.storing import content, path_of

SIZE = 1000


class House:
    """Blobs on a disk, as a server has left them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.disk = FaultyFiles()
        self.found: list[Finding] = []

    def fill(self, count: int, size: int = SIZE) -> list[Digest]:
        """Puts blobs there; returns their digests in order."""
        return sorted(self.put(content(number, size)) for number in range(count))

    def put(self, data: bytes, algorithm: str = "sha256") -> Digest:
        digest = Digest.of(data, algorithm)
        path = path_of(self.root, digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return digest

    def flip(self, digest: Digest) -> None:
        """Changes the last bit of a blob's file."""
        data = bytearray(path_of(self.root, digest).read_bytes())
        data[-1] ^= 1
        path_of(self.root, digest).write_bytes(data)

    def verify(self, jobs: int = 3) -> Verification:
        """Surveys and compares; what is found is in `found`."""
        verification = Verification(self.root, jobs=jobs, files=self.disk)
        verification.survey()
        verification.run(self.found.append, lambda: None)
        return verification

    def held(self, digests: list[Digest]) -> list[bool]:
        return [path_of(self.root, digest).exists() for digest in digests]


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


@pytest.mark.parametrize("jobs", [1, 3, 64])
def test_wrong_blobs_are_told_and_removed(house: House, jobs: int) -> None:
    """Flipped, cut, extended or emptied; however many are read at a time. The others stay, and all are counted."""
    digests = house.fill(40)
    house.flip(digests[3])
    for number, size in ((10, SIZE - 1), (20, SIZE + 1), (30, 0)):
        os.truncate(path_of(house.root, digests[number]), size)

    verification = house.verify(jobs)

    wrong = {3: SIZE, 10: SIZE - 1, 20: SIZE + 1, 30: 0}
    assert set(house.found) == {
        Finding(str(digests[number]), size, "wrong bytes, removed") for number, size in wrong.items()
    }
    assert house.held(digests) == [number not in wrong for number in range(40)]
    assert (verification.blobs, verification.read) == (40, 39 * SIZE)
    assert house.disk.open_paths == []


def test_a_sound_store_has_nothing_to_tell(house: House) -> None:
    """Blobs of several pieces, of none and of sha512 are right when their bytes are; times of use stay as they are."""
    digests = [house.put(content(1, 3_000_001)), house.put(b""), house.put(content(2), "sha512")]
    before = [path_of(house.root, digest).stat().st_mtime_ns for digest in digests]

    verification = house.verify()

    assert house.found == []
    assert (verification.blobs, verification.read) == (3, 3_000_001 + SIZE)
    assert [path_of(house.root, digest).stat().st_mtime_ns for digest in digests] == before


def test_the_survey_tells_what_there_is_to_do(house: House) -> None:
    """Blobs and their bytes, without opening any."""
    house.fill(7)
    house.put(content(9), "sha512")

    assert Verification(house.root, jobs=1).survey() == (8, 8 * SIZE)


def test_what_is_no_blob_is_told_and_left_alone(house: House) -> None:
    """A foreign file, a blob in the wrong directory, and everything in the spool; none of them counts as wrong."""
    (digest,) = house.fill(1)
    shelf = path_of(house.root, digest).parent
    other = next(prefix for prefix in ("00", "01") if prefix != shelf.name)
    misplaced = shelf.with_name(other) / digest.hex
    misplaced.parent.mkdir()
    spool = house.root / "spool" / f"sha256-{digest.hex}.0.0"
    spool.parent.mkdir()
    for path in (misplaced, shelf / "notes.txt", spool):
        path.write_bytes(b"strange")

    house.verify()

    assert {(finding.name, finding.harmless) for finding in house.found} == {
        (str(misplaced), True),
        (str(shelf / "notes.txt"), True),
    }
    assert all(path.read_bytes() == b"strange" for path in (misplaced, shelf / "notes.txt", spool))


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES])
def test_a_directory_that_is_not_ours_to_read_is_an_error(house: House, number: int) -> None:
    """Nothing was verified, and nobody may take it for all right."""
    house.fill(1)
    house.disk.fail(number, "open")

    with pytest.raises(OSError, match=os.strerror(number)):
        house.verify()


def test_a_part_that_cannot_be_read_is_told_and_the_rest_verified(house: House) -> None:
    """A directory, a blob that may not be opened, and one that the disk has lost: they are told, and left."""
    digests = house.fill(30)
    lost, closed, shelf = digests[2], digests[11], digests[21].hex[:2]
    house.disk.fail(errno.EIO, "read", path=lost.hex)
    house.disk.fail(errno.EACCES, "open", path=closed.hex)
    house.disk.fail(errno.EIO, "scan", path=f"sha256/{shelf}")
    house.flip(digests[15])

    house.verify()

    told = {finding.name: finding.what for finding in house.found}
    assert told == {
        str(lost): "cannot be read: Input/output error",
        str(closed): "cannot be read: Permission denied",
        str(house.root / "blobs" / "sha256" / shelf): "cannot be read: Input/output error",
        str(digests[15]): "wrong bytes, removed",
    }
    assert house.held(digests) == [number != 15 for number in range(30)]
    assert not any(finding.harmless for finding in house.found)


def test_a_blob_that_cannot_be_removed_is_told(house: House) -> None:
    """On a read-only disk, or as somebody else's."""
    digests = house.fill(3)
    house.flip(digests[1])
    house.disk.fail(errno.EROFS, "unlink")

    house.verify()

    assert [finding.what for finding in house.found] == ["wrong bytes, and cannot be removed: Read-only file system"]
    assert house.held(digests) == [True] * 3


@pytest.mark.parametrize("replaced", [True, False])
async def test_what_a_server_does_meanwhile_is_not_undone(house: House, replaced: bool) -> None:
    """It evicts the bad blob, or puts a good one in its place, while the bad one is hashed."""
    (digest,) = house.fill(1)
    house.flip(digest)
    trap = house.disk.hold("read", path=digest.hex)
    verifying = asyncio.create_task(asyncio.to_thread(house.verify))
    await trap.met()
    if replaced:
        (house.root / "new").write_bytes(content(0))
        (house.root / "new").rename(path_of(house.root, digest))
    else:
        path_of(house.root, digest).unlink()
    trap.release()
    await verifying

    assert house.found == []
    assert house.held([digest]) == [replaced]


def test_a_blob_evicted_after_it_was_listed_is_passed_over(house: House) -> None:
    """Nothing is wrong with a blob that is gone."""
    digests = house.fill(5)
    house.disk.fail(errno.ENOENT, "open", path=digests[2].hex)

    house.verify()

    assert house.found == []


def test_an_interruption_ends_it_soon(house: House) -> None:
    """What is being read is read no further, and nothing of it is judged."""
    digests = house.fill(20)
    endless = path_of(house.root, digests[0])
    os.truncate(endless, 1 << 38)
    verification = Verification(house.root, jobs=2, files=house.disk)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verification.run(house.found.append, interrupt)

    assert verification.read < 1 << 38
    assert endless.exists()
    assert house.disk.open_paths == []

"""Comparing a file with a digest: piece by piece, and without a trace in the page cache."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirror.oci.digest import Digest
from mirror.store.files import Files
from mirror.store.inspection import Inspection
from tests.storing import content

MIB = 1 << 20


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    """A file to write to and to read."""
    number = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield number
    os.close(number)


def inspect(fd: int, digest: Digest) -> tuple[bool, list[int]]:
    """The verdict, and the lengths of the pieces."""
    inspection = Inspection(digest, Files(), fd)
    pieces = []
    while count := inspection.step():
        pieces.append(count)
    assert inspection.size == sum(pieces)
    return inspection.intact, pieces


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize(
    ("size", "pieces"), [(0, []), (1, [1]), (MIB, [MIB]), (MIB + 1, [MIB, 1]), (3 * MIB - 1, [MIB, MIB, MIB - 1])]
)
def test_a_file_is_read_in_pieces(fd: int, algorithm: str, size: int, pieces: list[int]) -> None:
    """None longer than 1 MiB; the last one may be short, an empty file has none."""
    data = content(1, size)
    os.pwrite(fd, data, 0)

    assert inspect(fd, Digest.of(data, algorithm)) == (True, pieces)
    assert inspect(fd, Digest.of(data + b"x", algorithm)) == (False, pieces)


def in_memory(fd: int, size: int) -> list[int]:
    """How many pages of each MiB of a file are in memory; asking whether a read would wait could begin to read them."""
    with mmap.mmap(fd, size) as mapping:
        pages = (ctypes.c_ubyte * (size // mmap.PAGESIZE))()
        start = ctypes.c_char.from_buffer(mapping)
        failed = ctypes.CDLL(None).mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), pages)
        del start
        assert failed == 0
    step = MIB // mmap.PAGESIZE
    return [sum(page & 1 for page in pages[at : at + step]) for at in range(0, len(pages), step)]


def test_the_page_cache_is_as_before(fd: int) -> None:
    """Really: of a file of which a part is in memory, that part is in memory afterwards, and no other."""
    data, all_of_it = content(2, 8 * MIB), MIB // mmap.PAGESIZE
    os.pwrite(fd, data, 0)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    if any(in_memory(fd, 8 * MIB)):
        pytest.skip("this file system keeps all of it in memory, as tmpfs does")
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    os.pread(fd, 2 * MIB, 3 * MIB)
    before = in_memory(fd, 8 * MIB)
    assert before == [0] * 3 + [all_of_it] * 2 + [0] * 3

    assert inspect(fd, Digest.of(data))[0]

    assert in_memory(fd, 8 * MIB) == before

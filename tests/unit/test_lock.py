"""One process per data directory, and who it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mirror.oci.errors import StorageError
from mirror.store.lock import DataLock


def test_the_second_is_told_who_the_first_is(tmp_path: Path) -> None:
    """By its process id; when the first has gone the next one gets in, however the file looks."""
    first = DataLock.take(tmp_path)
    with pytest.raises(StorageError, match=f"in use by process {os.getpid()} on "):
        DataLock.take(tmp_path)

    first.release()
    first.release()
    (tmp_path / "lock").write_bytes(b"\xff" * 5000)

    DataLock.take(tmp_path).release()


def test_a_holder_without_a_name_holds_all_the_same(tmp_path: Path) -> None:
    """The lock is the kernel's, not the file's words."""
    first = DataLock.take(tmp_path)
    (tmp_path / "lock").write_bytes(b"")

    with pytest.raises(StorageError, match="in use by another process"):
        DataLock.take(tmp_path)
    first.release()


def test_a_lock_knows_its_directory(tmp_path: Path) -> None:
    """Under whatever name; not one that was made in its place."""
    (tmp_path / "data").mkdir()
    lock = DataLock.take(tmp_path / "data")
    assert lock.is_of(tmp_path / "data")

    (tmp_path / "data").rename(tmp_path / "away")
    assert not lock.is_of(tmp_path / "data")
    assert lock.is_of(tmp_path / "away")

    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "lock").touch()
    assert not lock.is_of(tmp_path / "data")
    lock.release()
    assert not lock.is_of(tmp_path / "away")

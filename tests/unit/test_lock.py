"""One process per data directory, and who it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mirror.oci.errors import StorageError
from mirror.store.lock import DataLock


def test_the_second_is_told_who_the_first_is(tmp_path: Path) -> None:
    """By its process id; when the first has gone the next one gets in, however the file looks."""
    first = DataLock.take(tmp_path / "new" / "data")
    with pytest.raises(StorageError, match=f"in use by process {os.getpid()} on "):
        DataLock.take(tmp_path / "new" / "data")

    first.release()
    first.release()
    (tmp_path / "new" / "data" / "lock").write_bytes(b"\xff" * 5000)

    DataLock.take(tmp_path / "new" / "data").release()


def test_a_holder_without_a_name_holds_all_the_same(tmp_path: Path) -> None:
    """The lock is the kernel's, not the file's words."""
    first = DataLock.take(tmp_path)
    (tmp_path / "lock").write_bytes(b"")

    with pytest.raises(StorageError, match="in use by another process"):
        DataLock.take(tmp_path)
    first.release()


def test_the_directory_is_for_us_alone(tmp_path: Path) -> None:
    """Whoever else is on the machine, private images are not for him."""
    DataLock.take(tmp_path / "data").release()

    assert (tmp_path / "data").stat().st_mode & 0o077 == 0


def test_what_is_no_directory_is_named(tmp_path: Path) -> None:
    """One sentence for the operator."""
    (tmp_path / "file").write_text("")

    with pytest.raises(StorageError, match=f"cannot use {tmp_path / 'file'} as data directory: "):
        DataLock.take(tmp_path / "file")

"""One process per data directory, and who it is."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
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


ABANDONS = """
import subprocess, sys
from pathlib import Path
from mirror.store.lock import DataLock
lock = DataLock.take(Path(sys.argv[1]))
worker = subprocess.Popen(["cat"], pass_fds=[lock.fd], stdout=subprocess.DEVNULL)  # as long as our stdin is open
"""


def test_the_workers_of_a_dead_supervisor_are_waited_for(tmp_path: Path) -> None:
    """They have its lock, and end by themselves: whoever is started in its place at once need not fail."""
    process = subprocess.Popen([sys.executable, "-c", ABANDONS, str(tmp_path)], stdin=subprocess.PIPE)
    assert process.wait(30) == 0
    assert process.stdin is not None
    with ThreadPoolExecutor(1) as pool:
        taking = pool.submit(DataLock.take, tmp_path)
        with pytest.raises(TimeoutError):
            taking.result(0.2)

        process.stdin.close()

        taking.result(10).release()

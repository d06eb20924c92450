"""One process per data directory."""

from __future__ import annotations

import fcntl
import os
import re
import socket
import time
from pathlib import Path

from mirror.oci.errors import StorageError

_PATIENCE = 10.0
"""Seconds for workers to notice that their supervisor has died: they have the lock from it."""
_PAUSE = 0.05


class DataLock:
    """A lock on `<root>/lock` that the kernel takes back when the process ends, however it ends."""

    def __init__(self, fd: int) -> None:
        self._fd: int | None = fd

    @classmethod
    def take(cls, root: Path) -> DataLock:
        """Locks a directory that is there. Blocks, for some seconds where its holder has died and left workers.

        Raises StorageError naming the process that uses it, and OSError where it cannot be used.
        """
        path = root / "lock"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            holder = _lock(fd)
        except OSError as error:
            os.close(fd)
            raise OSError(error.errno, error.strerror, str(path)) from error
        if holder is not None:
            os.close(fd)
            raise StorageError(f"{root} is in use by {holder}")
        _sign(fd)
        return cls(fd)

    @property
    def fd(self) -> int:
        """A descriptor of what is locked: whoever inherits it holds the lock, too."""
        assert self._fd is not None, "released"
        return self._fd

    @property
    def identity(self) -> tuple[int, int]:
        """What tells the file that we hold from any other: its device and its inode."""
        if self._fd is None:
            return 0, 0
        status = os.fstat(self._fd)
        return status.st_dev, status.st_ino

    def is_of(self, root: Path) -> bool:
        """Whether `<root>/lock` is still the file that we hold. Raises OSError where that cannot be told. Blocks."""
        return self._fd is not None and identity_in(root) == self.identity

    def release(self) -> None:
        """Lets the next process in. Idempotent."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


def _lock(fd: int) -> str | None:
    """Locks the file; else tells who holds it."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 200, 0).decode("utf-8", "replace").strip()
            if not _has_died(holder) or time.monotonic() > deadline:
                return holder or "another process"
            time.sleep(_PAUSE)
        else:
            return None


def _has_died(holder: str) -> bool:
    """Whether it is the name of a process of this machine that is no more."""
    named = re.fullmatch(r"process (\d+) on (.*)", holder)
    if named is None or named[2] != socket.gethostname():
        return False
    try:
        os.kill(int(named[1]), 0)
    except OSError as error:
        return isinstance(error, ProcessLookupError)
    return False


def identity_in(root: Path) -> tuple[int, int] | None:
    """The same of `<root>/lock`, whoever holds it; None where there is none. Blocks. Raises OSError."""
    try:
        status = (root / "lock").stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_dev, status.st_ino


def _sign(fd: int) -> None:
    try:
        os.truncate(fd, 0)
        os.pwrite(fd, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    except OSError:
        pass  # a full disk keeps nobody from starting: the lock holds without our name

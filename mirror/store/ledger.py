"""What came to each directory of blobs and what went, and whose turn it is to change its names, in all processes."""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mirror.store import generations

Directory = tuple[str, str]
"""Algorithm and first two hex digits."""

DIRECTORIES = tuple((algorithm, f"{prefix:02x}") for algorithm in ("sha256", "sha512") for prefix in range(256))
_NUMBERS = {directory: number for number, directory in enumerate(DIRECTORIES)}
_TOTAL = len(DIRECTORIES)
_TURNS = _TOTAL + 1
"""From here on: whether it is the writer's turn, by directory."""
_ROW = _TURNS + len(DIRECTORIES)
_BYTES = 8


def share(writers: int) -> int:
    """A descriptor of memory for processes that keep one store: the ledger of so many, and their generations.

    It is in no file system: no disk can take it away.
    """
    fd = os.memfd_create("mirror-store")
    os.ftruncate(fd, generations.SIZE + writers * _ROW * _BYTES)
    return fd


class Ledger:
    """Balances in bytes by directory. Each writer has a row of its own, which stays when its process is gone: the next
    one in its place goes on with it. All methods may be called from several threads.
    """

    def __init__(self, fd: int | None = None, writer: int = 0) -> None:
        """`fd`: see `share`; None: this process is alone. `writer`: which row is ours."""
        self._locks = {directory: threading.Lock() for directory in DIRECTORIES}
        self._counting = threading.Lock()
        self._fd: int | None = None
        start, size = 0, _ROW * _BYTES
        if fd is not None:
            start, size = generations.SIZE, os.fstat(fd).st_size
            # Locks belong to whoever has opened it, and who inherits the descriptor would share them with us.
            self._fd = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
        self._numbers = memoryview(mmap.mmap(-1 if fd is None else fd, size))[start:].cast("q")
        self._ours = writer * _ROW

    @contextmanager
    def turn(self, directory: Directory) -> Iterator[None]:
        """Ours alone, of all threads and processes: names in the directory change, and are counted, one at a time, so
        that the count is exact. The kernel ends the turn of a process that dies. Blocks. Raises OSError.
        """
        with self._locks[directory]:
            if self._fd is None:
                yield
                return
            number = _NUMBERS[directory]
            self._lock(number, fcntl.F_WRLCK)
            self._numbers[self._ours + _TURNS + number] = 1
            try:
                yield
            finally:
                self._numbers[self._ours + _TURNS + number] = 0
                self._lock(number, fcntl.F_UNLCK)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Ours alone, of all processes, for what is no directory of blobs; one thread of each. Blocks."""
        if self._fd is None:
            yield
            return
        self._lock(_TOTAL, fcntl.F_WRLCK)
        try:
            yield
        finally:
            self._lock(_TOTAL, fcntl.F_UNLCK)

    def count(self, directory: Directory, size: int) -> None:
        """So many bytes came, or went where it is below 0; in our turn."""
        self._numbers[self._ours + _NUMBERS[directory]] += size
        with self._counting:
            self._numbers[self._ours + _TOTAL] += size

    def balance(self, directory: Directory) -> int:
        """What came minus what went, of all writers; in our turn."""
        return sum(self._numbers[_NUMBERS[directory] :: _ROW])

    def died(self, writer: int) -> bool:
        """Whether that writer, who is gone, was in a turn, so that what it did may not be in its balances.

        Its successor, who is not there yet, begins with a row that is in order.
        """
        row = self._numbers[writer * _ROW : (writer + 1) * _ROW]
        torn = any(row[_TURNS:])
        for number in range(_TURNS, _ROW):
            row[number] = 0
        row[_TOTAL] = sum(row[:_TOTAL])
        return torn

    @property
    def net(self) -> int:
        """The sum of all balances."""
        return sum(self._numbers[_TOTAL::_ROW])

    def close(self) -> None:
        """Lets go of the locks. Idempotent."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def _lock(self, number: int, kind: int) -> None:
        assert self._fd is not None, "locked where nobody else is"
        fcntl.fcntl(self._fd, fcntl.F_OFD_SETLKW, struct.pack("hhqqi4x", kind, os.SEEK_SET, number, 1, 0))

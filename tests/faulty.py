"""A disk that fails, waits or is watched on request: `mirror.store.files.Files` with traps in front of every call.

    disk = FaultyFiles()
    disk.fail(errno.EIO, "read", "sendfile")         # every such call from now on ...
    disk.clear()                                     # ... until the disk works again
    disk.fail(errno.ENOSPC, "write", skip=2, times=1)  # the third write alone
    trap = disk.hold("fsync", path="spool")          # waits until trap.release()
    await trap.met()

`path` is a part of the path; a call on a descriptor has the path that it was opened with. Without names a trap stands
in front of every method.
"""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from mirror.store.files import Files

METHODS = tuple(sorted(name for name, value in vars(Files).items() if callable(value) and not name.startswith("_")))
"""Every call that the store can make."""

Watch = Callable[[str, Path | None], None]


class Trap:
    """Stands in front of calls until it is removed, or has caught `times` of them after letting `skip` pass."""

    def __init__(self, methods: frozenset[str], path: str, skip: int, times: int | None, error: int | None) -> None:
        self.hits = 0
        """Calls caught so far."""
        self._methods = methods
        self._path = path
        self._skip = skip
        self._times = times
        self._error = error
        self._reached = threading.Event()
        self._released = threading.Event()

    def release(self) -> None:
        """Lets go of everyone it holds, and of whoever comes later."""
        self._released.set()

    async def met(self, limit: float = 5.0) -> None:
        """Waits until it has caught a call."""
        assert await asyncio.to_thread(self._reached.wait, limit), "nothing came by"

    def stands_before(self, method: str, path: Path) -> bool:
        """Whether such a call may meet it."""
        return method in self._methods and self._path in str(path)

    def catches(self, method: str, path: Path | None) -> bool:
        """Whether it stands in the way of this call; counts it."""
        if method not in self._methods or self._path not in str(path or ""):
            return False
        if self._skip:
            self._skip -= 1
            return False
        if self._times is not None and self.hits >= self._times:
            return False
        self.hits += 1
        return True

    def spring(self) -> None:
        """Fails the call, or keeps it until it is released. Raises OSError."""
        self._reached.set()
        if self._error is not None:
            raise OSError(self._error, os.strerror(self._error))
        if not self._released.wait(15):
            raise AssertionError("a held call was never released")


class FaultyFiles(Files):
    """The real disk behind traps."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        """How often each method was called."""
        self.log: list[tuple[str, Path | None]] = []
        """Every call so far, in order."""
        self.space: tuple[int, int] | None = None
        """What it says of its free bytes, and of all; the truth where this is None."""
        self.evicted = False
        """Whether the page cache has lost everything, as far as small blobs are concerned."""
        self.watch: Watch | None = None
        """Called in the calling thread after each call that went well."""
        self._traps: list[Trap] = []
        self._paths: dict[int, Path] = {}
        self._lock = threading.Lock()

    def fail(self, error: int, *methods: str, path: str = "", skip: int = 0, times: int | None = None) -> Trap:
        """Calls raise OSError(error)."""
        return self._set(methods, path, skip, times, error)

    def hold(self, *methods: str, path: str = "", skip: int = 0, times: int | None = None) -> Trap:
        """Calls wait in their thread until the trap is released."""
        return self._set(methods, path, skip, times, None)

    def clear(self) -> None:
        """The disk works again; whoever is held goes on."""
        with self._lock:
            traps, self._traps = self._traps, []
        for trap in traps:
            trap.release()

    @property
    def open_paths(self) -> list[Path]:
        """The path of every descriptor that is open."""
        with self._lock:
            return sorted(self._paths.values())

    def _set(self, methods: Iterable[str], path: str, skip: int, times: int | None, error: int | None) -> Trap:
        chosen = frozenset(methods) or frozenset(METHODS)
        assert chosen <= set(METHODS), f"no such call: {chosen - set(METHODS)}"
        trap = Trap(chosen, path, skip, times, error)
        with self._lock:
            self._traps.append(trap)
        return trap

    def _before(self, method: str, path: Path | None) -> None:
        with self._lock:
            caught = self._note(method, path)
        for trap in caught:
            trap.spring()

    def _note(self, method: str, path: Path | None) -> list[Trap]:
        """Counts a call, under the lock; returns the traps that it meets."""
        self.calls[method] += 1
        self.log.append((method, path))
        return [trap for trap in self._traps if trap.catches(method, path)]

    def _after(self, method: str, path: Path | None) -> None:
        if self.watch is not None:
            self.watch(method, path)

    # Calls by path.

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        self._before("open", path)
        fd = super().open(path, flags, mode)
        with self._lock:
            self._paths[fd] = path
        self._after("open", path)
        return fd

    def open_at_hand(self, path: Path) -> int | None:
        if self._is_trapped("open", path) or self._is_trapped("size", path):
            return None
        fd = super().open_at_hand(path)
        if fd is not None:
            with self._lock:
                self._note("open", path)
                self._paths[fd] = path
            self._after("open", path)
        return fd

    def is_linked(self, fd: int) -> bool:
        return not self._is_trapped("close", self._paths[fd]) and super().is_linked(fd)

    def _is_trapped(self, method: str, path: Path) -> bool:
        with self._lock:
            return any(trap.stands_before(method, path) for trap in self._traps)

    def rename(self, source: Path, target: Path) -> None:
        self._before("rename", target)
        super().rename(source, target)
        self._after("rename", target)

    def unlink(self, path: Path) -> None:
        self._before("unlink", path)
        super().unlink(path)
        self._after("unlink", path)

    def mkdir(self, path: Path) -> None:
        self._before("mkdir", path)
        super().mkdir(path)
        self._after("mkdir", path)

    def fsync_directory(self, path: Path) -> None:
        self._before("fsync_directory", path)
        super().fsync_directory(path)
        self._after("fsync_directory", path)

    def stat(self, path: Path) -> os.stat_result:
        self._before("stat", path)
        return super().stat(path)

    def is_at(self, fd: int, path: Path) -> bool:
        self._before("is_at", path)
        return super().is_at(fd, path)

    def utime(self, path: Path, when: float) -> None:
        self._before("utime", path)
        super().utime(path, when)

    def scan(self, path: Path) -> Iterable[tuple[str, int, float]]:
        self._before("scan", path)
        yield from super().scan(path)

    def free(self, path: Path) -> tuple[int, int]:
        self._before("free", path)
        return self.space or super().free(path)

    # Calls by descriptor.

    def close(self, fd: int) -> None:
        with self._lock:
            path = self._paths.pop(fd)
            caught = self._note("close", path)
        super().close(fd)  # Linux closes it even where it then tells of an error
        self._after("close", path)
        for trap in caught:
            trap.spring()

    def read(self, fd: int, count: int, offset: int) -> bytes:
        self._before("read", self._paths[fd])
        return super().read(fd, count, offset)

    def read_resident(self, fd: int, count: int) -> bytes | None:
        return None if self.evicted else super().read_resident(fd, count)

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        path = self._paths[fd]
        self._before("write", path)
        done = super().write(fd, data, offset)
        self._after("write", path)
        return done

    def advise(self, fd: int, advice: int, offset: int = 0, count: int = 0) -> None:
        self._before("advise", self._paths[fd])
        super().advise(fd, advice, offset, count)

    def sendfile(self, out: int, fd: int, offset: int, count: int) -> int:
        self._before("sendfile", self._paths[fd])
        return super().sendfile(out, fd, offset, count)

    def fsync(self, fd: int) -> None:
        self._before("fsync", self._paths[fd])
        super().fsync(fd)

    def size(self, fd: int) -> int:
        self._before("size", self._paths[fd])
        return super().size(fd)


class FullDisk(Files):
    """Takes the first `room` bytes of a spool, and says ENOSPC to whatever goes further."""

    def __init__(self, room: int) -> None:
        self.room = room

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        if offset + len(data) > self.room:
            raise OSError(errno.ENOSPC, "planted")
        return super().write(fd, data, offset)

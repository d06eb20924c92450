"""Every call that touches the data directory, in one object, so that a test can make any of them fail or wait."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import stat
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

_OPENAT2 = 437  # on every architecture; Python has no name for it
_AT_FDCWD = -100
_RESOLVE_CACHED = 0x20
_NOWAIT: int | None = getattr(os, "RWF_NOWAIT", None)
"""None where Python was built with a C library that does not know it, as older ones of Alpine."""
_LOCAL = frozenset({"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "tmpfs", "xfs"})
"""File systems that keep what they have opened in the kernel, and ask nobody."""
_OCTAL = re.compile(r"\\([0-7]{3})")
_libc = ctypes.CDLL(None, use_errno=True)


class Files:
    """The file system calls of the store, thin over `os`. All of them block: call them from a thread of a pool.

    But where `is_prompt`: `open_at_hand`, `size`, `is_linked`, `read_resident`, and `close` of what is linked.
    """

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        """Opens `path` and returns its descriptor."""
        return os.open(path, flags | os.O_CLOEXEC, mode)

    def open_at_hand(self, path: Path) -> int | None:
        """Opens `path` for reading as `open` does, if the kernel has all of the way to it in memory; else None.

        Raises FileNotFoundError where it knows that nothing is there.
        """
        how = struct.pack("QQQ", os.O_RDONLY | os.O_CLOEXEC, 0, _RESOLVE_CACHED)
        fd: int = _libc.syscall(ctypes.c_long(_OPENAT2), _AT_FDCWD, os.fsencode(path), how, ctypes.c_size_t(len(how)))
        if fd >= 0:
            return fd
        if ctypes.get_errno() == errno.ENOENT:
            raise FileNotFoundError(errno.ENOENT, "there is no such file")
        return None  # nobody can tell, or an error that shows when it is opened in earnest

    def is_prompt(self, root: Path) -> bool:
        """Whether opening what is at hand below `root`, and closing it again, waits for nothing.

        On a file system that somebody serves, over a network or from a process, it may ask them each time.
        """
        place, kind = root.resolve(), ""
        nearest = -1
        try:
            mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
        except OSError:
            return False
        for mount in mounts:  # a later one of the same place hides the earlier one
            fields, _, rest = mount.partition(" - ")
            point = Path(_OCTAL.sub(lambda code: chr(int(code[1], 8)), fields.split(" ")[4]))
            if place.is_relative_to(point) and len(point.parts) >= nearest:
                nearest, kind = len(point.parts), rest.split(" ")[0]
        return kind in _LOCAL

    def is_linked(self, fd: int) -> bool:
        """Whether the open file still has a name: else closing it last frees its blocks."""
        return os.fstat(fd).st_nlink > 0

    def close(self, fd: int) -> None:
        """Closes a descriptor."""
        os.close(fd)

    def read(self, fd: int, count: int, offset: int) -> bytes:
        """At most `count` bytes from `offset`; empty at the end."""
        return os.pread(fd, count, offset)

    def resident(self, fd: int, offset: int, count: int) -> bool:
        """Whether `count` bytes from `offset` (their first and last) are in memory; True where nobody can tell."""
        if _NOWAIT is None:
            return True
        for place in (offset, offset + count - 1):
            try:
                os.preadv(fd, [bytearray(1)], place, _NOWAIT)
            except BlockingIOError:
                return False
            except OSError:
                return True  # not every file system knows; a failing one shows when it is read
        return True

    def read_resident(self, fd: int, count: int) -> bytes | None:
        """The first `count` bytes, if all of them are in memory; None also where nobody can tell."""
        if _NOWAIT is None or not count:
            return None
        content = bytearray(count)
        try:
            done = os.preadv(fd, [content], 0, _NOWAIT)
        except OSError:
            return None  # not in memory, or the file system does not know, or it fails, which shows when it is read
        return bytes(content) if done == count else None

    def advise(self, fd: int, advice: int, offset: int = 0, count: int = 0) -> None:
        """Tells the kernel what to do with a part of its page cache: `os.POSIX_FADV_*`; to the end if `count` is 0."""
        os.posix_fadvise(fd, offset, count, advice)

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        """Writes at `offset`; returns how many bytes it took."""
        return os.pwrite(fd, data, offset)

    def sendfile(self, out: int, fd: int, offset: int, count: int) -> int:
        """Copies at most `count` bytes from `offset` to the socket `out`; 0 at the end."""
        return os.sendfile(out, fd, offset, count)

    def fsync(self, fd: int) -> None:
        """Waits until the file is on the disk."""
        os.fsync(fd)

    def fsync_directory(self, path: Path) -> None:
        """Waits until the directory's entries are on the disk."""
        fd = self.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self.fsync(fd)
        finally:
            self.close(fd)

    def rename(self, source: Path, target: Path) -> None:
        """Moves a file over `target`."""
        os.rename(source, target)  # noqa: PTH104 - one object makes every call, by its os name

    def unlink(self, path: Path) -> None:
        """Removes a file; one that is gone already is fine."""
        path.unlink(missing_ok=True)

    def mkdir(self, path: Path) -> None:
        """Makes a directory and its parents, readable by us alone."""
        path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def size(self, fd: int) -> int:
        """The length of an open file in bytes."""
        return os.fstat(fd).st_size

    def inode(self, fd: int) -> int:
        """The number of an open file, which no other file of the file system has while it is open."""
        return os.fstat(fd).st_ino

    def stat(self, path: Path) -> os.stat_result:
        """The status of `path`."""
        return path.stat()

    def is_at(self, fd: int, path: Path) -> bool:
        """Whether `path` names the very file that is open."""
        try:
            return os.path.samestat(os.fstat(fd), path.stat())
        except FileNotFoundError:
            return False

    def utime(self, path: Path, when: float) -> None:
        """Sets the time of last use (mtime) in seconds since the epoch."""
        os.utime(path, (when, when))

    def scan(self, path: Path) -> Iterable[tuple[str, int, float]]:
        """Name, size in bytes and mtime of each plain file in `path`; nothing where there is no such directory."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    try:
                        # Not that of the entry, which in some versions keeps the interpreter from everybody meanwhile.
                        status = os.stat(entry.name, dir_fd=fd, follow_symlinks=False)
                    except FileNotFoundError:  # evicted since the directory was read
                        continue
                    if stat.S_ISREG(status.st_mode):
                        yield entry.name, status.st_size, status.st_mtime
        finally:
            os.close(fd)

    def free(self, path: Path) -> tuple[int, int]:
        """Free bytes for us on the file system that holds `path`, and its total."""
        status = os.statvfs(path)
        return status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize


def write_some(files: Files, fd: int, data: bytes | memoryview, offset: int) -> int:
    """Files.write, where taking nothing is an error, so that whoever writes in a loop comes to an end."""
    done = files.write(fd, data, offset)
    if not done and data:
        raise OSError(errno.EIO, "the file takes no bytes")
    return done


class SharedFile:
    """An open file that closes when its last holder lets go.

    A thread that works on the descriptor is a holder: closing it under a running `sendfile` would let the kernel give
    the number to somebody else's file. Hold and release on the event loop only; the close itself is given to `submit`,
    which has it done in a thread, since closing the last descriptor of an unlinked file frees its blocks.
    """

    def __init__(self, fd: int, size: int, files: Files, submit: Callable[[Callable[[int], None], int], None]) -> None:
        self.fd = fd
        self.size = size
        """Bytes; for a spool, what had been written when the file was shared."""
        self.files = files
        self.content: bytes | None = None
        """All of it, where that was little and in memory when it was opened."""
        self._submit = submit
        self._holders = 1

    def hold(self) -> SharedFile:
        """One more holder; each releases once."""
        assert self._holders > 0, "held after the last release"
        self._holders += 1
        return self

    def release(self) -> None:
        """One holder less; the last one closes the descriptor."""
        assert self._holders > 0, "released more often than held"
        self._holders -= 1
        if self._holders == 0:
            self._submit(self.files.close, self.fd)


def let_go(file: SharedFile | None) -> None:
    """Releases a file that was opened for somebody who has left, if there was one."""
    if file is not None:
        file.release()

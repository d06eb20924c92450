"""The data directory: made, locked and looked through at the start; watched later, since a volume may go and return."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

from mirror.oci.errors import StorageError
from mirror.store.lock import DataLock, identity_in
from mirror.store.threads import Threads

_DIRECTORIES = ("", "blobs", "blobs/sha256", "blobs/sha512", "spool", "records")
_FILES = ("unsettled", "records/cache.db", "records/cache.db-wal", "records/cache.db-shm")
_ELSEWHERE = "or set storage.path to another one"


class Home:
    """The directory that is ours until `release`.

    While the mirror runs it makes nothing but what belongs into it: where a volume is gone there may be an empty
    directory of another file system, which nobody wants filled, and a volume has to find its place free.
    """

    def __init__(self, root: Path, *, patience: float = 10.0) -> None:
        """`patience`: seconds to wait for the disk."""
        self._root = root
        self._patience = patience
        self._threads = Threads("home", 1)
        self._lock: DataLock | None = None
        self._was_mounted = False
        self._changed = False

    async def take(self) -> None:
        """Makes the directory where there is none, and locks it.

        Raises StorageError, in words for the operator: what is in the way, and what to do.
        """
        await self._threads.run(self._take)

    async def find(self) -> bool:
        """Whether the directory is another one than it was, and ours now; True until `accept` is called.

        Raises StorageError while it is gone, not mounted, or in use by somebody else.
        """
        return await self._threads.run(self._find, limit=self._patience)

    def accept(self) -> None:
        """The other directory was looked through: it is the one from now on."""
        self._changed = False

    @property
    def identity(self) -> tuple[int, int]:
        """What tells our directory from any other that may stand in its place."""
        return self._lock.identity if self._lock is not None else (0, 0)

    @property
    def lock_fd(self) -> int:
        """A descriptor by which another process of ours keeps it ours; until `release`."""
        assert self._lock is not None, "not taken"
        return self._lock.fd

    def check(self) -> None:
        """Raises OSError where the directory is not the one that we have locked. Blocks."""
        if self._lock is not None and not self._lock.is_of(self._root):
            raise OSError(errno.ENODEV, "the data directory is gone", str(self._root))

    async def release(self, limit: float = 2.0) -> None:
        """Lets the next process in, after what still runs. Idempotent.

        Does not wait longer than `limit` seconds: when we end the kernel does it.
        """
        try:
            await self._threads.run(self._let_go, limit=limit)
        except StorageError:
            pass  # released before, or a disk that hangs
        self._threads.close()

    # In the thread.

    def _take(self) -> None:
        try:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = DataLock.take(self._root)
            _look_through(self._root)
        except OSError as error:
            raise mistake(self._root, error) from error
        self._was_mounted = self._is_mounted()

    def _find(self) -> bool:
        assert self._lock is not None, "looked for before it was taken"
        if self._lock.is_of(self._root):
            return self._changed
        if not self._root.is_dir() or (self._was_mounted and not self._is_mounted()):
            raise OSError(errno.ENODEV, "the data directory is gone", str(self._root))
        try:
            lock = DataLock.take(self._root)
        except StorageError as error:
            raise OSError(errno.EBUSY, error.message) from error
        self._lock.release()
        self._lock, self._changed = lock, True
        return True

    def _is_mounted(self) -> bool:
        return os.path.ismount(os.path.realpath(self._root))

    def _let_go(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()


class SharedHome:
    """The directory that another process of ours has locked, and told us of: `identity`."""

    def __init__(self, root: Path, *, patience: float = 10.0) -> None:
        """`patience`: seconds to wait for the disk."""
        self.identity = (0, 0)
        self._root = root
        self._patience = patience
        self._threads = Threads("home", 1)

    def check(self) -> None:
        """Raises OSError where there is another directory in its place, or none. Blocks."""
        if identity_in(self._root) != self.identity:
            raise OSError(errno.ENODEV, "the data directory is gone", str(self._root))

    async def look(self) -> None:
        """As `check`, in a thread. Raises StorageError."""
        await self._threads.run(self.check, limit=self._patience)

    def close(self) -> None:
        """Looks no more."""
        self._threads.close()


def mistake(root: Path, error: OSError) -> StorageError:
    """What keeps us from using `root`, and what to do about it, in one sentence."""
    path = Path(error.filename) if isinstance(error.filename, str) else root
    return StorageError(f"cannot use {root} as data directory: {path}: {_wrong(path, error)}")


def _wrong(path: Path, error: OSError) -> str:
    if error.errno in (errno.EACCES, errno.EPERM):
        there, we = _nearest(path), os.geteuid()
        status = there.stat()
        remedy = f"chmod -R u+rwX {there}" if status.st_uid == we else f"chown -R {we} {there}"
        return (
            f"permission denied: we are user {we}, and {there} belongs to user {status.st_uid}"
            f" with mode {stat.S_IMODE(status.st_mode):o}; let us in ({remedy}), {_ELSEWHERE}"
        )
    if error.errno == errno.EROFS:
        return f"read-only file system; mount it for writing, {_ELSEWHERE}"
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return f"not a directory; move away what is there, {_ELSEWHERE}"
    if error.errno == errno.EISDIR:
        return "not a file; move away what is there: it is not ours"
    return error.strerror or str(error)


def _nearest(path: Path) -> Path:
    """What denies us: the path itself, or the nearest above it that we can see."""
    for there in (path, *path.absolute().parents):
        try:
            there.stat()
        except OSError:
            continue
        return there
    return Path("/")


def _look_through(root: Path) -> None:
    """Raises OSError for what is there of ours, but of another kind, or not for us to read and write.

    Blobs are not looked at one by one: one that cannot be read is fetched again when somebody wants it.
    """
    for name in _DIRECTORIES:
        _look_at(root / name, stat.S_ISDIR, errno.ENOTDIR, os.R_OK | os.W_OK | os.X_OK)
    for name in _FILES:
        _look_at(root / name, stat.S_ISREG, errno.EISDIR, os.R_OK | os.W_OK)


def _look_at(path: Path, is_right: Callable[[int], bool], otherwise: int, access: int) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if not is_right(mode):
        raise OSError(otherwise, os.strerror(otherwise), str(path))
    if not os.access(path, access, effective_ids=True):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(path))

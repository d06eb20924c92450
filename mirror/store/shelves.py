"""The directories of blob files: which names they hold, how many bytes, and what may change them. Everything blocks."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

from mirror.oci.digest import Digest
from mirror.store.files import Files, SharedFile
from mirror.store.ledger import DIRECTORIES, Directory, Ledger
from mirror.store.rests import Rests
from mirror.store.spools import Spool
from mirror.store.unsettled import Unsettled

__all__ = ["DIRECTORIES", "BlobEntry", "Directory", "Shelves", "digest_of"]

_HEX_DIGITS = {"sha256": 64, "sha512": 128}


_STEP = 64
"""Blobs between two looks at the time."""

_SMALL = 64 << 10
"""Bytes of a blob that costs less to read at once than to send from its file: configurations, signatures, indexes."""


@dataclass(frozen=True, slots=True)
class BlobEntry:
    """A blob as the scan saw it: its length in bytes and its last use in seconds since the epoch."""

    digest: Digest
    size: int
    used_at: float


class Visitor(Protocol):
    """Looks at blobs that were used before `until`, or after `now`, as their files say (seconds since the epoch)."""

    until: float
    now: float

    def look(self, entry: BlobEntry) -> None:
        """At one."""


class Shelves:
    """The files under `<root>/blobs`. Every method may be called from several threads and raises OSError."""

    def __init__(
        self, root: Path, files: Files, unsettled: Unsettled, share: Callable[[int, int], SharedFile], ledger: Ledger
    ) -> None:
        self._root = root
        self._files = files
        self._unsettled = unsettled
        self._share = share
        self._ledger = ledger

    def open_at_hand(self, digest: Digest) -> tuple[bool, SharedFile | None]:
        """Whether `open` needs no disk, and if so, what it gives; with the content of a small blob, if it is there."""
        try:
            fd = self._files.open_at_hand(self._path(digest))
        except FileNotFoundError:
            return True, None
        if fd is None:
            return False, None
        file = self._opened(fd)
        if file.size <= _SMALL:
            file.content = self._files.read_resident(file.fd, file.size)
        return True, file

    def holds(self, digest: Digest) -> bool:
        """Whether there is such a blob, of whatever length."""
        try:
            self._files.stat(self._path(digest))
        except FileNotFoundError:
            return False
        return True

    def open(self, digest: Digest) -> SharedFile | None:
        """The blob's file; None where there is none."""
        try:
            fd = self._files.open(self._path(digest), os.O_RDONLY)
        except FileNotFoundError:
            return None
        return self._opened(fd)

    def _opened(self, fd: int) -> SharedFile:
        try:
            return self._share(fd, self._files.size(fd))
        except BaseException:
            self._files.close(fd)
            raise

    def size(self, digest: Digest) -> int:
        """The blob's length in bytes; 0 where there is none."""
        try:
            return self._files.stat(self._path(digest)).st_size
        except FileNotFoundError:
            return 0

    def place(self, spool: Spool) -> None:
        """Makes the spool's file the blob, in the order in which a power loss at any moment does no harm."""
        path = self._path(spool.digest)
        try:
            self._files.stat(path.parent)
        except FileNotFoundError:
            self._files.stat(path.parent.parent)  # where this is missing too, the volume is gone
            self._files.mkdir(path.parent)
            self._files.fsync_directory(path.parent.parent)
        self._files.fsync(spool.file.fd)
        self._unsettled.add(spool.digest)
        with self._turn(spool.digest):
            replaced = self.size(spool.digest)  # one that we could not read; who is being sent it reads on
            self._files.rename(spool.path, path)
            self._ledger.count(_directory(spool.digest), spool.written - replaced)
            self._unsettled.settle(spool.digest)  # these bytes were hashed on their way in
        self._files.fsync_directory(path.parent)

    def remove(self, digest: Digest, unless_used_after: float | None = None) -> int:
        """Unlinks the blob; returns the bytes it had, 0 if it was gone or its file's time is after that moment."""
        with self._turn(digest):
            try:
                status = self._files.stat(self._path(digest))
            except FileNotFoundError:
                return 0
            if unless_used_after is not None and status.st_mtime > unless_used_after:
                return 0
            self._unlink(digest, status.st_size)
            self._unsettled.settle(digest)
            return status.st_size

    def settle(self, digest: Digest, matches: Callable[[SharedFile], bool]) -> bool:
        """Whether the blob's bytes are right; a blob of other bytes is removed."""
        file = self.open(digest)
        if file is None:
            self._unsettled.settle(digest)
            return False
        try:
            intact = matches(file)
            self.judge(digest, file, intact)
        finally:
            self._files.close(file.fd)
        return intact

    def judge(self, digest: Digest, file: SharedFile, intact: bool) -> bool:
        """Takes note that the open `file` was hashed; removes one that is not intact. Returns whether that was done.

        One that was evicted or replaced meanwhile is not the one that was hashed.
        """
        with self._turn(digest):
            removed = not intact and self._files.is_at(file.fd, self._path(digest))
            if removed:
                self._unlink(digest, self._files.size(file.fd))
            self._unsettled.settle(digest)
        return removed

    def used(self, uses: dict[Digest, float]) -> None:
        """Writes times of use, in seconds since the epoch, as mtimes; blobs that are gone are passed over."""
        failure: OSError | None = None
        for digest, used_at in uses.items():
            try:
                self._files.utime(self._path(digest), used_at)
            except FileNotFoundError:
                continue
            except OSError as error:  # one bad file says nothing of the others
                failure = failure or error
        if failure is not None:
            raise failure

    def scan(self, directory: Directory, visitor: Visitor, rests: Rests) -> tuple[int, int]:
        """Has blobs of a directory looked at; returns how many it holds, and their bytes without its balance.

        There may be a million: whatever is done for each of them has to be little, and not all at once.
        """
        is_ours = _names_in(directory).fullmatch  # what is not is left alone
        count = total = 0
        with self._ledger.turn(directory):
            for name, size, used_at in self._files.scan(self._root.joinpath("blobs", *directory)):
                if not is_ours(name):
                    continue
                count += 1
                total += size
                if used_at < visitor.until or used_at > visitor.now:
                    visitor.look(BlobEntry(Digest(directory[0], name), size, used_at))
                if not count % _STEP:
                    rests.step()
            return count, total - self._ledger.balance(directory)

    def _path(self, digest: Digest) -> Path:
        return self._root / "blobs" / digest.algorithm / digest.hex[:2] / digest.hex

    def _turn(self, digest: Digest) -> AbstractContextManager[None]:
        return self._ledger.turn(_directory(digest))

    def _unlink(self, digest: Digest, size: int) -> None:
        self._files.unlink(self._path(digest))
        self._ledger.count(_directory(digest), -size)


def _directory(digest: Digest) -> Directory:
    return digest.algorithm, digest.hex[:2]


def digest_of(directory: Directory, name: str) -> Digest | None:
    """The digest of the blob whose file has this name in that directory; None for a file that is not one of ours."""
    # Digest.parse would remember each, and forget what requests ask for.
    return Digest(directory[0], name) if _names_in(directory).fullmatch(name) else None


@cache
def _names_in(directory: Directory) -> re.Pattern[str]:
    algorithm, prefix = directory
    return re.compile(f"{prefix}[0-9a-f]{{{_HEX_DIGITS[algorithm] - len(prefix)}}}")

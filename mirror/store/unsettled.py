"""The journal of blobs committed since the last clean stop: what a power loss may have damaged."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from mirror.oci.digest import Digest
from mirror.oci.errors import DigestInvalid
from mirror.store.files import Files, write_some

_COMPACT_AT = 4096
_KEEP = 1024


class Unsettled:
    """Digests, one a line, each on the disk before its blob becomes visible. All methods block and may be called from
    several threads.

    A file's time cannot tell which blobs are young: a use makes an old one newer. Beyond `_COMPACT_AT` lines that are
    not of suspects the journal keeps the newest `_KEEP`: the older ones have been synced to the disk long since, or
    verified.

    Where several processes write blobs, each has a journal of its own beside the first one's (`<name>.<slot>`). The one
    process that begins before all others reads them all, and tells the others what is suspect: who is started again
    while the machine stayed up has no reason to doubt anything.
    """

    def __init__(self, path: Path, files: Files) -> None:
        self._path = path
        self._files = files
        self._lock = threading.Lock()
        self._suspects: dict[Digest, None] = {}
        self._elsewhere: set[Digest] = set()
        """Suspects that stand in another journal."""
        self._lines = 0
        self._recent: list[Digest] = []
        self.settled: Callable[[Digest], object] = lambda _: None
        """Hears, in whatever thread, of each suspect that is one no more."""

    def load(self, *, gather: bool = False) -> int:
        """Reads what the last processes left; returns how many blobs are to be verified. Raises OSError.

        `gather`: nobody else is at work yet, so that what the journals of others tell can be moved into ours.
        """
        ours, self._lines = self._read(self._path)
        suspects = dict(ours)
        others = [
            self._path.with_name(name) for name, _, _ in self._files.scan(self._path.parent) if self._is_other(name)
        ]
        for path in others:
            suspects |= self._read(path)[0]
        if gather and others:
            try:
                self._rewrite(suspects)
                ours = suspects
                for path in others:
                    self._files.unlink(path)
            except OSError:
                pass  # a full disk: what stands there is read again next time
        self._suspects = suspects
        self._elsewhere = {digest for digest in suspects if digest not in ours}
        return len(self._suspects)

    def resume(self, suspects: Iterable[Digest]) -> bool:
        """Goes on with what an earlier process wrote to this journal, and suspects what it is told to; returns whether
        that is nothing. Raises OSError.
        """
        written, self._lines = self._read(self._path)
        self._suspects = dict.fromkeys(suspects)
        self._elsewhere = {digest for digest in self._suspects if digest not in written}
        self._recent = [digest for digest in written if digest not in self._suspects]
        return not self._suspects

    def __contains__(self, digest: Digest) -> bool:
        """Whether the blob must be verified before it is served."""
        return digest in self._suspects

    @property
    def suspects(self) -> tuple[Digest, ...]:
        """Everything that must be verified."""
        with self._lock:
            return tuple(self._suspects)

    def settle(self, digest: Digest) -> None:
        """The blob has been verified, replaced or removed."""
        with self._lock:
            was_suspect = digest in self._suspects
            self._suspects.pop(digest, None)
            self._elsewhere.discard(digest)
        if was_suspect:
            self.settled(digest)

    def add(self, digest: Digest) -> None:
        """Notes a blob that is about to become visible; on the disk when this returns. Raises OSError."""
        with self._lock:
            self._recent.append(digest)
            if len(self._recent) > _COMPACT_AT:  # a disk that takes no lines must not make the list grow
                self._recent = self._recent[-_KEEP:]
            # In the file, not in memory: else each crash would leave its lines to the next.
            if self._lines - len(self._suspects) + len(self._elsewhere) >= _COMPACT_AT:
                self._recent = self._recent[-_KEEP:]
                self._rewrite([*self._ours, *self._recent])
            else:
                self._append(digest)

    def clear(self) -> None:
        """A clean stop: keeps only what was never verified. Raises OSError."""
        with self._lock:
            self._recent = []
            if ours := self._ours:
                self._rewrite(ours)
            else:
                self._empty()

    @property
    def _ours(self) -> list[Digest]:
        """Suspects that this journal has to keep."""
        return [digest for digest in self._suspects if digest not in self._elsewhere]

    def _is_other(self, name: str) -> bool:
        beside, _, slot = name.rpartition(".")
        return beside == self._path.name and slot.isdigit()

    def _read(self, path: Path) -> tuple[dict[Digest, None], int]:
        """The digests, and how many lines they take."""
        fd = self._files.open(path, os.O_RDONLY | os.O_CREAT)
        try:
            text = self._files.read(fd, max(1, self._files.size(fd)), 0).decode("ascii", "replace")
        finally:
            self._files.close(fd)
        lines = text.replace("\0", "\n").splitlines()  # a power loss may leave zeros in place of the next line
        return dict.fromkeys(_digests(lines)), len(lines)

    def _append(self, digest: Digest) -> None:
        fd = self._files.open(self._path, os.O_WRONLY | os.O_CREAT)
        try:
            # The line begins with its newline: the last one may have been torn, and this must not become part of it.
            self._write(fd, f"\n{digest}".encode(), self._files.size(fd))
        finally:
            self._files.close(fd)
        self._lines += 1

    def _rewrite(self, digests: Collection[Digest]) -> None:
        beside = self._path.with_name(f"{self._path.name}.new")
        fd = self._files.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            self._write(fd, "".join(f"\n{digest}" for digest in digests).encode(), 0)
        finally:
            self._files.close(fd)
        self._files.rename(beside, self._path)
        self._files.fsync_directory(self._path.parent)
        self._lines = len(digests)

    def _empty(self) -> None:
        """In place, which needs no room on a full disk."""
        fd = self._files.open(self._path, os.O_WRONLY | os.O_TRUNC)  # made at the start: else the volume is gone
        try:
            self._files.fsync(fd)
        finally:
            self._files.close(fd)
        self._lines = 0

    def _write(self, fd: int, data: bytes, offset: int) -> None:
        done = 0
        while done < len(data):
            done += write_some(self._files, fd, data[done:], offset + done)
        self._files.fsync(fd)


def _digests(lines: Iterable[str]) -> Iterable[Digest]:
    for line in lines:
        try:
            yield Digest.parse(line)
        except DigestInvalid:
            continue  # the torn last line of a power loss: its blob was not visible yet

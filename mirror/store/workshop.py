"""The directory of spools: which of them are ours, and which an earlier process has left. Everything blocks."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mirror.oci.digest import Digest
from mirror.oci.errors import StorageError
from mirror.store.files import Files, SharedFile, write_some
from mirror.store.part import Part
from mirror.store.spools import Leftover, Spool, origin_of, parse_spool_name, spool_name

_RESUMABLE = 1 << 20
"""Bytes; a shorter leftover spool costs less to fetch again than to keep."""
_PROBE_BYTES = 4096


class Workshop:
    """The files under `path`. Every method may be called from several threads and raises OSError."""

    def __init__(self, path: Path, files: Files, part: Part, share: Callable[[int, int], SharedFile]) -> None:
        self._path = path
        self._files = files
        self._part = part
        self._share = share
        self._ours: set[Path] = set()
        """Those of this process that are neither blobs nor removed yet."""

    def find(self, leftovers: dict[Digest, Leftover], is_held: Callable[[Digest], object]) -> None:
        """Adds to `leftovers` what one before us in our place has left, if it is worth keeping; removes the rest."""
        for name, size, _ in self._files.scan(self._path):
            digest, origin = parse_spool_name(name)
            path = self._path / name
            if path in self._ours or not self._part.owns(origin):
                continue
            if digest is None or size < _RESUMABLE or digest in leftovers or is_held(digest):
                self._files.unlink(path)
            else:
                leftovers[digest] = Leftover(path, size, origin)

    def bytes_of(self, slot: int) -> int:
        """What the spools take that the worker in this slot has written, or will find."""
        part = replace(self._part, slot=slot)
        files = self._files.scan(self._path)
        return sum(size for name, size, _ in files if part.owns(parse_spool_name(name)[1]))

    def create(self, digest: Digest, host: str) -> Spool:
        """A new one for bytes from the upstream `host`. Raises StorageError where another process fetches from it."""
        if not self._part.owns(origin_of(host)):  # who is started again there would take it for a leftover
            raise StorageError(f"another process fetches from {host}")
        path = self._path / spool_name(digest, host)
        fd = self._files.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        self._ours.add(path)
        return Spool(digest, path, self._share(fd, 0), self._files.inode(fd))

    def open(self, name: str) -> SharedFile | None:
        """One that another process writes; None where there is none of this name any more."""
        try:
            return self._share(self._files.open(self._path / Path(name).name, os.O_RDONLY), 0)
        except FileNotFoundError:
            return None

    def take_over(self, digest: Digest, path: Path) -> Spool:
        """A leftover as a spool of ours; it is removed where that fails."""
        fd = self._files.open(path, os.O_RDWR)
        try:
            spool = Spool(digest, path, self._share(fd, 0), self._files.inode(fd))
            self._ours.add(path)
            spool.take_over()
        except BaseException:
            self._ours.discard(path)
            self._files.close(fd)
            self._files.unlink(path)
            raise
        return spool

    def let_go(self, path: Path) -> None:
        """It is a blob now, or a leftover, or gone. Does not block."""
        self._ours.discard(path)

    def probe(self) -> None:
        """Writes, reads and removes a small file."""
        path = self._path / "probe"
        fd = self._files.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            write_some(self._files, fd, bytes(_PROBE_BYTES), 0)
            self._files.fsync(fd)
            self._files.read(fd, _PROBE_BYTES, 0)
        finally:
            self._files.close(fd)
        self._files.unlink(path)

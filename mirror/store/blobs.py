"""Blobs as files named by their digest: a blob exists when its file does. Spools become blobs by one rename."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import structlog

from mirror.oci.digest import Digest
from mirror.oci.errors import StorageError
from mirror.store.checks import Checks
from mirror.store.files import Files, SharedFile, let_go
from mirror.store.opening import Opening
from mirror.store.part import Part
from mirror.store.rests import Rests
from mirror.store.shelves import DIRECTORIES, BlobEntry, Directory, Shelves
from mirror.store.spools import Leftover, Spool, origin_of
from mirror.store.survey import Audience, Guide
from mirror.store.threads import Threads
from mirror.store.unsettled import Unsettled
from mirror.store.uses import Uses
from mirror.store.workshop import Workshop

__all__ = ["BlobEntry", "BlobStore", "Directory", "Leftover", "Spool", "is_full"]

T = TypeVar("T")
_READ_THREADS = 8
_WRITE_THREADS = 8
_SETTLE_THREADS = 4
_TIDY_THREADS = 4
_CHECK_THREADS = 2
_HASH_THREADS = min(8, os.cpu_count() or 1)
_MOST_SUSPECTS = 10_000
"""That may have no blob; looking for more of them is worth the wait at the start."""
_log = structlog.get_logger()


class BlobStore:
    """The blob files under `<root>/blobs` and the spools under `<root>/spool`.

    The coroutines do their file calls in threads, but for those of `Opening` that wait for nothing. They raise
    StorageError where the disk fails, or does not answer for `patience` seconds while a client waits. What the kernel
    has in memory waits for no disk, reading not for writing, writing not for fsync, making room for none of them, and
    hashing for no disk at all. What a use changes (mtime) is noted in memory and written in batches by `flush_uses`:
    serving a blob writes nothing.
    """

    def __init__(
        self,
        root: Path,
        files: Files,
        clock: Callable[[], float] = time.time,
        *,
        patience: float = 10.0,
        part: Part | None = None,
    ) -> None:
        """`part`: what of it is this process's own; None where there is no other one."""
        self.root = root
        self.files = files
        self.leftovers: dict[Digest, Leftover] = {}
        """Spools of an earlier process: resumed when wanted, removed when in the way."""
        self._clock = clock
        self._patience = patience
        self._reading = Threads("disk-read", _READ_THREADS)
        self._writing = Threads("disk-write", _WRITE_THREADS)
        self._settling = Threads("disk-settle", _SETTLE_THREADS)
        self._tidying = Threads("disk-tidy", _TIDY_THREADS)
        self._checking = Threads("disk-check", _CHECK_THREADS)
        self._hashing = Threads("hash", _HASH_THREADS)
        self._opening = Opening(files, self._reading, self._tidying, patience=patience)
        self._part = part or Part()
        self._unsettled = Unsettled(root / f"unsettled{self._part.name}", files)
        self._shelves = Shelves(root, files, self._unsettled, self._opening.share, self._part.ledger)
        self.checks = Checks(self._shelves, self._unsettled, self._checking, self._tidying, patience=patience)
        self._uses = Uses(clock)
        self._workshop = Workshop(root / "spool", files, self._part, self._share)
        self._opened = False

    # Once.

    async def open(self, suspects: Sequence[Digest] | None = None) -> bool:
        """Makes the directories, reads what an unclean stop left. Returns whether the last stop was clean.

        `suspects`: what whoever keeps the store has found in doubt; None where that is us. Raises StorageError where
        the directory cannot be used at all.
        """
        clean = await self._tidying.run(self._open, suspects)
        self._opened = True
        return clean

    async def reopen(self, suspects: Sequence[Digest] | None = None) -> None:
        """As `open`, on a directory that has come back or is a new one; spools under way stay what they are.

        Raises StorageError.
        """
        self.leftovers.clear()
        await self._tidying.run(self._open, suspects)

    async def make_directories(self) -> None:
        """Makes again what somebody removed while we run. Raises StorageError."""
        await self._tidying.run(self._make_directories)

    async def close(self, limit: float = 5.0, *, clean: bool = True) -> None:
        """After the last download: a `clean` stop leaves nothing to be verified. Raises StorageError.

        Waits for what still runs, but not for longer than `limit` seconds: a disk that hangs stops nobody from leaving.
        """
        await self.checks.close()
        await self._opening.close()
        pools = (
            self._opening.pool,
            self._reading,
            self._writing,
            self._settling,
            self._tidying,
            self._checking,
            self._hashing,
        )
        try:
            async with asyncio.timeout(limit):
                await asyncio.gather(*(pool.idle() for pool in pools))
                if self._opened and clean:
                    await self._tidying.run(self._unsettled.clear)
            self._part.ledger.close()
        except TimeoutError:
            raise StorageError("the disk does not answer") from OSError(errno.ETIMEDOUT, "no answer in time")
        finally:
            self._opened = False
            for pool in pools:
                pool.close()

    # What is held.

    @property
    def net(self) -> int:
        """Bytes of blobs that came minus bytes that went since the first process began."""
        return self._part.ledger.net

    async def open_blob(
        self, digest: Digest, beside: Callable[[], Awaitable[object]] | None = None
    ) -> SharedFile | None:
        """The blob's file, or None where it is not held. Its first holder is the caller.

        `beside`: what the caller wants to know if there is none, asked for while the disk is.

        A blob committed shortly before an unclean stop is verified first; where that takes long it counts as not held
        meanwhile.
        """
        if self.checks.is_suspect(digest) and not await self.checks.verified(digest):
            return None
        return await self._opening.open(self._shelves, digest, beside)

    async def remove(self, digest: Digest) -> int:
        """Unlinks a blob; whoever is being sent it still reads on. Returns the bytes it had, 0 if it was gone."""
        return await self._tidying.run(self._shelves.remove, digest)

    async def remove_unused(self, entries: Sequence[BlobEntry]) -> list[int]:
        """Removes blobs that were not used since they were surveyed; returns the bytes of each, 0 where it is spared.

        One that cannot be removed keeps no other from going; raises StorageError where none can.
        """
        return await self._tidying.run(self._remove_unused, entries)

    def touch(self, digest: Digest) -> None:
        """Notes a use now."""
        self._uses.touch(digest)

    @property
    def unflushed(self) -> int:
        """Uses noted and not yet written."""
        return len(self._uses)

    def note_uses(self, uses: Iterable[tuple[Digest, float]]) -> None:
        """Notes what another process has told of, at its moments in seconds since the epoch."""
        self._uses.note(uses)

    def take_uses(self, most: int) -> list[tuple[Digest, float]]:
        """At most so many of the noted uses, for another process to write."""
        return self._uses.take(most)

    async def flush_uses(self) -> None:
        """Writes the noted uses as mtimes; until they are written they stay noted. Raises StorageError."""
        uses = dict(self._uses.times)
        await self._tidying.run(self._shelves.used, uses)
        self._uses.written(uses)

    def directories(self) -> tuple[Directory, ...]:
        """Every directory that may hold blobs."""
        return DIRECTORIES

    async def survey(
        self, directories: Sequence[Directory], audience: Audience, *, hurried: Callable[[], bool] = lambda: False
    ) -> tuple[int, int]:
        """Offers blobs, with their last use, to `audience`, in a thread. Raises StorageError.

        Returns how many there are, and how many bytes they had when the first process began; `net` is on top of that.
        There may be a million: unless `hurried`, it leaves the interpreter to others for most of the time.
        """
        return await self._tidying.run(self._survey, directories, audience, hurried)

    # What is in doubt.

    def when_settled(self, callback: Callable[[Digest], object]) -> None:
        """Has `callback` hear, in whatever thread, of each blob that was in doubt and is no more."""
        self._unsettled.settled = callback

    async def settle(self, digest: Digest) -> None:
        """Another process has verified, replaced or removed the blob."""
        if self.checks.is_suspect(digest):
            await self._tidying.run(self._unsettled.settle, digest)

    # Spools.

    async def create_spool(self, digest: Digest, host: str) -> Spool:
        """A new, empty spool for bytes from the upstream `host`."""
        return await self._writing.run(
            self._workshop.create, digest, host, limit=self._patience, unwanted=self.throw_away
        )

    async def open_spool(self, digest: Digest, name: str, inode: int) -> SharedFile | None:
        """The file that another process writes, or has made the blob meanwhile; None where it is no longer there.

        Raises StorageError.
        """
        return await self._opening.pool.run(
            self._open_spool, digest, name, inode, limit=self._patience, unwanted=let_go
        )

    def has_leftover(self, digest: Digest, host: str) -> bool:
        """Whether an earlier process left a spool of this blob from the upstream `host`."""
        leftover = self.leftovers.get(digest)
        return leftover is not None and leftover.origin == origin_of(host)

    def take_leftover(self, digest: Digest, host: str) -> Leftover | None:
        """What `has_leftover` tells of. From now on it is the caller's, to resume, to discard or to put back."""
        return self.leftovers.pop(digest) if self.has_leftover(digest, host) else None

    async def resume_spool(self, digest: Digest, leftover: Leftover) -> Spool:
        """A leftover as a spool, hashed as far as it goes. Raises StorageError.

        Where hashing it would keep a client waiting it is put back instead, with an error that is none of the disk's.
        """
        try:
            return await self._checking.run(
                self._workshop.take_over,
                digest,
                leftover.path,
                limit=self._patience / 4,
                unwanted=lambda spool: self._give_back(spool, leftover),
            )
        except StorageError as error:
            if isinstance(error.__cause__, TimeoutError):
                raise StorageError("it takes longer to read than a client may wait") from None
            raise

    def put_back(self, digest: Digest, leftover: Leftover) -> None:
        """A leftover that was taken and could not be used this time."""
        self._workshop.let_go(leftover.path)
        self.leftovers.setdefault(digest, leftover)

    async def append(self, spool: Spool, pieces: Sequence[bytes]) -> None:
        """Spool.append in a thread; after an error the spool stays as it is, unless the disk was only full.

        Raises StorageError.
        """
        try:
            # Longer than for a question: on a slow disk many fills wait for each other, and all would be given up.
            await self._writing.run(spool.append, pieces, limit=3 * self._patience, holding=spool.file)
        except StorageError as error:
            if not is_full(error):
                spool.give_up()
            raise

    async def commit(self, spool: Spool) -> None:
        """Makes the spool the blob: on the disk, then visible under its digest. The caller has verified the hash."""
        await self._settling.run(self._shelves.place, spool, holding=spool.file)
        self._workshop.let_go(spool.path)
        if spool.digest in self.leftovers:
            await self.discard_leftover(spool.digest)

    async def discard(self, left: Spool | Leftover) -> None:
        """Removes the spool's file; readers that hold it read on."""
        await self._tidying.run(self.files.unlink, left.path)
        self._workshop.let_go(left.path)

    async def discard_leftover(self, digest: Digest) -> int:
        """Removes a leftover spool; returns the bytes it had."""
        leftover = self.leftovers[digest]
        await self.discard(leftover)
        self.leftovers.pop(digest, None)
        return leftover.size

    @property
    def left_over(self) -> int:
        """Bytes in leftover spools."""
        return sum(leftover.size for leftover in self.leftovers.values())

    async def drop_leftovers(self, need: int) -> int:
        """Removes leftover spools of together `need` bytes, if there are as many; returns what was freed."""
        freed = 0
        for digest in list(self.leftovers):
            if freed < need and digest in self.leftovers:
                freed += await self.discard_leftover(digest)
        return freed

    async def spools_of(self, slot: int) -> int:
        """The bytes of all spools that the worker in this slot has written, or will find."""
        return await self._tidying.run(self._workshop.bytes_of, slot)

    def died(self, slot: int) -> bool:
        """Whether the worker in this slot died while it brought or removed a blob: it may not have been counted."""
        return self._part.ledger.died(slot + 1)

    # The disk, and work for others.

    async def free(self) -> tuple[int, int]:
        """Free and total bytes of the file system."""
        return await self._tidying.run(self.files.free, self.root)

    async def probe(self) -> None:
        """Writes, reads and removes a small file. Raises StorageError while the disk does not work."""
        await self._tidying.run(self._workshop.probe, limit=self._patience)

    async def read(self, file: SharedFile, count: int, offset: int) -> bytes:
        """At most `count` bytes of a file that the caller holds. Raises StorageError."""
        return await self._reading.run(self.files.read, file.fd, count, offset, limit=self._patience, holding=file)

    async def run(self, work: Callable[..., T], *arguments: object, holding: SharedFile | None = None) -> T:
        """Blocking work that reads, on a file that stays open meanwhile. Raises StorageError from an OSError."""
        return await self._reading.run(work, *arguments, holding=holding)

    async def compute(self, work: Callable[..., T], *arguments: object) -> T:
        """Work of the processor alone, off the loop; no disk can hold it up."""
        return await self._hashing.run(work, *arguments)

    # Inside; the plain functions run in threads.

    def _share(self, fd: int, size: int) -> SharedFile:
        return SharedFile(fd, size, self.files, self._tidying.submit)

    def _make_directories(self) -> None:
        for part in ("blobs/sha256", "blobs/sha512", "spool"):
            self.files.mkdir(self.root / part)

    def _open(self, suspects: Sequence[Digest] | None) -> bool:
        self._make_directories()
        self._opening.learn(self.root)
        clean = self._read_journals() if suspects is None else self._unsettled.resume(suspects)
        for made in (self.root / "blobs", self.root):
            self.files.fsync_directory(made)
        self._workshop.find(self.leftovers, self._shelves.size)
        return clean

    def _read_journals(self) -> bool:
        """Whether they are empty, as after a clean stop."""
        unsettled = self._unsettled.load(gather=not self._opened)
        if unsettled > _MOST_SUSPECTS:
            # Of many crashes in a row. Who was evicted before the last one would be suspected for ever.
            for suspect in self._unsettled.suspects:
                if not self._shelves.size(suspect):
                    self._unsettled.settle(suspect)
        return unsettled == 0

    def _remove_unused(self, entries: Sequence[BlobEntry]) -> list[int]:
        removed: list[int] = []
        failure: OSError | None = None
        for entry in entries:
            size = 0
            if self._uses.times.get(entry.digest, 0.0) <= entry.used_at:
                try:
                    size = self._shelves.remove(entry.digest, unless_used_after=entry.used_at)
                except OSError as error:
                    failure = error
            removed.append(size)
        if failure is not None and not any(removed):
            raise failure
        return removed

    def _survey(
        self, directories: Sequence[Directory], audience: Audience, hurried: Callable[[], bool]
    ) -> tuple[int, int]:
        rests = Rests(hurried)
        guide = Guide(audience, self._uses.times, self._shelves.used, self._clock())
        found = [self._shelves.scan(directory, guide, rests) for directory in directories]
        return sum(count for count, _ in found), sum(size for _, size in found)

    def _open_spool(self, digest: Digest, name: str, inode: int) -> SharedFile | None:
        file = self._workshop.open(name) or self._shelves.open(digest)
        if file is not None and self.files.inode(file.fd) != inode:
            self.files.close(file.fd)  # nobody holds it but us
            return None
        return file

    def _give_back(self, spool: Spool, leftover: Leftover) -> None:
        spool.file.release()
        self.put_back(spool.digest, leftover)

    def throw_away(self, spool: Spool) -> None:
        """Lets go of a spool that nobody reads, and has its file removed some time."""
        spool.file.release()
        self._workshop.let_go(spool.path)
        self._tidying.submit(self.files.unlink, spool.path)


def is_full(error: StorageError) -> bool:
    """Whether the disk, or our quota on it, has no room left."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)

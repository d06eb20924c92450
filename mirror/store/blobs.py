"""Blobs as files named by their digest: a blob exists when its file does. Spools become blobs by one rename."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import secrets
import threading
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import structlog

from mirror.oci.digest import Digest
from mirror.oci.errors import DigestInvalid, StorageError
from mirror.store.files import Files, SharedFile
from mirror.store.unsettled import Unsettled

T = TypeVar("T")
Directory = tuple[str, str]
_READ_PIECE = 1 << 20
_RESUMABLE = 1 << 20
"""Bytes; a shorter leftover spool costs less to fetch again than to keep."""
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class BlobEntry:
    """A blob as the scan saw it: its length in bytes and its last use in seconds since the epoch."""

    digest: Digest
    size: int
    used_at: float


@dataclass(frozen=True, slots=True)
class Leftover:
    """A spool of an earlier process; `origin` stands for the upstream host that its `size` bytes came from."""

    path: Path
    size: int
    origin: str


class Spool:
    """A blob being written: an append-only file with a running hash. Its methods block, one call at a time."""

    def __init__(self, digest: Digest, path: Path, file: SharedFile) -> None:
        self.digest = digest
        self.path = path
        self.file = file
        self.hasher = digest.hasher()
        self.written = 0

    def append(self, pieces: Sequence[bytes]) -> None:
        """Writes and hashes `pieces`. Raises OSError; then `written` still tells what is whole and hashed."""
        for piece in pieces:
            view = memoryview(piece)
            done = 0
            while done < len(view):
                done += self.file.files.write(self.file.fd, view[done:], self.written + done)
            self.hasher.update(piece)
            self.written += len(piece)

    def take_over(self) -> None:
        """Hashes what an earlier process left in the file. Raises OSError."""
        for piece in read_pieces(self.file):
            self.hasher.update(piece)
            self.written += len(piece)

    def read_all(self) -> bytes:
        """Everything written so far; only for small blobs."""
        return b"".join(read_pieces(self.file))


class BlobStore:
    """The blob files under `<root>/blobs` and the spools under `<root>/spool`.

    The coroutines run their file calls in a pool of their own and raise StorageError where the disk fails. What a use
    changes (mtime) is noted in memory and written in batches by `flush_uses`: serving a blob writes nothing.
    """

    def __init__(
        self, root: Path, files: Files, pool: ThreadPoolExecutor, clock: Callable[[], float] = time.time
    ) -> None:
        self.root = root
        self.files = files
        self.moves: dict[Directory, int] = defaultdict(int)
        """Commits and removals so far by directory, so that a scan notices what moved under it."""
        self.balance: dict[Directory, int] = defaultdict(int)
        """Bytes that came minus bytes that went since this process began, by directory."""
        self.net = 0
        """The sum of `balance`."""
        self.leftovers: dict[Digest, Leftover] = {}
        """Spools of an earlier process: resumed when wanted, removed when in the way."""
        self._pool = pool
        self._clock = clock
        self._uses: dict[Digest, float] = {}
        self._moving = threading.Lock()
        self._unsettled = Unsettled(root / "unsettled", files)

    # Once, before serving; these block.

    def open(self) -> bool:
        """Makes the directories, reads what an unclean stop left. Returns whether the last stop was clean.

        Raises OSError where the directory cannot be used at all.
        """
        for part in ("blobs/sha256", "blobs/sha512", "spool"):
            self.files.mkdir(self.root / part)
        unsettled = self._unsettled.load()
        for name, size, _ in self.files.scan(self.root / "spool"):
            digest, origin = _parse_spool_name(name)
            path = self.root / "spool" / name
            if digest is None or size < _RESUMABLE or digest in self.leftovers:
                self.files.unlink(path)
            else:
                self.leftovers[digest] = Leftover(path, size, origin)
        return unsettled == 0

    def close(self) -> None:
        """After the last commit: a clean stop leaves nothing to be verified."""
        self._unsettled.clear()

    # What is held.

    async def open_blob(self, digest: Digest) -> SharedFile | None:
        """The blob's file, or None where it is not held. Its first holder is the caller.

        A blob committed shortly before an unclean stop is hashed first, and removed if its bytes are wrong.
        """
        return await self._run_to_end(self._open_blob, digest, let_go=_let_go)

    async def remove(self, digest: Digest, *, unless_used_after: float | None = None) -> int:
        """Unlinks a blob; whoever is being sent it still reads on. Returns the bytes it had.

        0 if it was gone, or is spared since it was used after that moment (seconds since the epoch).
        """
        if unless_used_after is not None and self._uses.get(digest, 0.0) > unless_used_after:
            return 0
        return await self._run(self._remove, digest, unless_used_after)

    def touch(self, digest: Digest) -> None:
        """Notes a use now."""
        self._uses[digest] = self._clock()

    def as_used(self, entry: BlobEntry) -> BlobEntry:
        """The entry with the later of its file's time and the use noted in memory."""
        noted = self._uses.get(entry.digest, 0.0)
        return entry if noted <= entry.used_at else replace(entry, used_at=noted)

    @property
    def unflushed(self) -> int:
        """Uses noted since the last flush."""
        return len(self._uses)

    async def flush_uses(self) -> None:
        """Writes the noted uses as mtimes."""
        uses, self._uses = self._uses, {}
        await self._run(self._write_uses, uses)

    # Spools.

    async def create_spool(self, digest: Digest, host: str) -> Spool:
        """A new, empty spool of a blob that comes from the upstream `host`."""
        return await self._run_to_end(self._create_spool, digest, host, let_go=self._forget)

    def has_leftover(self, digest: Digest, host: str) -> bool:
        """Whether an earlier process left a spool of this blob from the upstream `host`."""
        leftover = self.leftovers.get(digest)
        return leftover is not None and leftover.origin == _origin(host)

    def take_leftover(self, digest: Digest, host: str) -> Leftover | None:
        """What `has_leftover` tells of. From now on it is the caller's, to resume or to discard."""
        return self.leftovers.pop(digest) if self.has_leftover(digest, host) else None

    async def resume_spool(self, digest: Digest, leftover: Leftover) -> Spool:
        """A leftover as a spool, hashed as far as it goes. Raises StorageError."""
        return await self._run_to_end(self._resume_spool, digest, leftover.path, let_go=_close)

    def put_back(self, digest: Digest, leftover: Leftover) -> None:
        """A leftover that was taken and could not be used this time."""
        self.leftovers.setdefault(digest, leftover)

    async def append(self, spool: Spool, pieces: Sequence[bytes]) -> None:
        """Spool.append in the pool."""
        await self._run_to_end(spool.append, pieces)

    async def commit(self, spool: Spool) -> None:
        """Makes the spool the blob: on the disk, then visible under its digest. The caller has verified the hash."""
        await self._run_to_end(self._commit, spool)

    async def discard(self, left: Spool | Leftover) -> None:
        """Removes the spool's file; readers that hold it read on."""
        await self._run_to_end(self.files.unlink, left.path)

    async def discard_leftover(self, digest: Digest) -> int:
        """Removes a leftover spool; returns the bytes it had."""
        leftover = self.leftovers.pop(digest)
        await self.discard(leftover)
        return leftover.size

    # Scanning.

    def directories(self) -> list[Directory]:
        """Every directory that may hold blobs, as (algorithm, first two hex digits)."""
        return [(algorithm, f"{prefix:02x}") for algorithm in ("sha256", "sha512") for prefix in range(256)]

    async def scan(self, directory: Directory) -> list[BlobEntry]:
        """The blobs in one directory."""
        return await self._run(self._scan, directory)

    async def free(self) -> tuple[int, int]:
        """Free and total bytes of the file system."""
        return await self._run(self.files.free, self.root)

    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        """Runs a blocking call of `files` in the pool. Raises StorageError from an OSError."""
        return await self._run(work, *arguments)

    def share(self, fd: int, size: int) -> SharedFile:
        """A descriptor as a file whose last holder closes it in the pool."""
        return SharedFile(fd, size, self.files, self._pool)

    # In the pool's threads.

    async def _run(self, work: Callable[..., T], *arguments: object) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)
        except OSError as error:
            raise _failed(error) from error

    async def _run_to_end(
        self, work: Callable[..., T], *arguments: object, let_go: Callable[[T], Awaitable[None]] | None = None
    ) -> T:
        """As _run; whoever is cancelled meanwhile waits for the thread first, so that nothing is torn from its hands.

        What the work has then acquired for nobody, `let_go` takes back.
        """
        step = asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)
        interruption: asyncio.CancelledError | None = None
        while not step.done():
            try:
                await asyncio.wait([step])
            except asyncio.CancelledError as error:
                interruption = error
        try:
            result = step.result()
            if interruption is not None and let_go is not None:
                await let_go(result)
        except OSError as error:
            if interruption is None:
                raise _failed(error) from error
        if interruption is not None:
            raise interruption
        return result

    async def _forget(self, spool: Spool) -> None:
        spool.file.release()
        try:
            await self.discard(spool)
        except StorageError:
            pass  # removed at the next start

    def _path(self, digest: Digest) -> Path:
        return self.root / "blobs" / digest.algorithm / digest.hex[:2] / digest.hex

    def _open_blob(self, digest: Digest) -> SharedFile | None:
        try:
            fd = self.files.open(self._path(digest), os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            file = self.share(fd, self.files.size(fd))
            if digest not in self._unsettled or self._verify(digest, file):
                return file
        except BaseException:
            self.files.close(fd)
            raise
        self.files.close(fd)
        return None

    def _verify(self, digest: Digest, file: SharedFile) -> bool:
        hasher = digest.hasher()
        for piece in read_pieces(file):
            hasher.update(piece)
        if hasher.hexdigest() == digest.hex:
            self._unsettled.settle(digest)
            return True
        _log.warning("a blob did not survive the last stop; it is fetched again when wanted", digest=str(digest))
        self._remove(digest)
        self._unsettled.settle(digest)
        return False

    def _remove(self, digest: Digest, unless_used_after: float | None = None) -> int:
        path = self._path(digest)
        try:
            status = self.files.stat(path)
        except FileNotFoundError:
            return 0
        if unless_used_after is not None and status.st_mtime > unless_used_after:
            return 0
        self.files.unlink(path)
        self._moved(digest, -status.st_size)
        return status.st_size

    def _moved(self, digest: Digest, size: int) -> None:
        directory = (digest.algorithm, digest.hex[:2])
        with self._moving:
            self.moves[directory] += 1
            self.balance[directory] += size
            self.net += size

    def _write_uses(self, uses: dict[Digest, float]) -> None:
        for digest, used_at in uses.items():
            try:
                self.files.utime(self._path(digest), used_at)
            except FileNotFoundError:
                continue

    def _create_spool(self, digest: Digest, host: str) -> Spool:
        name = f"{digest.algorithm}-{digest.hex}.{_origin(host)}.{secrets.token_hex(4)}"
        path = self.root / "spool" / name
        fd = self.files.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        return Spool(digest, path, self.share(fd, 0))

    def _resume_spool(self, digest: Digest, path: Path) -> Spool:
        fd = self.files.open(path, os.O_RDWR)
        try:
            spool = Spool(digest, path, self.share(fd, 0))
            spool.take_over()
        except BaseException:
            self.files.close(fd)
            raise
        return spool

    def _commit(self, spool: Spool) -> None:
        path = self._path(spool.digest)
        if not path.parent.is_dir():
            self.files.mkdir(path.parent)
            self.files.fsync_directory(path.parent.parent)
        self.files.fsync(spool.file.fd)
        self._unsettled.add(spool.digest)
        self._remove(spool.digest)  # one that we could not read; no reader loses it, names are not files
        self.files.rename(spool.path, path)
        self._moved(spool.digest, spool.written)
        self.files.fsync_directory(path.parent)

    def _scan(self, directory: Directory) -> list[BlobEntry]:
        algorithm, prefix = directory
        entries = []
        for name, size, used_at in self.files.scan(self.root / "blobs" / algorithm / prefix):
            try:
                entries.append(BlobEntry(Digest.parse(f"{algorithm}:{name}"), size, used_at))
            except DigestInvalid:
                continue  # not ours; never touched
        return entries


def _failed(error: OSError) -> StorageError:
    return StorageError(f"the disk failed: {error.strerror or error}")


async def _close(spool: Spool) -> None:
    spool.file.release()


async def _let_go(file: SharedFile | None) -> None:
    if file is not None:
        file.release()


def read_pieces(file: SharedFile) -> Iterator[bytes]:
    """The file's bytes from its start, in pieces. Blocks. Raises OSError."""
    offset = 0
    while piece := file.files.read(file.fd, _READ_PIECE, offset):
        offset += len(piece)
        yield piece


def is_full(error: StorageError) -> bool:
    """Whether the disk, or our quota on it, has no room left."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)


def _origin(host: str) -> str:
    """A short name for an upstream host that fits into a file name; only its equality matters."""
    return hashlib.sha256(host.encode()).hexdigest()[:16]


def _parse_spool_name(name: str) -> tuple[Digest | None, str]:
    encoded, _, rest = name.partition(".")
    algorithm, _, hex_digits = encoded.partition("-")
    try:
        return Digest.parse(f"{algorithm}:{hex_digits}"), rest.partition(".")[0]
    except DigestInvalid:
        return None, ""

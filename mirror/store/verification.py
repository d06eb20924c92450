"""Compares every blob file with its name, at once and from outside: it takes no lock, a server may be at work."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from mirror.oci.digest import Digest
from mirror.store.files import Files
from mirror.store.inspection import Inspection
from mirror.store.shelves import DIRECTORIES, digest_of

_SHOW_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be: which file, how many bytes it has, and what is the matter with it.

    `harmless`: it is no blob of ours, and left alone.
    """

    name: str
    size: int
    what: str
    harmless: bool = False


class Verification:
    """One look at all blobs under `root`, `jobs` of them at a time; those of other bytes are unlinked.

    A server on the same data fetches what it misses again, when it is wanted. One that replaces a blob in the very
    moment in which its bad file is unlinked may lose the good one: that costs the same fetch.
    """

    def __init__(self, root: Path, *, jobs: int, files: Files | None = None) -> None:
        self.blobs = 0
        """Blobs compared so far."""
        self._top = root / "blobs"
        self._jobs = jobs
        self._files = files or Files()
        self._read = 0
        self._counting = threading.Lock()
        self._stopped = threading.Event()

    @property
    def read(self) -> int:
        """Bytes read so far."""
        with self._counting:
            return self._read

    def stop(self) -> None:
        """Ends what runs, soon. What was not read to its end is not judged. Safe in a handler of signals."""
        self._stopped.set()

    def is_stopped(self) -> bool:
        """Whether it was told to end before its time."""
        return self._stopped.is_set()

    def survey(self) -> tuple[int, int]:
        """How many blobs there are, and their bytes. Raises OSError where there is nothing that we may look at."""
        self._files.close(self._files.open(self._top, os.O_RDONLY | os.O_DIRECTORY))
        count = total = 0
        for item in self._items():
            if not isinstance(item, Finding):
                count, total = count + 1, total + item[1]
        return count, total

    def run(self, found: Callable[[Finding], None], progressed: Callable[[], None]) -> None:
        """Compares them all; calls `found` for what is not right, and `progressed` a few times a second.

        Where that raises no more is read.
        """
        with ThreadPoolExecutor(self._jobs, thread_name_prefix="verify") as pool:
            try:
                under_way: set[Future[Finding | None]] = set()
                for item in self._items():
                    if isinstance(item, Finding):
                        found(item)
                        continue
                    under_way.add(pool.submit(self._compare, *item))
                    while len(under_way) >= 2 * self._jobs:
                        under_way = _collect(under_way, found, progressed)
                while under_way:
                    under_way = _collect(under_way, found, progressed)
            except BaseException:
                self.stop()
                pool.shutdown(cancel_futures=True)
                raise

    def _items(self) -> Iterator[tuple[Digest, int] | Finding]:
        """Every blob with the size of its file, and whatever else lies there."""
        for directory in DIRECTORIES:
            path = self._top.joinpath(*directory)
            try:
                for name, size, _ in self._files.scan(path):
                    if self._stopped.is_set():
                        return
                    digest = digest_of(directory, name)
                    if digest is None:
                        yield Finding(str(path / name), size, "not a blob, left alone", harmless=True)
                    else:
                        yield digest, size
            except OSError as error:
                yield Finding(str(path), 0, f"cannot be read: {error.strerror}")

    def _compare(self, digest: Digest, size: int) -> Finding | None:
        """What is the matter with a blob, in a thread."""
        path = self._top / digest.algorithm / digest.hex[:2] / digest.hex
        try:
            fd = self._files.open(path, os.O_RDONLY)
            try:
                intact = self._matches(digest, fd)
                if intact or not self._files.is_at(fd, path):
                    return None
                size = self._files.size(fd)
            finally:
                self._files.close(fd)
        except FileNotFoundError:
            return None  # evicted since it was listed
        except OSError as error:
            return Finding(str(digest), size, f"cannot be read: {error.strerror}")
        try:
            self._files.unlink(path)
        except OSError as error:
            return Finding(str(digest), size, f"wrong bytes, and cannot be removed: {error.strerror}")
        return Finding(str(digest), size, "wrong bytes, removed")

    def _matches(self, digest: Digest, fd: int) -> bool:
        """Whether the bytes are right, or nobody wants to know any more."""
        inspection = Inspection(digest, self._files, fd)
        while count := inspection.step():
            with self._counting:
                self._read += count
            if self._stopped.is_set():
                return True
        with self._counting:
            self.blobs += 1
        return inspection.intact


def _collect(
    under_way: set[Future[Finding | None]], found: Callable[[Finding], None], progressed: Callable[[], None]
) -> set[Future[Finding | None]]:
    """Waits a moment for some of them; returns those that still run."""
    done, left = wait(under_way, _SHOW_SECONDS, FIRST_COMPLETED)
    for future in done:
        finding = future.result()
        if finding is not None:
            found(finding)
    progressed()
    return left

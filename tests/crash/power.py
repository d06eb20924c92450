"""A disk whose power can be cut: it knows what of it was never synced, and makes copies that have lost some of that."""

from __future__ import annotations

import itertools
import os
import random
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from mirror.store.files import Files

_PAGE = 4096


class _File:
    """One file, whatever it is called: what was synced of it, and where it has been."""

    def __init__(self, durable: bytes, place: Path | None) -> None:
        self.durable = durable
        """Its bytes when they were last synced."""
        self.left: bytes | None = None
        """Its last bytes, once it has no name."""
        self.places: list[tuple[int, Path | None]] = [(0, place)]
        """Where it was since which change of the disk; None for nowhere."""
        self.sure = 0
        """From which of the places on nobody knows where it is after a power loss."""

    def move(self, number: int, place: Path | None) -> None:
        self.places.append((number, place))

    def sync_name(self, directory: Path) -> None:
        """The directory was synced: what was changed there has happened."""
        for index in range(self.sure + 1, len(self.places)):
            place = self.places[index][1] or self.places[index - 1][1]
            if place is not None and place.parent == directory:
                self.sure = index


class PowerFiles(Files):
    """The real disk. Call `cut_at` before a workload, and `cut` at its end if the moment has not come by then.

    Of what was not synced a power loss leaves anything: bytes that are old or new, or zero where nothing was synced,
    page by page, in files of any length between; names that have come, gone or changed, in order or not. SQLite syncs
    its files itself: of its log any part may be lost, as after a checkpoint.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._files: dict[Path, _File] = {}
        self._nameless: list[_File] = []
        self._unsure_directories: set[Path] = set()
        self._open: dict[int, _File] = {}
        self._lock = threading.RLock()
        self._changes = itertools.count(1)
        self._left = 0
        self._cut: Callable[[], None] | None = None

    def cut_at(self, change: int, target: Path, choice: random.Random) -> None:
        """The `change`th call from now on that changes the disk is the last one that a copy at `target` has seen."""
        with self._lock:
            self._left = change
            self._cut = lambda: self._copy(target, choice)

    def cut(self) -> None:
        """Now, unless it has happened."""
        with self._lock:
            cut, self._cut = self._cut, None
            if cut is not None:
                cut()

    # Calls that change the disk, one at a time.

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        with self._lock:
            found = path.read_bytes() if path.is_file() else None
            fd = super().open(path, flags, mode)
            if path.is_dir():
                return fd
            if path not in self._files:
                self._files[path] = _File(found or b"", None if found is None else path)
            if found is None:
                self._files[path].move(next(self._changes), path)
            self._open[fd] = self._files[path]
            if found is None or flags & os.O_TRUNC:
                self._changed()
            return fd

    def close(self, fd: int) -> None:
        with self._lock:
            self._open.pop(fd, None)
            super().close(fd)

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        with self._lock:
            done = super().write(fd, data, offset)
            self._changed()
            return done

    def fsync(self, fd: int) -> None:
        with self._lock:
            super().fsync(fd)
            if fd in self._open:
                self._open[fd].durable = Path(f"/proc/self/fd/{fd}").read_bytes()
                self._changed()

    def fsync_directory(self, path: Path) -> None:
        with self._lock:
            super().fsync_directory(path)
            for file in [*self._files.values(), *self._nameless]:
                file.sync_name(path)
            self._unsure_directories = {made for made in self._unsure_directories if made.parent != path}
            self._changed()

    def rename(self, source: Path, target: Path) -> None:
        with self._lock:
            number = next(self._changes)
            self._lose_name(target, number)
            super().rename(source, target)
            moved = self._files[target] = self._files.pop(source)
            moved.move(number, target)
            self._changed()

    def unlink(self, path: Path) -> None:
        with self._lock:
            self._lose_name(path, next(self._changes))
            super().unlink(path)
            self._changed()

    def mkdir(self, path: Path) -> None:
        with self._lock:
            made = [each for each in (path, *path.parents) if not each.exists()]
            super().mkdir(path)
            self._unsure_directories.update(each for each in made if each.is_relative_to(self._root))
            self._changed()

    def _lose_name(self, path: Path, number: int) -> None:
        file = self._files.pop(path, None)
        if file is not None:
            file.left = path.read_bytes()
            file.move(number, None)
            self._nameless.append(file)

    def _changed(self) -> None:
        self._left -= 1
        if self._left == 0:
            self.cut()

    # What is left of it.

    def _copy(self, target: Path, choice: random.Random) -> None:
        lost = {made for made in self._unsure_directories if choice.random() < 0.5}
        in_order = choice.random() < 0.5
        last = choice.randint(0, next(self._changes))
        found: dict[Path, tuple[int, bytes]] = {}
        for path, file in [*self._files.items(), *((Path(), file) for file in self._nameless)]:
            current = file.left if file.left is not None else path.read_bytes()
            index = _last_before(file, last) if in_order else choice.randint(file.sure, len(file.places) - 1)
            since, place = file.places[index]
            if place is None or found.get(place, (-1, b""))[0] > since or lost.intersection(place.parents):
                continue
            found[place] = (since, mutilated(file.durable, current, choice))
        for place, (_, content) in found.items():
            copy = target / place.relative_to(self._root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(content)
        _copy_records(self._root / "records", target / "records")


def _last_before(file: _File, change: int) -> int:
    """Where it is after a power loss that kept all changes of names up to one, and those that were synced."""
    return max(file.sure, *(index for index, (number, _) in enumerate(file.places) if number <= change))


def mutilated(durable: bytes, current: bytes, choice: random.Random) -> bytes:
    """What a power loss leaves of a file: each page as it was synced (empty where it never was), or as it was last."""
    if durable == current:
        return current
    kept = choice.choice([0.0, 0.5, 0.9, 1.0])
    length = choice.choice([len(current), choice.randint(*sorted((len(durable), len(current))))])
    pages = []
    for start in range(0, length, _PAGE):
        end = min(start + _PAGE, length)
        old, new = durable[start:end], current[start:end]
        page = new if choice.random() < kept else old
        pages.append(page.ljust(end - start, b"\0"))
    return b"".join(pages)


def _copy_records(source: Path, target: Path) -> None:
    """SQLite's files as they are at one moment."""
    if not (source / "cache.db").exists():
        return
    target.mkdir()
    with closing(sqlite3.connect(source / "cache.db", isolation_level=None, timeout=10)) as database:
        database.execute("BEGIN IMMEDIATE")  # nobody writes meanwhile
        for name in ("cache.db-wal", "cache.db"):
            (target / name).write_bytes((source / name).read_bytes() if (source / name).exists() else b"")
        database.execute("ROLLBACK")

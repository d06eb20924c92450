"""The files of the records' database: opened where they are sound, put aside where not. All of it runs in threads."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from mirror.store import database
from mirror.store.database import SCHEMA
from mirror.store.part import Part

_STEP = 2000
"""Records dropped at a time: the writer's other work must not wait for long."""
_log = structlog.get_logger()


class Binding:
    """What is on the disk of the records in the directory `path`. Everything raises OSError where the disk does.

    A mark is there while the database has not heard of a deletion: whoever finds it after a kill believes nothing here.
    """

    def __init__(self, path: Path, part: Part, check_home: Callable[[], None]) -> None:
        """`check_home` raises OSError while the directory around `path` is not ours: nothing is made in it then."""
        self.database = path / database.FILES[0]
        self._path = path
        self._part = part
        self._check_home = check_home
        self._aside = path.with_name(f"{path.name}.aside")
        self._files = [path / name for name in database.FILES]
        self._opened: dict[Path, os.stat_result] = {}
        """The database, its log and the log's index, as they were opened."""
        self._mark = path.with_name(f"{path.name}.outdated{part.name}")
        self._looked = False

    def open(self, damage: str | None, *, marked: bool) -> tuple[Any, bool]:
        """The database, and whether it is a new one in the place of one that cannot be used, for `damage` or another
        reason. `marked`: whether its mark is ours and means nothing new.
        """
        self._check_home()
        with self._part.ledger.alone():
            return self._open_in_turn(damage, marked=marked)

    def missing(self) -> list[Path]:
        """What is not the file any more that was opened."""
        return [path for path, opened in self._opened.items() if not _is_same(path, opened)]

    def set_mark(self, wanted: bool) -> None:
        """Has the mark be there, also after a power loss, or not."""
        if not wanted:
            self._mark.unlink(missing_ok=True)
            return
        self._check_home()
        self._mark.touch(mode=0o600)
        directory = os.open(self._mark.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def unlink(self) -> None:
        """Removes the database."""
        self._check_home()
        for path in self._files:
            path.unlink(missing_ok=True)

    def measure(self) -> tuple[int, int]:
        """Bytes of everything, and those of them that a newer version left."""
        kept = sum(map(_size, self._path.parent.glob(f"{self._path.name}.schema-*/*")))
        return sum(map(_size, [*self._path.rglob("*"), *self._aside.rglob("*")])) + kept, kept

    def drop_some(self, cache: Any) -> int:
        """Makes it all smaller: what was put aside goes, or some records near their expiry. 0: there is nothing."""
        if self._aside.exists():
            shutil.rmtree(self._aside)
            return 1
        dropped = database.drop_until(cache, math.inf, max(1, min(_STEP, database.count(cache) // 16)))
        database.empty_log(cache)
        return dropped

    def _open_in_turn(self, damage: str | None, *, marked: bool) -> tuple[Any, bool]:
        aside = self._aside
        if damage is not None and self.database in self.missing():
            damage = None  # another process has moved it aside already
        if damage is None and not marked and self._marks():
            damage = "a process was killed before they had heard of all deletions"
        if damage is None:
            try:
                cache = self._open_there()
                schema = database.schema(cache)
                if schema == SCHEMA:
                    self._looked = True
                    return cache, False
                cache.close()
                damage = f"written by {'a newer' if schema > SCHEMA else 'an older'} version (schema {schema})"
                if schema > SCHEMA:
                    aside = self._path.with_name(f"{self._path.name}.schema-{schema}")
            except Exception as error:
                if not database.is_damage(error):
                    raise
                damage = str(error)
        self._move_to(aside, damage)
        cache = self._open_there()
        database.schema(cache)
        for mark in self._marks():
            mark.unlink(missing_ok=True)
        self._looked = True
        return cache, True

    def _marks(self) -> list[Path]:
        """Those that processes have left that were killed: while others are at work theirs is their own business."""
        if self._part.keeps and not self._looked:
            return list(self._path.parent.glob(f"{self._path.name}.outdated*"))
        return [self._mark] if self._mark.exists() else []

    def _open_there(self) -> Any:
        cache = database.open_in(self._path)
        self._opened = {path: path.stat() for path in self._files if path.exists()}
        return cache

    def _move_to(self, aside: Path, reason: str) -> None:
        shutil.rmtree(aside, ignore_errors=True)
        if self._path.exists():
            self._path.rename(aside)
        _log.error("records moved aside; names are asked again", reason=reason, aside=str(aside))


def _is_same(path: Path, opened: os.stat_result) -> bool:
    try:
        return os.path.samestat(path.stat(), opened)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0

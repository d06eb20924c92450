"""Named records by exact key, persistent; the only module that knows diskcache."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import diskcache
import msgspec
import structlog

from mirror.oci.errors import StorageError
from mirror.store.trouble import Trouble

T = TypeVar("T")
Key = tuple[str, ...]

SCHEMA = 1
"""Raised when a record's shape changes; records of another schema are moved aside, their content is asked again."""

_BROKEN = (sqlite3.DatabaseError, diskcache.Timeout, OSError, StorageError)
_LOCK_SECONDS = 5.0
_log = structlog.get_logger()


class _PlainDisk(diskcache.Disk):  # type: ignore[misc]  # diskcache has no types
    """Stores text and bytes and refuses to unpickle: a planted row must not run code (CVE-2025-69872)."""

    def put(self, key: object) -> tuple[Any, bool]:
        if type(key) is not str:
            raise StorageError(f"a record's key is text, not {type(key).__name__}")
        return key, True

    def get(self, key: object, raw: object) -> object:
        if not raw or type(key) is not str:
            raise StorageError("a record's key is not plain text")
        return key

    def store(self, value: object, read: bool, key: object = diskcache.UNKNOWN) -> tuple[Any, ...]:
        if type(value) is not bytes or read:
            raise StorageError(f"a record's value is bytes, not {type(value).__name__}")
        stored: tuple[Any, ...] = super().store(value, read, key=key)
        return stored

    def fetch(self, mode: int, filename: str | None, value: object, read: bool) -> object:
        if mode not in (diskcache.core.MODE_RAW, diskcache.core.MODE_BINARY):
            raise StorageError(f"a record is stored in mode {mode}, which is never written here")
        return super().fetch(mode, filename, value, read)


class Records:
    """A book of small values by key. Each call runs in the one reader or the one writer thread, never on the loop.

    A failing disk is no error here: a read finds nothing, a write is lost and noted in `trouble`, and whatever was
    written is asked from its upstream again. A database that cannot be read is moved aside and begun anew.
    """

    def __init__(self, path: Path, trouble: Trouble) -> None:
        self._path = path
        self._trouble = trouble
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="records-read")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="records-write")
        self._cache: Any = None

    def open(self) -> None:
        """Opens or makes the database. Blocks; called once, before serving. Raises nothing."""
        try:
            self._cache = self._writer.submit(self._open_checked).result()
        except _BROKEN as error:
            self._trouble.note("records", error)

    async def get(self, key: Key) -> bytes | None:
        """The value of `key`, or None."""
        value = await self._call(self._reader, lambda cache: cache.get(encode_key(key)), None)
        return value if isinstance(value, bytes) else None

    async def set(self, key: Key, value: bytes, useful_for: float) -> None:
        """Writes `value`; after `useful_for` seconds it is gone for `get`."""
        await self._call(self._writer, lambda cache: cache.set(encode_key(key), value, expire=useful_for), False)

    async def delete(self, key: Key) -> None:
        """Removes `key`, if it is there."""
        await self._call(self._writer, lambda cache: cache.delete(encode_key(key)), False)

    async def volume(self) -> int:
        """Bytes on the disk: database, write-ahead log and values in files."""
        return await self._call(self._reader, self._volume, 0)

    async def expire(self, within: float = 0) -> int:
        """Drops what expires in the next `within` seconds (0: what has expired); returns how many records went."""
        removed = await self._call(self._writer, lambda cache: cache.expire(now=time.time() + within), 0)
        return int(removed)

    async def count(self) -> int:
        """How many records there are, expired ones included."""
        return int(await self._call(self._reader, len, 0))

    async def close(self) -> None:
        """Writes out what the log holds and ends both threads."""
        for pool in (self._reader, self._writer):
            await self._call(pool, lambda cache: cache.close(), None)
            pool.shutdown(wait=False)

    async def _call(self, pool: ThreadPoolExecutor, work: Callable[[Any], T], otherwise: T) -> T:
        cache = self._cache
        if cache is None:
            return otherwise
        try:
            result = await asyncio.get_running_loop().run_in_executor(pool, work, cache)
        except _BROKEN as error:
            self._trouble.note("records", error)
            if _is_damage(error):
                await self._begin_anew(cache, error)
            return otherwise
        if pool is self._writer:
            self._trouble.clear("records")
        return result

    async def _begin_anew(self, damaged: Any, error: Exception) -> None:
        """Replaces a database that turned out damaged, once, whoever met it first."""
        if self._cache is damaged:
            self._cache = None
            await asyncio.get_running_loop().run_in_executor(self._writer, self._replace, str(error))

    def _replace(self, reason: str) -> None:
        try:
            self._move_aside(f"damaged records ({reason})")
            self._cache = self._open_at(self._path)
            _schema(self._cache)
        except _BROKEN as error:
            self._trouble.note("records", error)

    def _open_checked(self) -> Any:
        try:
            cache = self._open_at(self._path)
            if _schema(cache) == SCHEMA:
                return cache
            cache.close()
            reason = "records of another schema"
        except (sqlite3.DatabaseError, StorageError) as error:
            reason = f"unreadable records ({error})"
        self._move_aside(reason)
        cache = self._open_at(self._path)
        _schema(cache)
        return cache

    def _move_aside(self, reason: str) -> None:
        aside = self._path.with_name(f"{self._path.name}.aside")
        shutil.rmtree(aside, ignore_errors=True)
        self._path.rename(aside)
        _log.error("records moved aside; names are asked again", reason=reason, aside=str(aside))

    def _open_at(self, path: Path) -> Any:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return diskcache.Cache(
            str(path),
            timeout=_LOCK_SECONDS,
            disk=_PlainDisk,
            # Its own eviction is no bound, and would drop what it was just given; ours is in `upkeep`.
            eviction_policy="none",
            cull_limit=0,
            size_limit=1 << 62,
            sqlite_wal_autocheckpoint=256,
            sqlite_journal_size_limit=1 << 20,
        )

    def _volume(self, cache: Any) -> int:
        log = self._path / "cache.db-wal"
        return int(cache.volume()) + (log.stat().st_size if log.exists() else 0)


def encode_key(key: Key) -> str:
    """One text per key, injective: JSON quotes whatever could be mistaken for a separator."""
    return msgspec.json.encode(key).decode()


def _schema(cache: Any) -> int:
    """The schema version that stands in the database; written where there is none."""
    key = encode_key(("schema",))
    stored = cache.get(key)
    if stored is None:
        cache.set(key, str(SCHEMA).encode())
        return SCHEMA
    return int(stored) if stored.isdigit() else 0


def _is_damage(error: Exception) -> bool:
    """Whether the database itself is at fault, and not the disk below it or a lock."""
    if isinstance(error, sqlite3.OperationalError):
        return "no such table" in str(error)
    return isinstance(error, (sqlite3.DatabaseError, StorageError))

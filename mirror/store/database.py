"""The database of the records: opened, asked, its errors told apart; the only module that knows diskcache."""

from __future__ import annotations

import math
import sqlite3
from pathlib import Path
from typing import Any

import diskcache
import msgspec

from mirror.oci.errors import StorageError

Key = tuple[str, ...]

SCHEMA = 2
"""Raised when a record's shape changes; records of another schema are moved aside, their content is asked again.

Those of a newer one are kept, for somebody to put back by hand: what was refused meanwhile would count again. Those of
an older one are of use to nobody.
"""

FILES = tuple(f"{diskcache.core.DBNAME}{part}" for part in ("", "-wal", "-shm"))
"""The database, its log and the log's index."""
ERRORS = (OSError, sqlite3.Error, diskcache.Timeout)
"""What a call raises where the disk, a lock or damage is in its way."""

_LOCK_SECONDS = 1.0
"""How long a call waits for somebody else's lock on the database."""
_LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT)


class _PlainDisk(diskcache.Disk):  # type: ignore[misc]  # diskcache has no types
    """Stores text and bytes, in the database alone, and refuses all else.

    A planted row must neither run code by being unpickled (CVE-2025-69872) nor name a file to be read.
    """

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
        return 0, diskcache.core.MODE_RAW, None, sqlite3.Binary(value)

    def fetch(self, mode: int, filename: str | None, value: object, read: bool) -> object:
        if mode != diskcache.core.MODE_RAW or type(value) is not bytes:
            raise StorageError(f"a record is stored in mode {mode}, which is never written here")
        return value


def open_in(path: Path) -> Any:
    """The database in the directory `path`, made where there is none. Raises OSError, sqlite3.Error or Timeout."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    database = path / FILES[0]
    if database.exists():
        _check(database)
    return diskcache.Cache(
        str(path),
        timeout=_LOCK_SECONDS,
        disk=_PlainDisk,
        # Its own eviction is no bound, and would drop what it was just given; ours is in `upkeep`.
        eviction_policy="none",
        cull_limit=0,
        size_limit=1 << 62,
        # A disk error under a mapped page is no exception but a signal that ends the process.
        sqlite_mmap_size=0,
        sqlite_wal_autocheckpoint=256,
        sqlite_journal_size_limit=1 << 20,
    )


def encode_key(key: Key) -> str:
    """One text per key, injective: JSON quotes whatever could be mistaken for a separator."""
    return msgspec.json.encode(key).decode()


def schema(cache: Any) -> int:
    """The schema version that stands in the database; written where there is none."""
    key = encode_key(("schema",))
    stored = cache.get(key)
    if stored is None:
        cache.set(key, str(SCHEMA).encode())
        return SCHEMA
    return int(stored) if stored.isdigit() else 0


def delete(cache: Any, key: Key) -> bool:
    """Removes the record, if there is one; True, when it is on the disk."""
    # Alone of all changes this one is synced: what was lost of the others is asked again, but a permission that has
    # ended must not come back when the power does.
    _sql(cache, "PRAGMA synchronous = FULL")
    try:
        cache.delete(encode_key(key))
    finally:
        _sql(cache, "PRAGMA synchronous = NORMAL")
    return True


def count(cache: Any) -> int:
    """How many records there are."""
    ((count,),) = _sql(cache, "SELECT value FROM Settings WHERE key = 'count'")
    return int(count)


def drop_until(cache: Any, moment: float, most: int) -> int:
    """Drops what expires before `moment`, at most about `most` records, those nearest their expiry first."""
    rows = _sql(
        cache,
        "SELECT expire_time FROM Cache WHERE expire_time < ? ORDER BY expire_time LIMIT 1 OFFSET ?",
        moment,
        most - 1,
    )
    end = min(moment, math.nextafter(rows[0][0], math.inf)) if rows else moment
    return int(cache.expire(now=end))


def empty_log(cache: Any) -> None:
    """Writes the log into the database, and makes it short."""
    _sql(cache, "PRAGMA wal_checkpoint(TRUNCATE)")


def is_locked(error: BaseException) -> bool:
    """Whether somebody else holds the database."""
    return _code(error) in _LOCKED


def is_damage(error: Exception) -> bool:
    """Whether what stands in the database is at fault, and not the disk below it or somebody's lock."""
    if isinstance(error, sqlite3.Error):
        return _code(error) in _DAMAGED or "no such" in str(error) or "has no column" in str(error)
    return not isinstance(error, (OSError, diskcache.Timeout))


def _check(database: Path) -> None:
    """Meets a lock or damage before diskcache does, which would wait for a minute. Raises sqlite3.Error."""
    connection = sqlite3.connect(database, timeout=_LOCK_SECONDS, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("SELECT name FROM sqlite_master").fetchall()
        connection.execute("ROLLBACK")
    finally:
        connection.close()


def _sql(cache: Any, statement: str, *arguments: object) -> list[tuple[Any, ...]]:
    # diskcache has no question for what expires next, and its own count waits a minute for a lock.
    rows: list[tuple[Any, ...]] = cache._sql(statement, arguments).fetchall()  # noqa: SLF001 - see above
    return rows


def _code(error: BaseException) -> int:
    """SQLite's primary code for what went wrong, 0 where it is not SQLite's error."""
    if isinstance(error, diskcache.Timeout):  # stands for whatever kept a transaction from beginning
        error = error.__context__ or error
    return getattr(error, "sqlite_errorcode", 0) & 0xFF

"""Named records by exact key, persistent, over a database that may be slow, locked, damaged or gone."""

from __future__ import annotations

import asyncio
import errno
import functools
import math
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import structlog

from mirror.oci.errors import StorageError
from mirror.store import database
from mirror.store.binding import Binding
from mirror.store.database import Key, encode_key
from mirror.store.deletions import Deletions
from mirror.store.part import Part
from mirror.store.sealed import seal, unseal
from mirror.store.trouble import Trouble

T = TypeVar("T")

_ANSWER_SECONDS = 10.0
"""How long a client waits for a disk that does not answer."""
_REST_SECONDS = 5.0
"""How long the database is then left alone: each waiting call would keep a client waiting."""
_CLOSE_SECONDS = 5.0
_UNDONE = 10_000
"""Deletions that may wait for the disk; above that the whole database is begun anew."""
_STEP = 2000
"""Records dropped at a time: the writer's other work must not wait for long."""
_log = structlog.get_logger()


class _Gone(StorageError):
    """Where the database was there is none, or another one."""


class Records:
    """A book of small values by key. Each call runs in the one reader or the one writer thread, never on the loop.

    A failing disk is no error here: a read finds nothing, a write is lost and noted in `trouble`, and whatever was
    written is asked from its upstream again. A database that is damaged is moved aside and begun anew; one that only
    cannot be reached at the moment is left as it is and tried again by `mend`.
    """

    def __init__(
        self,
        path: Path,
        trouble: Trouble,
        *,
        check_home: Callable[[], None] = lambda: None,
        part: Part | None = None,
    ) -> None:
        """`check_home` raises OSError while the directory around `path` is not ours: nothing is made in it then.

        `part`: which of several processes we are; None where there is no other one.
        """
        self._binding = Binding(path, part or Part(), check_home)
        self._trouble = trouble
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="records-read")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="records-write")
        self._cache: Any = None
        self._opening: asyncio.Task[None] | None = None
        self._rest_until = 0.0
        self._measured = 0
        self.kept = 0
        """Bytes of what a newer version left, as last measured."""
        self.deletions = Deletions()
        """Those that the database has not heard of: it was locked, or its disk full."""
        self.begun_anew: Callable[[], object] = lambda: None
        """Called when there is a new database in the place of one that could not be used."""
        self._marked = False
        self._closed = False

    async def open(self) -> None:
        """Opens or makes the database. Raises nothing."""
        await self._reopen(None)

    async def mend(self) -> None:
        """Tries again where the database could not be opened, or did not hear of a deletion."""
        if self._cache is None:
            await self._reopen(None)
        elif missing := await asyncio.get_running_loop().run_in_executor(self._reader, self._binding.missing):
            if self._binding.database in missing:
                await self._take_up(self._cache)
            else:
                await self._begin_anew(self._cache, StorageError(f"somebody removed {missing[0].name}"))
        for key in self.deletions:
            await self.delete(key)
        await self._set_mark(bool(self.deletions))

    async def get(self, key: Key) -> bytes | None:
        """The value of `key`, or None."""
        _, row = await self.look_up(key)
        return row[0] if row is not None else None

    async def look_up(self, key: Key) -> tuple[bool, tuple[bytes, float] | None]:
        """Whether the database has answered; and the value of `key`, None where there is none, with the end of its use
        in seconds since the epoch.
        """
        if key in self.deletions:
            return True, None
        nothing: tuple[bool, tuple[bytes, float] | None] = (False, None)
        found = await self._call(self._reader, lambda cache: (True, _row(cache, encode_key(key))), nothing)
        return (True, None) if key in self.deletions else found

    async def set(self, key: Key, value: bytes, useful_for: float) -> bool:
        """Writes `value`; after `useful_for` seconds it is gone for `get`. Returns whether it was written."""
        text = encode_key(key)
        written = await self._call(
            self._writer, lambda cache: bool(cache.set(text, seal(text, value), expire=useful_for)), False
        )
        if written:
            self.deletions.done(key)
        return written

    async def delete(self, key: Key) -> None:
        """Removes `key`, if it is there; from now on, even where the disk hears of it only later.

        What it removed does not come back after a kill, nor after a power loss.
        """
        self.deletions.begin(key)
        if await self._call(self._writer, lambda cache: database.delete(cache, key), False):
            self.deletions.done(key)
        elif len(self.deletions) > _UNDONE and self._cache is not None:
            await self._begin_anew(self._cache, StorageError("it has not heard of too many deletions"))
        else:
            self.deletions.failed(key)
            await self._set_mark(wanted=True)

    async def volume(self) -> int:
        """Bytes on the disk: the database, its log, and what was moved aside; else the last figure there was."""
        if not self._closed:
            try:
                self._measured, self.kept = await asyncio.get_running_loop().run_in_executor(
                    self._reader, self._binding.measure
                )
            except OSError as error:
                self._trouble.note("records", error)
        return self._measured

    async def count(self) -> int:
        """How many records there are, expired ones included."""
        return await self._call(self._reader, database.count, 0)

    async def drop_expired(self) -> int:
        """Drops some of the records whose time is over; returns how many, 0 when there are no more."""
        return await self._call(self._writer, lambda cache: database.drop_until(cache, time.time(), _STEP), 0)

    async def drop_some(self) -> int:
        """Makes the records smaller: drops what was moved aside, or those nearest their expiry. 0: there is nothing."""
        return await self._call(self._writer, self._binding.drop_some, 0)

    async def close(self) -> None:
        """Lets the calls under way end, writes out what the log holds and ends both threads. Idempotent."""
        self._closed = True
        try:
            async with asyncio.timeout(2 * _CLOSE_SECONDS):
                await self._close()
        except TimeoutError:
            _log.error("the records were left as they are: the disk does not answer", deletions=len(self.deletions))
        finally:
            self._cache = None
            for pool in (self._reader, self._writer):
                pool.shutdown(wait=False)

    async def _close(self) -> None:
        if self._opening is not None:
            await asyncio.wait([self._opening], timeout=_CLOSE_SECONDS)
        cache = self._cache
        self._rest_until = 0.0
        if cache is not None:
            await self._tell_deletions()
        self._cache = None
        for pool in (self._reader, self._writer):  # the writer last: closing the last connection empties the log
            if cache is not None:
                await self._close_connection(pool, cache)
        if self.deletions:
            await self._forget_everything()
        await self._set_mark(bool(self.deletions))

    async def _tell_deletions(self) -> None:
        """As many as the disk takes in time."""
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                for key in self.deletions:
                    await self.delete(key)
        except TimeoutError:
            self._trouble.note("records", OSError(errno.ETIMEDOUT, "the disk does not answer"))

    async def _forget_everything(self) -> None:
        """A later process would take what was to be deleted for valid: it has to ask for every name again instead."""
        _log.error("the records did not hear of all deletions; names are asked again", deletions=len(self.deletions))
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await asyncio.get_running_loop().run_in_executor(self._writer, self._binding.unlink)
            self.deletions.clear()
        except OSError as error:
            _log.error("the records cannot be removed", error=str(error) or "timed out")

    async def _set_mark(self, wanted: bool) -> None:
        """Has the mark be there or not; in the reader's thread, one after the other."""
        if self._marked == wanted:
            return
        self._marked = wanted
        try:
            # Shielded: others rely on it where the client leaves who was the first to need it.
            call = asyncio.get_running_loop().run_in_executor(self._reader, self._binding.set_mark, wanted)
            async with asyncio.timeout(_CLOSE_SECONDS):
                await asyncio.shield(call)
        except OSError as error:
            self._marked = not wanted
            _log.error("a kill would bring deleted records back", error=str(error) or "timed out")

    # Calls.

    async def _call(self, pool: ThreadPoolExecutor, work: Callable[[Any], T], otherwise: T) -> T:
        cache = self._cache
        if cache is None or self._resting():
            return otherwise
        try:
            # Shielded: what a client's request has learnt is written even where the client leaves.
            call = asyncio.get_running_loop().run_in_executor(pool, self._work, work, cache, otherwise)
            async with asyncio.timeout(_ANSWER_SECONDS):
                result = await asyncio.shield(call)
        except TimeoutError:
            self._rest_until = time.monotonic() + _REST_SECONDS
            self._trouble.note("records", OSError(errno.ETIMEDOUT, "the disk does not answer"))
            return otherwise
        except Exception as error:
            self._trouble.note("records", error)
            if self._cache is cache and isinstance(error, _Gone):
                await self._take_up(cache)
            elif self._cache is cache and database.is_damage(error):
                await self._begin_anew(cache, error)
            return otherwise
        if pool is self._writer and not self._resting():
            self._trouble.clear("records")
        return result

    def _work(self, work: Callable[[Any], T], cache: Any, otherwise: T) -> T:
        if self._resting():  # this call has queued behind the one that met the lock
            return otherwise
        try:
            return work(cache)
        except database.ERRORS as error:
            if database.is_locked(error):
                self._rest_until = time.monotonic() + _REST_SECONDS
            elif not self._binding.database.exists():
                raise _Gone("the records are gone") from OSError(errno.ENOENT, "the records are gone")
            raise

    def _resting(self) -> bool:
        return time.monotonic() < self._rest_until

    # Opening and closing.

    async def _begin_anew(self, damaged: Any, error: Exception) -> None:
        await self._leave(damaged)
        await self._reopen(str(error))

    async def _take_up(self, gone: Any) -> None:
        """Opens what is there now; it may be an old acquaintance, so that deletions still have to be told."""
        await self._leave(gone)
        await self._reopen(None)

    async def _leave(self, cache: Any) -> None:
        self._cache = None
        for pool in (self._reader, self._writer):
            await self._close_connection(pool, cache)

    async def _reopen(self, damage: str | None) -> None:
        """Opens the database, for everyone who wants it; a damaged one is moved aside first."""
        if self._opening is None and not self._closed:
            self._opening = asyncio.create_task(self._open(damage), name="open records")
        if self._opening is not None:
            await asyncio.shield(self._opening)

    async def _open(self, damage: str | None) -> None:
        try:
            opening = functools.partial(self._binding.open, damage, marked=self._marked)
            cache, anew = await asyncio.get_running_loop().run_in_executor(self._writer, opening)
            if anew:
                self.deletions.clear()
                self._marked = False
            self._cache = cache
            self._trouble.clear("records")
            if anew:
                self.begun_anew()
        except Exception as error:
            self._trouble.note("records", error)
        finally:
            self._opening = None

    async def _close_connection(self, pool: ThreadPoolExecutor, cache: Any) -> None:
        """Each thread closes its own. Raises nothing."""
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await asyncio.get_running_loop().run_in_executor(pool, cache.close)
        except (TimeoutError, sqlite3.Error) as error:
            _log.warning("the records were not closed in order", error=str(error) or "timed out")


def _row(cache: Any, text: str) -> tuple[bytes, float] | None:
    value, ends = cache.get(text, expire_time=True)
    value = unseal(text, value)
    return (value, math.inf if ends is None else ends) if value is not None else None

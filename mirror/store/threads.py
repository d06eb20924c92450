"""Blocking calls in threads of their own pool, bounded in time, and safe from callers that go away meanwhile."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from mirror.oci.errors import StorageError
from mirror.store.files import SharedFile

T = TypeVar("T")

_MOST_CALLS = 16_384
"""More than there are clients by default, each of whom waits for one."""


class Threads:
    """A pool for one kind of work, so that a slow kind keeps no other waiting.

    A call that has begun cannot be stopped: where its caller is cancelled, or has waited long enough, it goes on alone.
    So a call owns what it works on (`holding`), and what it brings is not lost (`unwanted`).
    """

    def __init__(self, name: str, size: int, *, most: int = _MOST_CALLS) -> None:
        """At most `most` calls are begun or wait for a thread: of a disk that hangs, callers tire and come again."""
        self._pool = ThreadPoolExecutor(size, thread_name_prefix=name)
        self._most = most
        self._running: set[asyncio.Future[Any]] = set()

    async def run(
        self,
        work: Callable[..., T],
        *arguments: object,
        limit: float | None = None,
        holding: SharedFile | None = None,
        unwanted: Callable[[T], object] | None = None,
    ) -> T:
        """`work(*arguments)`, whose OSError comes out as StorageError, as does waiting for more than `limit` seconds.

        `holding` stays open until `work` has returned. `unwanted` is called on the loop with the result of a call that
        nobody waits for any more.
        """
        future = self._begin(work, *arguments, holding=holding)
        try:
            async with asyncio.timeout(limit):
                return await asyncio.shield(future)
        except OSError as error:
            if not isinstance(error, TimeoutError) or error.errno is not None:
                raise failed(error) from error
            _when_done(future, unwanted)
            raise StorageError("the disk does not answer") from OSError(errno.ETIMEDOUT, "no answer in time")
        except asyncio.CancelledError:
            _when_done(future, unwanted)
            raise

    def submit(self, work: Callable[..., object], *arguments: object) -> None:
        """Has `work` done some time, whose outcome nobody needs; here and now once the pool is closed."""
        try:
            self._pool.submit(work, *arguments)
        except RuntimeError:  # nothing is served any more
            try:
                work(*arguments)
            except OSError:
                pass

    async def idle(self) -> None:
        """Waits until no call is under way."""
        while self._running:
            await asyncio.wait(self._running)

    def close(self) -> None:
        """No more calls; those that were begun end by themselves."""
        self._pool.shutdown(wait=False)

    def _begin(self, work: Callable[..., T], *arguments: object, holding: SharedFile | None) -> asyncio.Future[T]:
        if len(self._running) >= self._most:
            raise StorageError("too much waits for the disk") from OSError(errno.EAGAIN, "too much waits")
        held = holding.hold() if holding is not None else None
        try:
            future = asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)
        except RuntimeError as error:
            if held is not None:
                held.release()
            raise StorageError(f"the store is closed: {error}") from None
        self._running.add(future)
        future.add_done_callback(self._running.discard)
        if held is not None:
            future.add_done_callback(lambda _: held.release())
        return future


def failed(error: OSError) -> StorageError:
    """What a call's own error is to those who asked for it."""
    return StorageError(f"the disk failed: {error.strerror or error}")


def _when_done(future: asyncio.Future[T], unwanted: Callable[[T], object] | None) -> None:
    def done(future: asyncio.Future[T]) -> None:
        if not future.cancelled() and future.exception() is None and unwanted is not None:
            unwanted(future.result())

    future.add_done_callback(done)

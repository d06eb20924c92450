"""Bytes on their way from files to sockets, moved by a few threads that wait for all the sockets together.

A thread works on a transfer while its socket has room, and leaves it to whichever thread is free when there is room
again: slow clients keep no thread, and a file that hangs keeps one. Of the loop a transfer takes one turn, at its end.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable

from mirror.store.files import SharedFile

PART = 1 << 20
"""Bytes that one call sends at most, and of which both ends are looked up in the page cache before."""
_TURN = 8 << 20
"""Bytes after which a transfer lets those go first whose sockets have room as well."""
SEALED = 512 << 10
"""Bytes that are encrypted at a time at most: few enough for the processor to have them at hand."""
_LEAST_SEALED = 16 << 10
"""And at least, however many clients there are: as much as one record of TLS holds."""
_ALL_SEALED = 32 << 20
"""Encrypted bytes that may wait for the sockets of all clients together, roughly: a slow client keeps its own until it
has taken them."""
_SHORTER = "the file is shorter than it was"
Seal = Callable[[bytes], bytes]
_READY = select.EPOLLOUT | select.EPOLLONESHOT
"""One thread at a time works on a transfer."""


class Cold(Exception):
    """The bytes are not in the page cache."""


class FileTransfer(ABC):
    """`count` bytes of `file` from `offset`, to be sent to the socket `out` (a descriptor that does not block).

    With `cold` it looks out for bytes that are not in the page cache, and ends before those.
    """

    def __init__(self, out: int, file: SharedFile, offset: int, count: int, *, cold: bool) -> None:
        self.out = out
        self.sent = 0
        self._file = file
        self._offset = offset
        self._count = count
        self._cold = cold
        self._called_at: float | None = None

    def stuck_for(self) -> float:
        """Seconds that the call has taken which it is in; for the loop to ask."""
        called_at = self._called_at
        return 0.0 if called_at is None else time.monotonic() - called_at

    def advance(self, keeps: int) -> bool:
        """Sends for a turn, or until the socket is full; whether there is more to be sent. In a thread.

        Until there is room again it keeps `keeps` bytes in memory at most. Raises OSError, and Cold, where it has not
        sent anything yet; else it ends, and the next one meets the same.
        """
        turn = min(self._count, self.sent + _TURN)
        try:
            while self.sent < turn:
                self._called_at = time.monotonic()
                self.sent += self._send(keeps)
        except BlockingIOError:
            return True
        except (OSError, Cold):
            if not self.sent:
                raise
            return False
        finally:
            self._called_at = None
        return self.sent < self._count

    def break_off(self) -> None:
        """Has it end at its next call, by shutting the connection down."""
        client = socket.socket(fileno=self.out)
        try:
            client.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the client was faster
        finally:
            client.detach()

    @abstractmethod
    def _send(self, keeps: int) -> int:
        """Sends some of what is left and returns how much. Raises BlockingIOError, OSError, Cold."""

    def _check(self, offset: int, count: int) -> None:
        if self._cold and not self._file.files.resident(self._file.fd, offset, count):
            raise Cold


class PlainTransfer(FileTransfer):
    """To a client who gets the bytes as they are: the kernel takes them from the file."""

    def _send(self, keeps: int) -> int:
        offset, count = self._offset + self.sent, min(self._count - self.sent, PART)
        self._check(offset, count)
        moved = self._file.files.sendfile(self.out, self._file.fd, offset, count)
        if not moved:
            raise OSError(errno.EIO, _SHORTER)
        return moved


class SecuredTransfer(FileTransfer):
    """To a client who gets the bytes as `seal` makes them, which nobody else may call meanwhile."""

    def __init__(self, seal: Seal, out: int, file: SharedFile, offset: int, count: int, *, cold: bool) -> None:
        super().__init__(out, file, offset, count, cold=cold)
        self._seal = seal
        self._sealed = memoryview(b"")
        """What has still to go out; until it has, nothing else may."""
        self._plain = 0
        """Bytes of the file that it stands for."""

    def _send(self, keeps: int) -> int:
        if not self._sealed:
            offset, count = self._offset + self.sent, min(self._count - self.sent, keeps)
            self._check(offset, count)
            data = self._file.files.read(self._file.fd, count, offset)
            if not data:
                raise OSError(errno.EIO, _SHORTER)
            self._sealed, self._plain = memoryview(self._seal(data)), len(data)
        while self._sealed:
            self._sealed = self._sealed[os.write(self.out, self._sealed) :]
        return self._plain


class Transfers:
    """The transfers under way, and the threads that move them on."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._running = 0
        self._leaving = threading.Lock()
        self._under_way: dict[int, tuple[FileTransfer, asyncio.Future[int]]] = {}
        """Changed by the loop alone."""
        self._closing = False
        self._epoll = select.epoll()
        self._end = os.eventfd(0, os.EFD_CLOEXEC)
        """Readable once the threads may end."""
        self._epoll.register(self._end, select.EPOLLIN)

    def begin(self, transfer: FileTransfer) -> asyncio.Future[int]:
        """Sends it; the future tells how many bytes went out, or raises what `advance` raised. Do not cancel it.

        `out` has to stay open until the future is done. Raises RuntimeError once this is closed.
        """
        if self._closing:
            raise RuntimeError("nothing is sent any more")
        while self._running < self._threads:
            self._running += 1
            threading.Thread(target=self._work, name=f"send-{self._running}", daemon=True).start()
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._under_way[transfer.out] = transfer, future
        self._epoll.register(transfer.out, _READY)
        return future

    def close(self) -> None:
        """Breaks off what is under way. Idempotent."""
        if self._closing:
            return
        self._closing = True
        for transfer, _ in self._under_way.values():
            transfer.break_off()
        self._end_threads()

    def _end_threads(self) -> None:
        if not self._closing or self._under_way:
            return
        if self._running:
            os.eventfd_write(self._end, 1)
        else:
            self._close_descriptors()

    def _close_descriptors(self) -> None:
        self._epoll.close()
        os.close(self._end)

    # In threads.

    def _work(self) -> None:
        while True:
            ((descriptor, _),) = self._epoll.poll(maxevents=1)
            if descriptor == self._end:
                break
            self._move_on(*self._under_way[descriptor])
        with self._leaving:
            self._running -= 1
            if not self._running:
                self._close_descriptors()

    def _move_on(self, transfer: FileTransfer, future: asyncio.Future[int]) -> None:
        error = None
        try:
            if transfer.advance(max(_LEAST_SEALED, min(SEALED, _ALL_SEALED // len(self._under_way)))):
                self._epoll.modify(transfer.out, _READY)
                return
        except Exception as raised:
            error = raised
        self._epoll.unregister(transfer.out)
        try:
            future.get_loop().call_soon_threadsafe(self._ended, transfer, future, error)
        except RuntimeError:  # the loop is closed: nobody waits for it
            del self._under_way[transfer.out]
            self._end_threads()

    # On the loop again.

    def _ended(self, transfer: FileTransfer, future: asyncio.Future[int], error: Exception | None) -> None:
        del self._under_way[transfer.out]
        if error is None:
            future.set_result(transfer.sent)
        else:
            future.set_exception(error)
        self._end_threads()

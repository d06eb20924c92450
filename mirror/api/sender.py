"""The one way in which blob bytes leave us.

Bytes in files go by `os.sendfile` in threads, on a duplicate of the client's socket, so that neither a cold page cache
nor a slow disk ever stops the event loop; bytes in memory go through the transport.

A step that runs in a thread owns its descriptors: the file is held and the duplicate stays open until the step has
returned, even if the request is cancelled meanwhile. Closing them earlier would let the kernel give their numbers away
under a running `sendfile`, and a client would receive a stranger's bytes.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from aiohttp import web

from mirror.download import Body, BytesPiece, FilePiece, Piece
from mirror.store.files import SharedFile

_STEP = 8 << 20
"""Bytes that one step in a thread sends at most."""
_CHUNK = 256 << 10
"""Bytes that are handed to the transport at a time: it buffers each whole."""
_DRAIN_SECONDS = 1.0
_CLIENT_ERRORS = frozenset(
    {errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ECONNABORTED, errno.ETIMEDOUT, errno.ESHUTDOWN, errno.EBADF}
)


class ClientGone(ConnectionResetError):
    """The client closed its connection, or took no byte for too long."""


class Sender:
    """Sends bodies; `stall` is how long in seconds a client may take no byte."""

    def __init__(self, pool: ThreadPoolExecutor, stall: float) -> None:
        self._pool = pool
        self._stall = stall

    async def send(
        self,
        request: web.Request,
        response: web.StreamResponse,
        body: Body,
        start: int,
        end: int,
        *,
        first: Piece | None = None,
        sent: Callable[[int], None],
    ) -> None:
        """Sends bytes `start` up to `end` (excluded) of `body` after the headers, `first` being what stands at `start`.

        `sent` hears how many bytes went out, as they go. Raises MirrorError where they do not come, ClientGone where
        nobody takes them.
        """
        socket_ = _ClientSocket(request, self._pool, self._stall)
        try:
            offset, piece = start, first
            while offset < end:
                piece = piece or await body.at(offset)
                count = await self._piece(socket_, response, body, piece, end - offset)
                sent(count)
                offset += count
                piece = None
        finally:
            socket_.close()

    async def _piece(
        self, socket_: _ClientSocket, response: web.StreamResponse, body: Body, piece: Piece, limit: int
    ) -> int:
        if isinstance(piece, BytesPiece):
            return await self._bytes(response, piece.data[:limit])
        try:
            return await socket_.send_file(piece, min(limit, piece.count))
        except _StorageFailed as error:
            body.storage_failed(error.cause)
            return error.sent

    async def _bytes(self, response: web.StreamResponse, data: bytes) -> int:
        for offset in range(0, len(data), _CHUNK):
            try:
                async with asyncio.timeout(self._stall):
                    await response.write(data[offset : offset + _CHUNK])
            except TimeoutError:
                raise ClientGone(errno.ETIMEDOUT, "the client takes no bytes") from None
        return len(data)


async def cut_short(request: web.Request, response: web.StreamResponse) -> None:
    """Ends an answer whose headers promised more: FIN short of Content-Length, never RST, never a normal end.

    A close with unread bytes in the socket becomes a reset, and containerd resumes after the one but not the other; so
    the client gets a moment to close first.
    """
    response.force_close()
    transport = request.transport
    if transport is None or transport.is_closing():
        return
    if transport.can_write_eof():
        transport.write_eof()
        await asyncio.sleep(_DRAIN_SECONDS)  # cancelled as soon as the client closes
    transport.close()


class _StorageFailed(Exception):
    def __init__(self, cause: OSError, sent: int) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.sent = sent


class _ClientSocket:
    """A duplicate of the client's socket, for threads to write to while the transport writes nothing."""

    def __init__(self, request: web.Request, pool: ThreadPoolExecutor, stall: float) -> None:
        self._request = request
        self._pool = pool
        self._stall = stall
        self._socket: socket.socket | None = None
        self._step: asyncio.Future[int] | None = None

    async def send_file(self, piece: FilePiece, count: int) -> int:
        """Sends `count` bytes. Raises ClientGone, and _StorageFailed with what went out before the file failed."""
        duplicate = await self._open()
        done = 0
        while done < count:
            step = min(count - done, _STEP)
            try:
                moved = await self._in_thread(duplicate, piece.file, piece.offset + done, step)
            except OSError as error:
                if error.errno in _CLIENT_ERRORS:
                    raise ClientGone(error.errno, "the client closed the connection") from error
                raise _StorageFailed(error, done) from error
            done += moved
            if moved < step:
                await self._writable(duplicate)
        return done

    def close(self) -> None:
        """Closes the duplicate; while a step still runs on it, when that returns."""
        duplicate, self._socket = self._socket, None
        if duplicate is None:
            return
        if self._step is not None and not self._step.done():
            self._step.add_done_callback(lambda _: duplicate.close())
        else:
            duplicate.close()

    async def _open(self) -> socket.socket:
        transport = self._request.transport
        if transport is None or transport.is_closing():
            raise ClientGone(errno.ECONNRESET, "the client closed the connection")
        if self._socket is None:
            original = transport.get_extra_info("socket")
            self._socket = socket.socket(
                original.family, original.type, original.proto, fileno=os.dup(original.fileno())
            )
            self._socket.setblocking(False)
        while transport.get_write_buffer_size():  # our bytes must come after what the transport still holds
            await self._writable(self._socket)
            await asyncio.sleep(0)
        return self._socket

    async def _writable(self, duplicate: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_writer(duplicate, ready.set)
        try:
            async with asyncio.timeout(self._stall):
                await ready.wait()
        except TimeoutError:
            raise ClientGone(errno.ETIMEDOUT, "the client takes no bytes") from None
        finally:
            loop.remove_writer(duplicate)

    async def _in_thread(self, duplicate: socket.socket, file: SharedFile, offset: int, count: int) -> int:
        loop = asyncio.get_running_loop()
        held = file.hold()
        try:
            step = self._step = loop.run_in_executor(self._pool, _send_some, duplicate, file, offset, count)
        except BaseException:
            held.release()
            raise

        def returned(future: asyncio.Future[int]) -> None:
            held.release()
            if not future.cancelled():
                future.exception()  # heard, even where the request is gone

        step.add_done_callback(returned)
        try:
            return await asyncio.shield(step)
        except asyncio.CancelledError:
            if not step.done():
                _shut_down(duplicate)  # the step ends at its next write instead of at the file's end
            raise


def _send_some(duplicate: socket.socket, file: SharedFile, offset: int, count: int) -> int:
    """Sends until the socket is full or `count` bytes have gone. Runs in a thread. Raises OSError."""
    done = 0
    while done < count:
        try:
            moved = file.files.sendfile(duplicate.fileno(), file.fd, offset + done, count - done)
        except BlockingIOError:
            break
        except OSError:
            if done:
                break  # what went out counts; the next step meets the error again
            raise
        if moved == 0:
            raise OSError(errno.EIO, "the file is shorter than it was")
        done += moved
    return done


def _shut_down(duplicate: socket.socket) -> None:
    try:
        duplicate.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # the client was faster

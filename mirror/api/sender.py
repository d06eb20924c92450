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
from concurrent.futures import ThreadPoolExecutor

from aiohttp import web

from mirror.api.connections import ClientGone, flushed, taken
from mirror.api.exchange import Exchange
from mirror.download import Body, BytesPiece, FilePiece, Piece
from mirror.store.files import SharedFile

_STEP = 8 << 20
"""Bytes that one step in a thread sends at most."""
_CHUNK = 256 << 10
"""Bytes that are handed to the transport at a time: it buffers what the socket does not take."""
_DRAIN_SECONDS = 1.0
_CLIENT_ERRORS = frozenset(
    {errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ECONNABORTED, errno.ETIMEDOUT, errno.ESHUTDOWN}
)


class Sender:
    """Sends bodies. How long a client may take no byte is the connection's business (`HttpServer`)."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool

    async def send(
        self,
        request: web.BaseRequest,
        response: web.StreamResponse,
        body: Body,
        start: int,
        end: int,
        exchange: Exchange,
        *,
        first: Piece | None = None,
    ) -> None:
        """Sends bytes `start` up to `end` (excluded) of `body` after the headers, `first` being what stands at `start`.

        `exchange` hears how many bytes went out, as they go. Raises MirrorError where they do not come, ClientGone
        where nobody takes them.
        """
        client = _ClientSocket(request, self._pool, exchange)
        exchange.promised = end - start
        try:
            offset, piece = start, first
            while offset < end:
                piece = piece or await body.at(offset)
                offset += await self._piece(client, response, body, piece, end - offset, exchange)
                piece = None
        finally:
            client.close()

    async def _piece(
        self,
        client: _ClientSocket,
        response: web.StreamResponse,
        body: Body,
        piece: Piece,
        limit: int,
        exchange: Exchange,
    ) -> int:
        """Sends bytes in memory, or some of those in a file; returns how many."""
        if isinstance(piece, BytesPiece):
            return await _bytes(response, memoryview(piece.data)[:limit], exchange)
        try:
            return await client.send_file(piece, min(limit, piece.count, _STEP))
        except _StorageFailed as error:
            body.storage_failed(error.cause)
            return 0


async def _bytes(response: web.StreamResponse, data: memoryview, exchange: Exchange) -> int:
    for offset in range(0, len(data), _CHUNK):
        chunk = data[offset : offset + _CHUNK]
        await taken(response.write(chunk))
        exchange.sent += len(chunk)
    return len(data)


async def cut_short(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Ends an answer whose headers promised more: FIN short of Content-Length, never RST, never a normal end.

    A close with unread bytes in the socket becomes a reset, and containerd resumes after the one but not the other; so
    what the client sends is read and dropped, and it gets a moment to close first.
    """
    response.force_close()
    transport = request.transport
    if transport is None:
        return
    assert isinstance(transport, asyncio.Transport)
    request.protocol.close()  # takes no further request, so that what comes is dropped
    transport.resume_reading()
    await flushed(request)
    try:
        transport.write_eof()
    except OSError as error:
        raise ClientGone(*error.args) from error
    await asyncio.sleep(_DRAIN_SECONDS)  # cancelled as soon as the client closes
    transport.close()


class _StorageFailed(Exception):
    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class _ClientSocket:
    """A duplicate of the client's socket, for threads to write to while the transport writes nothing."""

    def __init__(self, request: web.BaseRequest, pool: ThreadPoolExecutor, exchange: Exchange) -> None:
        self._request = request
        self._pool = pool
        self._exchange = exchange
        self._socket: socket.socket | None = None
        self._step: asyncio.Future[int] | None = None

    async def send_file(self, piece: FilePiece, count: int) -> int:
        """Sends some of `count` bytes, waiting for the client to take more where it took less; returns how many.

        Raises ClientGone, and _StorageFailed where the file is to blame.
        """
        duplicate = await self._open()
        try:
            moved = await self._in_thread(duplicate, piece.file, piece.offset, count)
        except OSError as error:
            if error.errno in _CLIENT_ERRORS:
                raise ClientGone(error.errno, "the client closed the connection") from error
            raise _StorageFailed(error) from error
        if moved < count:
            await _writable(duplicate)
        return moved

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
        await flushed(self._request)  # our bytes must come after what the transport still holds
        if self._socket is None:
            assert self._request.transport is not None
            original = self._request.transport.get_extra_info("socket")
            self._socket = socket.socket(
                original.family, original.type, original.proto, fileno=os.dup(original.fileno())
            )
            self._socket.setblocking(False)
        return self._socket

    async def _in_thread(self, duplicate: socket.socket, file: SharedFile, offset: int, count: int) -> int:
        loop = asyncio.get_running_loop()
        held = file.hold()
        try:
            step = loop.run_in_executor(self._pool, _send_some, duplicate, file, offset, count)
        except BaseException:
            held.release()
            raise
        self._step = self._exchange.step = step

        def returned(future: asyncio.Future[int]) -> None:
            held.release()
            if not future.cancelled() and future.exception() is None:  # heard, even where the request is gone
                self._exchange.sent += future.result()

        step.add_done_callback(returned)
        try:
            return await asyncio.shield(step)
        except asyncio.CancelledError:
            if not step.done():
                _shut_down(duplicate)  # the step ends at its next write instead of at the file's end
            raise


async def _writable(duplicate: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_writer(duplicate, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_writer(duplicate)


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
            if done:
                break
            raise OSError(errno.EIO, "the file is shorter than it was")
        done += moved
    return done


def _shut_down(duplicate: socket.socket) -> None:
    try:
        duplicate.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # the client was faster

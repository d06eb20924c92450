"""The one way in which blob bytes leave us.

Bytes in files go by `os.sendfile` in threads, on a duplicate of the client's socket, so that neither a cold page cache
nor a slow disk ever stops the event loop; bytes in memory go through the transport. What is not in the page cache is
first read into it by other threads: they touch no socket, so that a disk that hangs keeps no warm answer waiting, and
the answer that waits for it can go on from elsewhere.

A step that runs in a thread owns its descriptors: the file is held and the duplicate stays open until the step has
returned, even if the request is cancelled meanwhile. Closing them earlier would let the kernel give their numbers away
under a running `sendfile`, and a client would receive a stranger's bytes.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from aiohttp import web

from mirror.api.connections import ClientGone, flushed, taken
from mirror.api.exchange import Exchange
from mirror.api.multipart import Section
from mirror.download import Body, BytesPiece, FilePiece, Piece
from mirror.oci.byte_range import ByteRange
from mirror.oci.errors import StorageError
from mirror.store.files import SharedFile
from mirror.store.threads import Threads
from mirror.store.trouble import Trouble

_SEND_THREADS = 16
_LOAD_THREADS = 16
_STEP = 8 << 20
"""Bytes that one step in a thread sends at most."""
_STEP_SECONDS = 1.0
"""How long a step goes on on a slow disk, between its calls."""
_PART = 1 << 20
"""Bytes that one call sends at most, and that are read ahead at a time from a cold file."""
_CHUNK = 256 << 10
"""Bytes that are handed to the transport at a time: it buffers what the socket does not take."""
_DRAIN_SECONDS = 1.0
_CLIENT_ERRORS = frozenset(
    {errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ECONNABORTED, errno.ETIMEDOUT, errno.ESHUTDOWN}
)


class Sender:
    """Sends bodies; `patience` is how long in seconds the disk may take to show some bytes of a file.

    How long a client may take no byte is the connection's business (`HttpServer`).
    """

    def __init__(self, patience: float, trouble: Trouble) -> None:
        """`trouble` hears of bytes that never come, where it is too late to go on with others."""
        self._patience = patience
        self._trouble = trouble
        self._pool = ThreadPoolExecutor(_SEND_THREADS, thread_name_prefix="send")
        self._loading = Threads("load", _LOAD_THREADS)

    def close(self) -> None:
        """Begins no more steps; those that were begun end by themselves."""
        self._pool.shutdown(wait=False)
        self._loading.close()

    async def send(
        self,
        request: web.BaseRequest,
        response: web.StreamResponse,
        body: Body,
        sections: Iterable[Section],
        exchange: Exchange,
        *,
        first: Piece | None = None,
    ) -> None:
        """Sends `sections` after the headers: bytes as they are, ranges from `body`, `first` being what begins those.

        `exchange` hears how many bytes went out, as they go. Raises MirrorError where they do not come, ClientGone
        where nobody takes them.
        """
        client = _ClientSocket(request, self._pool, exchange, self._patience)
        exchange.promised = response.content_length or 0
        try:
            for section in sections:
                if isinstance(section, bytes):
                    await _bytes(response, memoryview(section), exchange)
                else:
                    await self._range(client, response, body, section, exchange, first)
                    first = None
        finally:
            client.close()

    async def _range(
        self,
        client: _ClientSocket,
        response: web.StreamResponse,
        body: Body,
        part: ByteRange,
        exchange: Exchange,
        piece: Piece | None,
    ) -> None:
        offset = part.start
        while offset <= part.end:
            piece = piece or await body.at(offset)
            offset += await self._piece(client, response, body, piece, part.end + 1 - offset, exchange)
            piece = None

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
            if client.is_secured:
                return await self._through_transport(response, piece, min(limit, piece.count, _PART), exchange)
            return await self._file(client, piece, min(limit, piece.count, _STEP))
        except _StorageFailed as error:
            body.storage_failed(error.cause)
            return 0

    async def _file(self, client: _ClientSocket, piece: FilePiece, count: int) -> int:
        try:
            return await self._step(client, piece, count)
        except _Cold:
            count = min(count, _PART)
            await self._load(piece, count)
            return await self._step(client, piece, count, cold=False)

    async def _step(self, client: _ClientSocket, piece: FilePiece, count: int, *, cold: bool = True) -> int:
        try:
            return await client.send_file(piece, count, cold=cold)
        except StorageError as error:
            self._trouble.note("blobs", error)
            raise

    async def _through_transport(
        self, response: web.StreamResponse, piece: FilePiece, count: int, exchange: Exchange
    ) -> int:
        """Over TLS the bytes have to come through here. Raises _StorageFailed."""
        try:
            data = await self._read(piece, count)
        except StorageError as error:
            self._trouble.note("blobs", error)
            raise
        if not data:
            raise _StorageFailed(OSError(errno.EIO, "the file is shorter than it was"))
        return await _bytes(response, memoryview(data), exchange)

    async def _load(self, piece: FilePiece, count: int) -> None:
        """Has bytes read into the page cache. Raises _StorageFailed."""
        await self._read(piece, count)

    async def _read(self, piece: FilePiece, count: int) -> bytes:
        file = piece.file
        try:
            return await self._loading.run(
                file.files.read, file.fd, count, piece.offset, limit=self._patience, holding=file
            )
        except StorageError as error:
            if not isinstance(error.__cause__, OSError):
                raise
            raise _StorageFailed(error.__cause__) from error


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


class _Cold(Exception):
    """The bytes are not in the page cache."""


class _StorageFailed(Exception):
    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class _ClientSocket:
    """A duplicate of the client's socket, for threads to write to while the transport writes nothing."""

    def __init__(self, request: web.BaseRequest, pool: ThreadPoolExecutor, exchange: Exchange, patience: float) -> None:
        self._request = request
        self._pool = pool
        self._exchange = exchange
        self._patience = patience
        self._socket: socket.socket | None = None
        self._step: asyncio.Future[int] | None = None

    @property
    def is_secured(self) -> bool:
        """Whether bytes have to be encrypted on their way to it."""
        transport = self._request.transport
        return transport is not None and transport.get_extra_info("sslcontext") is not None

    async def send_file(self, piece: FilePiece, count: int, *, cold: bool = True) -> int:
        """Sends some of `count` bytes, waiting for the client to take more where it took less; returns how many.

        With `cold` it looks out for bytes that are not in the page cache, and sends none of those. Raises _Cold where
        the first are such, ClientGone, and _StorageFailed where the file is to blame; StorageError where that shows
        only after `patience` seconds: the step is still at it then, and the socket is lost to it.
        """
        duplicate = await self._open()
        try:
            moved = await self._in_thread(duplicate, piece.file, piece.offset, count, cold)
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
            try:
                number = os.dup(original.fileno())
            except OSError as error:
                raise StorageError(f"the socket cannot be duplicated: {error.strerror}") from error
            self._socket = socket.socket(original.family, original.type, original.proto, fileno=number)
            self._socket.setblocking(False)
        return self._socket

    async def _in_thread(self, duplicate: socket.socket, file: SharedFile, offset: int, count: int, cold: bool) -> int:
        loop = asyncio.get_running_loop()
        held = file.hold()
        try:
            step = loop.run_in_executor(self._pool, _send_some, duplicate, file, offset, count, cold)
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
            async with asyncio.timeout(self._patience):
                return await asyncio.shield(step)
        except (asyncio.CancelledError, TimeoutError) as error:
            if step.done():
                raise
            _shut_down(duplicate)  # the step ends at its next write instead of at the file's end
            if isinstance(error, asyncio.CancelledError):
                raise
            raise StorageError("the disk does not answer") from OSError(errno.ETIMEDOUT, "no answer in time")


async def _writable(duplicate: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_writer(duplicate, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_writer(duplicate)


def _send_some(duplicate: socket.socket, file: SharedFile, offset: int, count: int, cold: bool) -> int:
    """Sends until the socket is full, `count` bytes have gone, or the next are `cold` and looked out for.

    Runs in a thread, for little more than _STEP_SECONDS. Raises OSError, and _Cold where it could not begin.
    """
    done = 0
    ends = time.monotonic() + _STEP_SECONDS
    while done < count and time.monotonic() < ends:
        part = min(count - done, _PART)
        if cold and not file.files.resident(file.fd, offset + done, part):
            if done:
                break
            raise _Cold
        try:
            moved = file.files.sendfile(duplicate.fileno(), file.fd, offset + done, part)
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

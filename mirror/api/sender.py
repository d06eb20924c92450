"""The one way in which blob bytes leave us.

Bytes in files go by `os.sendfile` in threads, on a duplicate of the client's socket, so that neither a cold page cache
nor a slow disk ever stops the event loop; bytes in memory go through the transport. What is not in the page cache is
first read into it by other threads: they touch no socket, so that a disk that hangs keeps no warm answer waiting, and
the answer that waits for it can go on from elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from aiohttp import web

from mirror.api.client_socket import ClientSocket, FileFailed
from mirror.api.connections import ClientGone, flushed, taken
from mirror.api.exchange import Exchange
from mirror.api.multipart import Section
from mirror.api.transfers import PART, Cold, Transfers
from mirror.download import Body, BytesPiece, FilePiece, Piece
from mirror.oci.byte_range import ByteRange
from mirror.oci.errors import StorageError
from mirror.store.threads import Threads
from mirror.store.trouble import Trouble

_SEND_THREADS = 16
_LOAD_THREADS = 16
_CHUNK = 256 << 10
"""Bytes that are handed to the transport at a time: it buffers what the socket does not take."""
_DRAIN_SECONDS = 1.0


class Sender:
    """Sends bodies; `patience` is how long in seconds the disk may take to show some bytes of a file.

    How long a client may take no byte is the connection's business (`HttpServer`).
    """

    def __init__(self, patience: float, trouble: Trouble) -> None:
        """`trouble` hears of bytes that never come, where it is too late to go on with others."""
        self._patience = patience
        self._trouble = trouble
        self._transfers = Transfers(_SEND_THREADS)
        self._loading = Threads("load", _LOAD_THREADS)

    def close(self) -> None:
        """Breaks off what is being sent; what is being read ends by itself."""
        self._transfers.close()
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
        client = ClientSocket(request, self._transfers, exchange, self._patience)
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
        client: ClientSocket,
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
        client: ClientSocket,
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
            return await self._file(client, piece, min(limit, piece.count))
        except FileFailed as error:
            body.storage_failed(error.cause)
            return 0

    async def _file(self, client: ClientSocket, piece: FilePiece, count: int) -> int:
        try:
            return await self._send_file(client, piece, count)
        except Cold:
            count = min(count, PART)
            await self._load(piece, count)
            return await self._send_file(client, piece, count, cold=False)

    async def _send_file(self, client: ClientSocket, piece: FilePiece, count: int, *, cold: bool = True) -> int:
        try:
            return await client.send_file(piece.file, piece.offset, count, cold=cold)
        except StorageError as error:
            self._trouble.note("blobs", error)
            raise

    async def _load(self, piece: FilePiece, count: int) -> None:
        """Has bytes read into the page cache. Raises FileFailed."""
        file = piece.file
        try:
            await self._loading.run(file.files.read, file.fd, count, piece.offset, limit=self._patience, holding=file)
        except StorageError as error:
            if not isinstance(error.__cause__, OSError):
                raise
            raise FileFailed(error.__cause__) from error


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

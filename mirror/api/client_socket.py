"""A client's socket in the hands of threads: a duplicate of it, to which files are sent while its transport is idle.

A transfer owns its descriptors: the file is held and the duplicate stays open until the transfer has ended, even if the
request is cancelled meanwhile. Closing them earlier would let the kernel give their numbers away under a running
`sendfile`, and a client would receive a stranger's bytes.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket

from aiohttp import web

from mirror.api.connections import ClientGone, flushed
from mirror.api.exchange import Exchange
from mirror.api.secured import SecuredTransport
from mirror.api.transfers import FileTransfer, PlainTransfer, SecuredTransfer, Transfers
from mirror.oci.errors import StorageError
from mirror.store.files import SharedFile

_CLIENT_ERRORS = frozenset(
    {errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ECONNABORTED, errno.ETIMEDOUT, errno.ESHUTDOWN}
)


class FileFailed(Exception):
    """The file of a piece cannot be read."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class ClientSocket:
    """Sends files to the client of one request. `patience`: seconds that the disk may take over one of its calls."""

    def __init__(self, request: web.BaseRequest, transfers: Transfers, exchange: Exchange, patience: float) -> None:
        self._request = request
        self._transfers = transfers
        self._exchange = exchange
        self._patience = patience
        self._duplicate: int | None = None
        self._transfer: asyncio.Future[int] | None = None

    async def send_file(self, file: SharedFile, offset: int, count: int, *, cold: bool = True) -> int:
        """Sends some of `count` bytes, as the client takes them; returns how many.

        With `cold` it looks out for bytes that are not in the page cache, and sends none of those. Raises Cold where
        the first are such, ClientGone, and FileFailed where the file is to blame; StorageError where that shows only
        after `patience` seconds: the thread is still at it then, and the socket is lost to it.
        """
        duplicate = await self._open()
        transport = self._request.transport
        try:
            if isinstance(transport, SecuredTransport):
                transfer: FileTransfer = SecuredTransfer(transport.seal, duplicate, file, offset, count, cold=cold)
                return await self._done(transfer, file, transport)
            return await self._done(PlainTransfer(duplicate, file, offset, count, cold=cold), file)
        except OSError as error:
            if error.errno in _CLIENT_ERRORS:
                raise ClientGone(error.errno, "the client closed the connection") from error
            raise FileFailed(error) from error

    def close(self) -> None:
        """Closes the duplicate; while a transfer is still under way on it, when that ends."""
        duplicate, self._duplicate = self._duplicate, None
        if duplicate is None:
            return
        if self._transfer is not None and not self._transfer.done():
            self._transfer.add_done_callback(lambda _: os.close(duplicate))
        else:
            os.close(duplicate)

    async def _open(self) -> int:
        await flushed(self._request)  # our bytes must come after what the transport still holds
        if self._duplicate is None:
            assert self._request.transport is not None
            original: socket.socket = self._request.transport.get_extra_info("socket")
            try:
                self._duplicate = os.dup(original.fileno())
            except OSError as error:
                raise StorageError(f"the socket cannot be duplicated: {error.strerror}") from error
        return self._duplicate

    async def _done(self, transfer: FileTransfer, file: SharedFile, lender: SecuredTransport | None = None) -> int:
        future = self._transfers.begin(transfer)
        held = file.hold()
        if lender is not None:
            lender.lend()
        self._transfer = self._exchange.step = future

        def ended(_: asyncio.Future[int]) -> None:
            held.release()
            if lender is not None:
                lender.take_back()
            self._exchange.sent += transfer.sent  # counted even where the request is gone
            future.exception()  # heard

        future.add_done_callback(ended)
        try:
            await self._watched(transfer, future)
        except BaseException:
            if not future.done():
                transfer.break_off()
            raise
        return future.result()

    async def _watched(self, transfer: FileTransfer, future: asyncio.Future[int]) -> None:
        """Waits until the transfer has ended. Raises StorageError where the disk keeps it."""
        while not future.done():
            await asyncio.wait((future,), timeout=self._patience)
            if not future.done() and transfer.stuck_for() >= self._patience:
                raise StorageError("the disk does not answer") from OSError(errno.ETIMEDOUT, "no answer in time")

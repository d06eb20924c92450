"""One listening socket with aiohttp behind it, which can stop, start again, and refuse at accept."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable

from aiohttp import web

from tests.upstream.wire import reset

_LINE_LIMIT = 32 << 10


class Listener:
    """An HTTP server on `address`; `port` 0 is replaced by the one that the kernel gives at the first start.

    `accept` is asked for each connection; False resets it at once.
    """

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        accept: Callable[[], bool],
        port: int,
        tls: ssl.SSLContext | None,
        address: str = "127.0.0.1",
    ) -> None:
        self.port = port
        self._handler = handler
        self._accept = accept
        self._tls = tls
        self._address = address
        self._http: web.Server | None = None
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listens. Does nothing if it does already."""
        if self._server is not None:
            return
        self._http = web.Server(
            self._handler,
            handler_cancellation=True,
            access_log=None,
            max_line_size=_LINE_LIMIT,
            max_field_size=_LINE_LIMIT,
        )
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._protocol, self._address, self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Listens no more and closes every connection."""
        if self._server is None or self._http is None:
            return
        for listening in self._server.sockets:
            asyncio.get_running_loop().remove_reader(listening.fileno())
        await asyncio.sleep(0)  # CPython 3.11 loses the sockets of those who join a closed server
        self._server.close()
        self.drop()
        await self._http.shutdown(0.5)
        await self._server.wait_closed()
        self._server = self._http = None

    def drop(self) -> None:
        """Closes every connection, whatever is being sent."""
        for connection in self._http.connections if self._http else []:
            if connection.transport is not None:
                connection.transport.abort()

    def _protocol(self) -> asyncio.Protocol:
        assert self._http is not None
        return self._http() if self._accept() else _Refusing()


class _Refusing(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        reset(transport)

"""A listening port: it opens whole or not at all, and loses nobody whom it has accepted when it closes."""

from __future__ import annotations

import asyncio
import os
import socket

from aiohttp import web

from mirror.config import Address

_BACKLOG = 1024
"""Connections that the kernel holds ready."""
ACCEPTED_AT_ONCE = 16
"""In one turn of the loop: asyncio's own `backlog`. It is also how often asyncio fails, with a traceback each time,
where no descriptor is left; but of a crowd that comes at once the last one waits for many turns of a busy loop."""


class Listener:
    """Accepts connections for the server of an aiohttp runner."""

    def __init__(self, runner: web.BaseRunner) -> None:
        self._runner = runner
        self._server: asyncio.Server | None = None

    async def open(self, address: Address) -> int:
        """Listens; returns the port. Raises OSError, which names the address; `close` is due then as well."""
        await self._runner.setup()
        assert self._runner.server is not None
        loop = asyncio.get_running_loop()
        # asyncio forgets a listening socket when it is cancelled in its last step; begun, this goes through.
        starting = asyncio.create_task(
            loop.create_server(self._runner.server, address.host, address.port, backlog=ACCEPTED_AT_ONCE)
        )
        try:
            self._server = await asyncio.shield(starting)
        except OSError as error:
            raise OSError(f"cannot listen on {address}: {_reason(error)}") from error
        except asyncio.CancelledError:
            await asyncio.gather(starting, return_exceptions=True)
            if starting.exception() is None:
                self._server = starting.result()
            raise
        for listening in self._server.sockets:
            with listening.dup() as same:
                same.listen(_BACKLOG)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def stop_accepting(self) -> None:
        """Listens no more, and closes the connections on which nothing is asked; the others go on. Idempotent."""
        server, self._server = self._server, None
        if server is not None:
            for listening in server.sockets:
                asyncio.get_running_loop().remove_reader(listening.fileno())
            # Whoever was accepted in this turn of the loop joins the server in the next. CPython 3.11 loses the sockets
            # of those who come to a closed one: they would wait until the process ends.
            await asyncio.sleep(0)
            server.close()
        if self._runner.server is not None:
            self._runner.server.pre_shutdown()

    async def close(self) -> None:
        """Cuts off whoever is still being served. Idempotent, and right after an `open` that failed."""
        await self.stop_accepting()
        await self._runner.cleanup()


def _reason(error: OSError) -> str:
    """Why a port cannot be had, without the address that asyncio puts into its message."""
    if isinstance(error, socket.gaierror) or not error.errno:
        return error.strerror or str(error)
    return os.strerror(error.errno)

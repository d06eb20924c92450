"""A listening port: it opens whole or not at all, and loses nobody whom it has accepted when it closes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from aiohttp import web

from mirror.api.secured import Entrance
from mirror.config import Address
from mirror.sockets import Listening, bind

ACCEPTED_AT_ONCE = 16
"""In one turn of the loop: asyncio's own `backlog`. It is also how often asyncio fails, with a traceback each time,
where no descriptor is left; but of a crowd that comes at once the last one waits for many turns of a busy loop."""


class Listener:
    """Accepts connections for the server of an aiohttp runner; over TLS where there is an `entrance` to it."""

    def __init__(self, runner: web.BaseRunner, entrance: Entrance | None = None) -> None:
        self._runner = runner
        self._entrance = entrance
        self._servers: list[asyncio.Server] = []

    async def open(self, address: Address) -> int:
        """Listens; returns the port. Raises OSError, which names the address; `close` is due then as well."""
        sockets = await bind(address)
        port: int = sockets[0].getsockname()[1]
        await self.adopt(sockets)
        return port

    async def adopt(self, sockets: Sequence[Listening]) -> None:
        """Listens at sockets that are bound, and ours from now on. Other processes may listen at the same ones."""
        await self._runner.setup()
        assert self._runner.server is not None
        loop = asyncio.get_running_loop()
        for each in sockets:
            # Begun in a second step: asyncio forgets a listening socket when it is cancelled in the last one.
            server = await loop.create_server(
                self._entrance or self._runner.server, sock=each, backlog=ACCEPTED_AT_ONCE, start_serving=False
            )
            self._servers.append(server)
        for server in self._servers:
            await server.start_serving()

    async def stop_accepting(self) -> None:
        """Listens no more, and closes the connections on which nothing is asked; the others go on. Idempotent."""
        servers, self._servers = self._servers, []
        if servers:
            for listening in (one for server in servers for one in server.sockets):
                asyncio.get_running_loop().remove_reader(listening.fileno())
            # Whoever was accepted in this turn of the loop joins the server in the next. CPython 3.11 loses the sockets
            # of those who come to a closed one: they would wait until the process ends.
            await asyncio.sleep(0)
            for server in servers:
                server.close()
        if self._entrance is not None:
            self._entrance.close()
        if self._runner.server is not None:
            self._runner.server.pre_shutdown()

    async def close(self) -> None:
        """Cuts off whoever is still being served. Idempotent, and right after an `open` that failed."""
        await self.stop_accepting()
        await self._runner.cleanup()

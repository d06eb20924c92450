"""The socket on which a worker hears others: whoever calls it is cut off when it closes, at whatever moment."""

from __future__ import annotations

import asyncio
import socket
from contextlib import nullcontext
from typing import Any

import pytest

from mirror.api.peer import PeerServer
from mirror.sockets import meeting_point, new_crowd


class Nobody:
    """An engine that is asked nothing."""

    peer: Any = None

    def in_use(self) -> nullcontext[None]:
        """Nothing to keep open."""
        return nullcontext()


@pytest.mark.parametrize("turns", range(3, 8))  # after fewer of them asyncio itself loses who is just being accepted
async def test_who_calls_while_it_closes_is_cut_off(turns: int) -> None:
    """Also one that was accepted and not yet heard: else it would wait for its whole patience."""
    listening, name = meeting_point(0, new_crowd())
    server = PeerServer(Nobody, 2.0)
    await server.open(listening)
    with socket.socket(socket.AF_UNIX) as caller:
        caller.setblocking(False)
        caller.connect(name)
        for _ in range(turns):  # of the loop
            await asyncio.sleep(0)

        await server.close()

        async with asyncio.timeout(10):
            assert await asyncio.get_running_loop().sock_recv(caller, 1) == b""

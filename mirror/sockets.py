"""Sockets that more than one process has: those that clients come to, and those on which workers hear each other."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import struct

from mirror.config import Address

_BACKLOG = 1024
"""Connections that the kernel holds ready."""
_CREDENTIALS = struct.Struct("3i")
"""Of the process at the other end: its id, user and group."""


class Listening(socket.socket):
    """A listening socket whose queue is as long as ours are, whatever length asyncio asks for.

    To asyncio `backlog` is also how many connections it accepts at once; and where several processes listen at one
    socket, not even for a moment may a process that begins shorten the queue for the others.
    """

    def listen(self, backlog: int = _BACKLOG, /) -> None:
        """Listens."""
        super().listen(max(backlog, _BACKLOG))


async def bind(address: Address) -> list[Listening]:
    """Listens at `address`: one socket for each IP address that its host has. Raises OSError, which names it."""
    try:
        # Not started it waits for nothing after the sockets are made: who is cancelled leaves none of them behind.
        server = await asyncio.get_running_loop().create_server(
            asyncio.Protocol, address.host, address.port, start_serving=False
        )
        try:
            bound = [Listening(fileno=os.dup(one.fileno())) for one in server.sockets]
        finally:
            server.close()
        for one in bound:
            one.setblocking(False)
            one.listen()
    except OSError as error:
        raise OSError(f"cannot listen on {address}: {_reason(error)}") from error
    return bound


def meeting_point(slot: int, crowd: str) -> tuple[Listening, str]:
    """A Unix socket for the worker in `slot`, and its name as the others call it; `crowd` is a name for all of them.

    The name is in no directory: it ends with the socket, and no disk can take it away. Whoever is on the machine can
    call it, so that both ends look at each other with `is_ours`.
    """
    name = f"\0mirror-{crowd}-{slot}"
    listening = Listening(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.setblocking(False)
    listening.bind(name)
    listening.listen()
    return listening, name


def new_crowd() -> str:
    """A name that no other mirror on the machine has."""
    return secrets.token_hex(8)


def is_ours(connection: socket.socket) -> bool:
    """Whether the process at the other end of a Unix socket runs as the user that we run as."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(data)
    return bool(user == os.geteuid())


def _reason(error: OSError) -> str:
    """Why a port cannot be had, without the address that asyncio puts into its message."""
    if isinstance(error, socket.gaierror) or not error.errno:
        return error.strerror or str(error)
    return os.strerror(error.errno)

"""`python -m bench.link`: a line to a server that is slow or long: so many bytes a second, so late, for all together.

A user-space relay. Only what the server says is bound to the rate; both ways are delayed. It takes a connection at
once: what a handshake over such a line costs is not part of it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from bench.site import Upstream
from tests.e2e.processes import Process, free_port, listens

_WINDOW = 1 << 20
"""Bytes that a connection may have on the line besides those that its length holds."""


class Line:
    """When bytes that come now will have passed; one queue for all connections."""

    def __init__(self, rate: float, delay: float) -> None:
        self.window = round(rate * delay) + _WINDOW
        self._rate = rate
        self._delay = delay
        self._free_at = 0.0

    def due(self, now: float, size: int) -> float:
        """The moment at which the last of these bytes arrives at the other end."""
        self._free_at = max(now, self._free_at) + size / self._rate
        return self._free_at + self._delay


class _End(asyncio.Protocol):
    """One end of a relayed connection: what it reads, the other end writes when it is due."""

    def __init__(self, line: Line) -> None:
        self.peer: _End | None = None
        self._line = line
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._under_way: deque[tuple[float, bytes]] = deque()
        self._size = 0
        self._timer: asyncio.TimerHandle | None = None
        self._over = False
        self._may_write = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._under_way.append((self._line.due(self._loop.time(), len(data)), data))
        self._size += len(data)
        if self._size > self._line.window and self._transport is not None:
            self._transport.pause_reading()
        self._wait()

    def eof_received(self) -> bool:
        self._over = True
        self._wait()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self.peer is not None:
            self.peer.close()

    def pause_writing(self) -> None:
        self._may_write = False

    def resume_writing(self) -> None:
        self._may_write = True
        if self.peer is not None:
            self.peer.deliver()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._under_way.clear()
        if self._transport is not None:
            self._transport.close()

    def deliver(self) -> None:
        """Gives the other end what is due."""
        self._timer = None
        peer = self.peer
        while self._under_way and peer is not None and peer.writes and self._under_way[0][0] <= self._loop.time():
            data = self._under_way.popleft()[1]
            self._size -= len(data)
            peer.write(data)
        if self._size <= self._line.window and self._transport is not None and not self._over:
            self._transport.resume_reading()
        if self._over and not self._under_way and peer is not None:
            peer.close()
        if peer is not None and peer.writes:
            self._wait()

    @property
    def writes(self) -> bool:
        """Whether it takes more."""
        return self._may_write and self._transport is not None

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _wait(self) -> None:
        if self._timer is None and self.peer is not None:
            if self._under_way:
                self._timer = self._loop.call_at(self._under_way[0][0], self.deliver)
            elif self._over:
                self._timer = self._loop.call_later(0, self.deliver)


async def relay(port: int, to: int, down: Line, up: Line) -> asyncio.Server:
    """Takes connections on one port and leads them to the other."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    def accepted() -> _End:
        client = _End(up)
        task = loop.create_task(join(client))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return client

    async def join(client: _End) -> None:
        server = _End(down)
        try:
            await loop.create_connection(lambda: server, "127.0.0.1", to)
        except OSError:
            client.close()
            return
        client.peer, server.peer = server, client
        client.deliver()  # what it has said meanwhile

    return await loop.create_server(accepted, "127.0.0.1", port, backlog=2048)


@contextmanager
def link(home: Path, behind: Upstream, rate: float, delay: float = 0.0) -> Iterator[Upstream]:
    """The upstream at the end of a line of `rate` bytes a second, `delay` seconds long each way."""
    port = free_port()
    argv = [sys.executable, "-m", "bench.link", f"--port={port}", f"--to={behind.port}"]
    process = Process([*argv, f"--rate={rate}", f"--delay={delay}"], log=home / "link.log", env=dict(os.environ))
    try:
        process.wait_until(lambda: listens(port))
        yield replace(behind, port=port)
    finally:
        process.stop()


async def _serve(options: argparse.Namespace) -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    server = await relay(
        options.port, options.to, Line(options.rate, options.delay), Line(options.rate, options.delay)
    )  # fmt: skip
    await stopped.wait()
    server.close()


def main(arguments: list[str] | None = None) -> None:
    """Relays until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m bench.link", description=__doc__)
    parser.add_argument("--port", type=int, required=True, help="where it listens")
    parser.add_argument("--to", type=int, required=True, help="where it leads")
    parser.add_argument("--rate", type=float, required=True, help="bytes a second, of all connections together")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds, each way")
    asyncio.run(_serve(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()

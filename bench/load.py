"""Load generators: whole blobs over a few connections, and small answers over many with wrk."""

from __future__ import annotations

import selectors
import socket
import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.image import ACCEPT, BenchFailed
from bench.servers import installed

_BUFFER = 1 << 20
_STALL_SECONDS = 30.0
_HEAD_LIMIT = 16 << 10
_RESULT = """\
done = function(summary, latency, requests)
  local wrong = summary.errors
  io.write(string.format("RESULT %d %d %d %d %d\\n", summary.requests, summary.duration, latency:percentile(50),
    latency:percentile(99), wrong.connect + wrong.read + wrong.write + wrong.status + wrong.timeout))
end
"""
WRK = "wrk"


@dataclass(frozen=True, slots=True)
class Requests:
    """What wrk counted: answers, the seconds they took together, and percentiles of the single ones in seconds."""

    count: int
    seconds: float
    p50: float
    p99: float


def request(home: Path, port: int, path: str, connections: int, seconds: float) -> Requests:
    """GETs one path over keep-alive connections for so many seconds. Raises BenchFailed for any answer but 200."""
    script = home / "result.lua"
    script.write_text(_RESULT)
    shape = ("-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout=30s", "-H", f"Accept: {ACCEPT}")
    argv = [WRK, *shape, "-s", str(script), f"http://127.0.0.1:{port}{path}"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    result = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
    if done.returncode != 0 or result is None:
        raise BenchFailed(f"wrk failed: {done.stdout}{done.stderr}")
    count, duration, p50, p99, wrong = map(int, result.split()[1:])
    if wrong or not count:
        raise BenchFailed(f"GET {path} on port {port}: {wrong} of {count} answers were not good")
    return Requests(count, duration / 1e6, p50 / 1e6, p99 / 1e6)


def can_request() -> bool:
    """Whether wrk is installed."""
    return installed(WRK)


def download(port: int, path: str, size: int, connections: int, times: int) -> float:
    """Reads a blob of `size` bytes `times` times over each of so many connections at once; returns the seconds.

    The bytes are counted and dropped: whoever looks at them measures himself. Raises BenchFailed.
    """
    head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: */*\r\n\r\n".encode()
    buffer = memoryview(bytearray(_BUFFER))
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        for _ in range(connections):
            reader = _Reader(port, head, size, times)
            stack.enter_context(reader.socket)
            selector.register(reader.socket, selectors.EVENT_READ, reader)
        started = time.perf_counter()
        for key in list(selector.get_map().values()):
            key.data.ask()
        while selector.get_map():
            ready = selector.select(_STALL_SECONDS)
            if not ready:
                raise BenchFailed(f"GET {path} on port {port}: no byte in {_STALL_SECONDS:g} s")
            for key, _ in ready:
                if key.data.read(buffer):
                    selector.unregister(key.fileobj)
        return time.perf_counter() - started


class _Reader:
    """One connection, and how much of the present answer is still to come."""

    def __init__(self, port: int, head: bytes, size: int, times: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setblocking(False)
        self._head = head
        self._size = size
        self._times = times
        self._left = 0
        self._headers: bytearray | None = None

    def ask(self) -> None:
        """Sends the next request; it is small enough never to block."""
        self._headers = bytearray()
        self.socket.send(self._head)

    def read(self, buffer: memoryview) -> bool:
        """Takes what is there; whether that was the end of the last answer. Raises BenchFailed."""
        try:
            count = self.socket.recv_into(buffer)
        except BlockingIOError:
            return False
        if count == 0:
            raise BenchFailed(f"the connection was closed {self._left} bytes before the end")
        if self._headers is not None:
            count = self._begin(self._headers, buffer[:count])
        self._left -= count
        if self._headers is not None or self._left > 0:
            return False
        self._times -= 1
        if self._times:
            self.ask()
        return not self._times

    def _begin(self, headers: bytearray, piece: memoryview) -> int:
        """Looks for the end of the headers; returns the bytes of body that came behind them."""
        headers += piece
        end = headers.find(b"\r\n\r\n")
        if end < 0:
            if len(headers) > _HEAD_LIMIT:
                raise BenchFailed("headers without an end")
            return 0
        status, *fields = bytes(headers[:end]).lower().split(b"\r\n")
        if b" 200 " not in status + b" " or f"content-length: {self._size}".encode() not in fields:
            raise BenchFailed(f"not the blob: {bytes(headers[:end]).decode(errors='replace')}")
        self._headers = None
        self._left = self._size
        return len(headers) - end - 4

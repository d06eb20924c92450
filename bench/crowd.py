"""`python -m bench.crowd`: the memory that 500 slow clients cost who share large blobs, half of them on their way.

The clients read at a common pace, far below what the mirror could give, compare every byte, and leave in the middle.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import selectors
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import watch
from bench.image import BenchFailed, fetch
from tests.e2e.mirrors import MirrorProcess
from tests.e2e.processes import Process, eventually, free_port
from tests.upstream import Pattern

PER_CLIENT = 128 << 10
PER_FILL = 4 << 20
_REPOSITORY = "library/crowd"
_PIECE = 64 << 10
_TICK = 0.05
_HEAD_LIMIT = 16 << 10
_START_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Shape:
    """Who asks for what: `size` in bytes, `rate` in bytes a second of all clients together, `seconds` of reading."""

    clients: int
    blobs: int
    size: int
    rate: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Result:
    """Bytes of memory: idle before, the most during, the bound, afterwards; and what the clients saw."""

    clients: int
    fills: int
    idle: int
    peak: int
    bound: int
    after: int
    read: int
    """Bytes that the clients compared."""
    failures: Sequence[str]

    @property
    def good(self) -> bool:
        """Whether the mirror kept within the bound and every client got right bytes all the time."""
        return self.peak <= self.bound and not self.failures


def run(home: Path, shape: Shape) -> Result:
    """Starts an upstream and a mirror under `home`, warms half of the blobs, and lets the crowd at all of them."""
    with _upstream(home, shape) as port:
        mirror = MirrorProcess(home, free_port())
        mirror.start(
            {"docker.io": {"url": f"http://127.0.0.1:{port}"}},
            storage={"path": str(mirror.data), "max_size": "100GiB", "min_free": "0%"},
        )
        try:
            return _measure(mirror, port, shape)
        finally:
            mirror.kill()  # half of the downloads would go on


def _measure(mirror: MirrorProcess, upstream: int, shape: Shape) -> Result:
    idle = watch.memory(mirror.pid).resident
    port = int(mirror.address.rpartition(":")[2])
    paths = [_path(upstream, number) for number in range(shape.blobs)]
    fills = shape.blobs // 2
    for path in paths[fills:]:
        fetch(port, path)
    eventually(lambda: mirror.counted("mirror_downloads_in_flight") == 0, seconds=30)
    readers = [
        _Reader(port, paths[number % shape.blobs], Pattern(_seed(number % shape.blobs), shape.size))
        for number in range(shape.clients)
    ]
    with ExitStack() as stack:
        for reader in readers:
            stack.callback(reader.close)
        begun = eventually(lambda: mirror.counted("mirror_downloads_in_flight") == fills)
        _read(readers, shape)
        peak = watch.memory(mirror.pid).peak
    failures = [reader.failure for reader in readers if reader.failure]
    if not begun:
        failures.append("the blobs were not all on their way at once")
    if silent := sum(not reader.position for reader in readers):
        failures.append(f"{silent} clients have no byte")
    after = watch.memory(mirror.pid).resident
    bound = idle + shape.clients * PER_CLIENT + fills * PER_FILL
    return Result(
        shape.clients, fills, idle, peak, bound, after, sum(reader.position for reader in readers), failures[:10]
    )


class _Reader:
    """One client: how far it is, and the first thing that was wrong."""

    def __init__(self, port: int, path: str, expected: Pattern) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.position = 0
        self.failure: str | None = None
        self._expected = expected
        self._head: bytearray | None = bytearray()
        self.socket.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
        self.socket.setblocking(False)

    def close(self) -> None:
        self.socket.close()

    def read(self, limit: int) -> int:
        """Takes at most `limit` bytes of what is there and compares them; returns how many there were."""
        try:
            data = self.socket.recv(limit)
        except BlockingIOError:
            return 0
        except OSError as error:
            self.failure = f"{type(error).__name__} at byte {self.position}"
            return 0
        if not data:
            self.failure = f"closed at byte {self.position}"
        body = data if self._head is None else self._begin(self._head, data)
        if body != self._expected.read(self.position, len(body)):
            self.failure = f"wrong bytes after byte {self.position}"
        self.position += len(body)
        return len(data)

    def _begin(self, head: bytearray, data: bytes) -> bytes:
        head += data
        end = head.find(b"\r\n\r\n")
        if end < 0:
            if len(head) > _HEAD_LIMIT:
                self.failure = "headers without an end"
            return b""
        lines = bytes(head[:end]).lower().split(b"\r\n")
        if b" 200 " not in lines[0] + b" " or f"content-length: {self._expected.size}".encode() not in lines:
            self.failure = bytes(head[:end]).decode(errors="replace")
        self._head = None
        return bytes(head[end + 4 :])


def _read(readers: Sequence[_Reader], shape: Shape) -> None:
    """Lets all read in turn, `shape.rate` together, until the time is over."""
    with selectors.DefaultSelector() as selector:
        for reader in readers:
            selector.register(reader.socket, selectors.EVENT_READ, reader)
        order = random.Random(0)
        began = time.monotonic()
        taken = 0
        while (passed := time.monotonic() - began) < shape.seconds and selector.get_map():
            ready = [key.data for key, _ in selector.select(_TICK)]
            order.shuffle(ready)
            for reader in ready:
                if taken > shape.rate * passed:
                    time.sleep(_TICK)
                    break
                taken += reader.read(_PIECE)
                if reader.failure:
                    selector.unregister(reader.socket)


@contextmanager
def _upstream(home: Path, shape: Shape) -> Iterator[int]:
    """A registry with an image for each blob."""
    log, port = home / "upstream.log", free_port()
    images = [f"--image={_REPOSITORY}:{number}" for number in range(shape.blobs)]
    argv = [sys.executable, "-m", "tests.upstream", f"--port={port}", f"--layer-size={shape.size}", *images]
    process = Process(argv, log=log, env=dict(os.environ))
    try:
        process.wait_until(lambda: " serves " in log.read_text(), seconds=_START_SECONDS)
        yield port
    finally:
        process.stop()


def _path(upstream: int, number: int) -> str:
    _, content = fetch(upstream, f"/v2/{_REPOSITORY}/manifests/{number}")
    return f"/v2/{_REPOSITORY}/blobs/{json.loads(content)['layers'][0]['digest']}"


def _seed(number: int) -> str:
    """What `tests.upstream` makes the first layer of an image from."""
    return f"{_REPOSITORY}:{number}:linux/amd64/0"


def main(arguments: list[str] | None = None) -> int:
    """Measures and prints; the exit code is 0 where the bound was kept and no client was harmed."""
    options = _parser().parse_args(arguments)
    shape = Shape(options.clients, options.blobs, options.size << 20, options.rate << 20, options.seconds)
    try:
        with tempfile.TemporaryDirectory(prefix="mirror-crowd-", dir=options.directory) as home:
            result = run(Path(home), shape)
    except (BenchFailed, OSError, RuntimeError) as error:
        print(f"crowd failed: {error}", file=sys.stderr)
        return 1
    print(json.dumps(asdict(result), indent=2))
    return 0 if result.good else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.crowd", description=__doc__)
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--blobs", type=int, default=8, help="half of them are on their way meanwhile (default: 8)")
    parser.add_argument("--size", type=int, default=1024, metavar="MIB", help="of each blob (default: 1024)")
    parser.add_argument("--rate", type=int, default=200, metavar="MIB/S", help="of all clients together (default: 200)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of reading (default: 20)")
    parser.add_argument("--directory", type=Path, help="where the cache is made (default: the temporary one)")
    return parser


if __name__ == "__main__":
    sys.exit(main())

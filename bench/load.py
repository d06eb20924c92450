"""Small answers over many keep-alive connections: GET by wrk, HEAD by ourselves, since wrk waits for a body."""

from __future__ import annotations

import select
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.image import ACCEPT, BenchFailed
from bench.servers import installed

_STALL_SECONDS = 30.0
_ANSWER = 16 << 10
_LONGEST = 16.0  # seconds
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
    """What was counted: answers, the seconds they took together, and percentiles of the single ones in seconds."""

    count: int
    seconds: float
    p50: float
    p99: float


def request(home: Path, port: int, path: str, connections: int, seconds: float, *, tls: bool = False) -> Requests:
    """GETs one path over keep-alive connections for so many seconds. Raises BenchFailed for any answer but 200."""
    if not can_request():
        raise BenchFailed(f"{WRK} is not installed")
    script = home / "result.lua"
    script.write_text(_RESULT)
    shape = ("-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout=30s", "-H", f"Accept: {ACCEPT}")
    url = f"{'https' if tls else 'http'}://127.0.0.1:{port}{path}"
    done = subprocess.run([WRK, *shape, "-s", str(script), url], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchFailed(f"wrk failed: {done.stdout}{done.stderr}")
    found = _read_result(done.stdout, path)
    if not found.count and seconds < _LONGEST:  # too slow to answer anybody in that time
        return request(home, port, path, connections, 2 * max(1.0, seconds), tls=tls)
    return found


def can_request() -> bool:
    """Whether wrk is installed."""
    return installed(WRK)


def head(port: int, path: str, connections: int, seconds: float) -> Requests:
    """HEADs one path over keep-alive connections for so many seconds. Raises BenchFailed for any answer but 200."""
    question = f"HEAD {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: {ACCEPT}\r\n\r\n".encode()
    with ExitStack() as stack:
        clients = {}
        poller = stack.enter_context(select.epoll())
        for _ in range(connections):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=_STALL_SECONDS))
            clients[client.fileno()] = client
            poller.register(client, select.EPOLLIN)
        began = time.perf_counter()
        asked = dict.fromkeys(clients, began)
        for client in clients.values():
            client.send(question)
        found: list[float] = []
        while (now := time.perf_counter()) < began + seconds:
            ready = poller.poll(_STALL_SECONDS)
            if not ready:
                raise BenchFailed(f"HEAD {path} on port {port}: no answer in {_STALL_SECONDS:g} s")
            for number, _ in ready:
                answer = clients[number].recv(_ANSWER)
                if not (answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"\r\n\r\n")):
                    raise BenchFailed(f"HEAD {path} on port {port}: {answer.decode(errors='replace')[:300]!r}")
                now = time.perf_counter()
                found.append(now - asked[number])
                asked[number] = now
                clients[number].send(question)
        return Requests(len(found), now - began, percentile(found, 50), percentile(found, 99))


def percentile(found: Sequence[float], percent: int) -> float:
    """The value below which so many percent of them lie; of few, the nearest one."""
    ordered = sorted(found)
    return ordered[min(len(ordered) - 1, round(len(ordered) * percent / 100))]


def _read_result(text: str, path: str) -> Requests:
    result = next((line for line in text.splitlines() if line.startswith("RESULT ")), None)
    if result is None:
        raise BenchFailed(f"wrk failed: {text}")
    count, duration, p50, p99, wrong = map(int, result.split()[1:])
    if wrong:
        raise BenchFailed(f"GET {path}: {wrong} of {count} answers were not good")
    return Requests(count, duration / 1e6, p50 / 1e6, p99 / 1e6)

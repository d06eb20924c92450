"""The questions about warm pulls, and the rounds in which every server answers each of them in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.image import Image, blob_path
from bench.load import download, request
from bench.machine import cpu_seconds
from bench.servers import Server

Kind = Literal["blob", "manifest"]
NAMES = ("blob-1", "blob-8", "manifest-tag", "manifest-digest")
CONNECTIONS = 64
"""Keep-alive connections that ask for manifests."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured: rounds, bytes a server sends for a blob question, seconds for a manifest question."""

    rounds: int
    blob_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Sample:
    """One server's answer to one question in one round.

    `amount` is bytes for blobs and requests for manifests; `cpu` the seconds that the server's process group used.
    """

    question: str
    server: str
    round: int
    amount: int
    seconds: float
    cpu: float
    p50: float | None = None
    p99: float | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """Something that every server is asked in the same way."""

    name: str
    title: str
    kind: Kind
    ask: Callable[[Server, Effort], tuple[int, float, float | None, float | None]]
    """Returns amount, seconds, p50 and p99."""


def questions(home: Path, image: Image) -> list[Question]:
    """All of them."""
    return [
        _blob(image, 1),
        _blob(image, 8),
        _manifest(home, "manifest-tag", "Warm manifest by tag", image.by_tag),
        _manifest(home, "manifest-digest", "Warm manifest by digest", image.by_digest),
    ]


def measure(question: Question, servers: Sequence[Server], effort: Effort) -> Iterator[Sample]:
    """Rounds of all servers in turn, so that whatever else the machine does meets all of them."""
    for number in range(effort.rounds):
        for server in servers:
            before = cpu_seconds(server.group)
            amount, seconds, p50, p99 = question.ask(server, effort)
            cpu = cpu_seconds(server.group) - before
            yield Sample(question.name, server.name, number, amount, seconds, cpu, p50, p99)


def _blob(image: Image, connections: int) -> Question:
    def ask(server: Server, effort: Effort) -> tuple[int, float, None, None]:
        times = max(1, round(effort.blob_bytes / image.size / connections))
        seconds = download(server.port, blob_path(image.layer), image.size, connections, times)
        return image.size * connections * times, seconds, None, None

    many = "connection" if connections == 1 else "connections"
    title = f"Warm blob of {image.size / (1 << 20):g} MiB, {connections} {many}"
    return Question(f"blob-{connections}", title, "blob", ask)


def _manifest(home: Path, name: str, title: str, path: str) -> Question:
    def ask(server: Server, effort: Effort) -> tuple[int, float, float, float]:
        got = request(home, server.port, path, CONNECTIONS, effort.seconds)
        return got.count, got.seconds, got.p50, got.p99

    return Question(name, f"{title}, {CONNECTIONS} keep-alive connections", "manifest", ask)

"""How everything is measured: servers on a core of their own, asked in turn, round by round; what fails is a row."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rich.console import Console

from bench import machine
from bench.figures import Answer, Case
from bench.image import BenchFailed, Image, fetch
from bench.servers import PLAIN, SERVERS, TITLES, Server, Shape, lacking
from bench.site import Upstream

# Whatever goes wrong in one place shall not cost the figures of all the others; the end-to-end tests' helpers fail
# and skip with exceptions of their own.
FAILURES = (Exception, pytest.fail.Exception, pytest.skip.Exception)
_OUR_PATHS = re.compile(r"/\S*/mirror-bench-[^/\s]*/")  # what is kept shall not say where it was measured
_WORDS = 300
_QUIET_SECONDS = 0.1
_QUIET_CPU = 0.002
_SETTLE_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured; sizes in bytes, times in seconds."""

    rounds: int
    seconds: float
    """For one figure that is measured over a time."""
    blob: int = 256 << 20
    """A large blob."""
    herd_blob: int = 64 << 20
    herd: int = 100
    small: int = 200
    """Blobs whose first byte is waited for."""
    image: int = 200 << 20
    """A real image's files, before they are compressed."""
    objects: int = 1_000_000
    disk_blob: int = 32 << 20
    """A blob that is not in memory."""
    disk_seconds: float = 4.0
    """Of each phase with a slow disk, and without."""


FULL = Effort(rounds=3, seconds=2)
QUICK = Effort(
    rounds=1, seconds=1, blob=64 << 20, herd_blob=16 << 20, small=50, image=60 << 20, objects=20_000, disk_seconds=2.0
)
TINY = Effort(
    rounds=1, seconds=0.2, blob=2 << 20, herd_blob=1 << 20, herd=5, small=5, image=2 << 20, objects=100,
    disk_blob=8 << 20, disk_seconds=1.0,
)  # fmt: skip
"""For the tests of the bench."""


@dataclass(frozen=True, slots=True)
class Bench:
    """Where and with what a question is asked."""

    home: Path
    console: Console
    cores: machine.Cores
    effort: Effort
    servers: Sequence[str] = field(default_factory=lambda: list(SERVERS))
    """Names of those that are wanted."""

    def rivals(self, *without: str) -> list[str]:
        """The wanted ones but these."""
        return [name for name in self.servers if name not in without]


def record(answer: Answer, case: Case, server: str, measure: Callable[[], Mapping[str, float]]) -> None:
    """Adds a round to a row; a failure ends the row."""
    row = answer.row(case, server)
    if row.failure is not None:
        return
    try:
        row.note(measure())
    except FAILURES as error:
        row.failure = reason(error)


@contextmanager
def or_failed(answer: Answer, case: Case, server: str) -> Iterator[None]:
    """What goes wrong within ends this row, and nothing else."""
    try:
        yield
    except FAILURES as error:
        answer.row(case, server).failure = reason(error)


def reason(error: BaseException) -> str:
    """The failure in one line."""
    text = " ".join(str(error).split())
    if not isinstance(error, BenchFailed):
        text = f"{type(error).__name__}: {text}"
    return _OUR_PATHS.sub("…/", text)[:_WORDS]


@contextmanager
def standing(
    bench: Bench,
    answer: Answer,
    cases: Sequence[Case],
    names: Sequence[str],
    behind: Upstream,
    prepare: Callable[[Server], None] = lambda server: None,
    shape: Shape = PLAIN,
) -> Iterator[list[Server]]:
    """Starts these servers on a core of their own and prepares them; one that fails has failed all the cases."""
    with ExitStack() as stack:
        running = []
        for name in names:
            try:
                server = stack.enter_context(started(bench, name, behind, shape))
                prepare(server)
                running.append(server)
                answer.servers[name] = server.what
            except FAILURES as error:
                answer.servers.setdefault(name, TITLES[name])
                for case in cases:
                    answer.row(case, name).failure = reason(error)
        yield running


@contextmanager
def started(bench: Bench, name: str, behind: Upstream, shape: Shape = PLAIN) -> Iterator[Server]:
    """One server with an empty cache, alone on its core. Raises one of FAILURES."""
    if (why := lacking(name)) is not None:
        raise BenchFailed(why)
    number = sum(1 for _ in bench.home.glob(f"{name}-*"))
    room = bench.home / f"{name}-{number}"
    room.mkdir()
    with ExitStack() as stack:
        with machine.pinned(bench.cores.server):
            server = stack.enter_context(SERVERS[name](room, behind, shape))
        yield server


def warm(behind: Upstream, image: Image) -> Callable[[Server], None]:
    """Pulls all of the image, by both names, looks at every byte, and again until the upstream is not asked for it."""

    def pull(server: Server) -> None:
        for path in (image.by_tag, image.by_digest, *(blob.path for blob in image.blobs)):
            fetch(server.port, path, tls=server.tls)
        if (
            fetch(server.port, image.by_tag, tls=server.tls)[1]
            != fetch(server.port, image.by_digest, tls=server.tls)[1]
        ):
            raise BenchFailed(f"{server.what} gives two manifests for one tag")
        deadline = time.monotonic() + _SETTLE_SECONDS
        while True:
            settle(server)
            before = behind.sent()
            for blob in image.blobs:
                fetch(server.port, blob.path, tls=server.tls)
            if behind.sent() == before:
                return
            if time.monotonic() > deadline:
                raise BenchFailed(f"{server.what} does not hold what it has fetched")

    return pull


def settle(server: Server) -> None:
    """Waits until the server has nothing left to do, as far as its CPU time tells."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    before = machine.cpu_seconds(server.group)
    while time.monotonic() < deadline:
        time.sleep(_QUIET_SECONDS)
        now = machine.cpu_seconds(server.group)
        if now - before < _QUIET_CPU:
            return
        before = now


def in_rounds(bench: Bench, servers: Sequence[Server]) -> Iterator[Server]:
    """Every server in turn, again in each round, so that whatever else the machine does meets all of them."""
    for _ in range(bench.effort.rounds):
        yield from servers

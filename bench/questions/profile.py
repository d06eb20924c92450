"""Where does the mirror's own time go? Shares of the kernel, and of the functions of its event loop."""

from __future__ import annotations

import os
import pstats
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from bench import machine
from bench.figures import Answer, Case
from bench.image import Image, fetch
from bench.load import request
from bench.questions.manifests import CONNECTIONS
from bench.readers import flow, read
from bench.rounds import FAILURES, Bench, reason, record
from bench.servers import MIRROR
from bench.site import Site, Upstream, upstream
from tests.e2e.mirrors import MirrorProcess
from tests.e2e.processes import Process, free_port, listens
from tests.upstream.certificates import CA_FILE, KEY_FILE

_ROWS = 12
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_WAITING = "'poll' of 'select.epoll'"
_STOP_SECONDS = 60.0
_TICKS = os.sysconf("SC_CLK_TCK")
Work = Callable[[int], None]


def ask(bench: Bench) -> Answer:
    """A run of each kind of work without the profiler, for the kernel's share, and another with it."""
    answer = Answer("profile", "Where the mirror's time goes")
    site = Site(bench.home / "profile-site")
    image = site.add("library/profile", [bench.effort.blob])
    cold = [site.add(f"library/profile-cold-{number}", [bench.effort.blob]) for number in range(2)]
    kernel = answer.case(Case("kernel", "Of the CPU time", ("kernel_share", "loop_share"), subject="work"))
    with upstream(bench.home / "profile-upstream", site) as behind:
        for name, title, works, tls in (
            ("manifest", "Warm manifest by tag", [partial(_manifests, bench, image)] * 2, False),
            ("blob", "Warm blob, 8 connections", [partial(_blobs, bench, image, tls=False)] * 2, False),
            ("tls", "Warm blob over TLS, 8 connections", [partial(_blobs, bench, image, tls=True)] * 2, True),
            ("cold", "Cold blob", [partial(_cold, one) for one in cold], False),
        ):
            answer.servers[name] = title
            case = answer.case(
                Case(name, f"{title}: functions of the event loop's thread", ("share", "calls"), subject="function")
            )
            record(answer, kernel, name, partial(_kernel, bench, behind, image, works[0], tls=tls))
            try:
                for function, figures in _functions(bench, behind, image, works[1], tls=tls).items():
                    answer.row(case, function).note(figures)
            except FAILURES as error:
                answer.row(case, MIRROR).failure = reason(error)
    return answer


def _manifests(bench: Bench, image: Image, port: int) -> None:
    request(bench.home, port, image.by_tag, CONNECTIONS, bench.effort.seconds)


def _blobs(bench: Bench, image: Image, port: int, *, tls: bool) -> None:
    flow(port, image.layers[0], 8, bench.effort.seconds, lambda: 0.0, tls=tls)


def _cold(image: Image, port: int) -> None:
    fetch(port, image.by_tag)
    read(port, image.layers)


def _kernel(bench: Bench, behind: Upstream, image: Image, work: Work, *, tls: bool) -> Mapping[str, float]:
    with _mirror(bench, behind, image, (), tls=tls) as (process, port):
        whole, loop = Path(f"/proc/{process.pid}"), Path(f"/proc/{process.pid}/task/{process.pid}")
        before, loop_before = _times(whole), _times(loop)
        work(port)
        user, system = (now - then for now, then in zip(_times(whole), before, strict=True))
        own = sum(_times(loop)) - sum(loop_before)
    return {"kernel_share": 100 * system / (user + system), "loop_share": 100 * own / (user + system)}


def _functions(
    bench: Bench, behind: Upstream, image: Image, work: Work, *, tls: bool
) -> Mapping[str, Mapping[str, float]]:
    """Those that take the most time themselves, without waiting, and without what a start and an end take."""
    idle = _profiled(bench, behind, image, lambda port: None, tls=tls)
    busy = _profiled(bench, behind, image, work, tls=tls)
    own = {
        name: (seconds - idle.get(name, (0.0, 0))[0], calls - idle.get(name, (0.0, 0))[1])
        for name, (seconds, calls) in busy.items()
    }
    own = {name: figures for name, figures in own.items() if figures[1] > 0}
    total = sum(max(0.0, seconds) for seconds, _ in own.values())
    most = sorted(own.items(), key=lambda item: item[1][0], reverse=True)[:_ROWS]
    return {name: {"share": 100 * seconds / total, "calls": float(calls)} for name, (seconds, calls) in most}


def _profiled(bench: Bench, behind: Upstream, image: Image, work: Work, *, tls: bool) -> dict[str, tuple[float, int]]:
    """Seconds and calls of each function in a whole life of a mirror."""
    file = bench.home / "profile.out"
    with _mirror(bench, behind, image, ("-m", "cProfile", "-o", str(file)), tls=tls) as (_, port):
        work(port)
    stats = pstats.Stats(str(file)).stats  # type: ignore[attr-defined] # typeshed keeps it to itself
    return {_named(*where): (row[2], row[1]) for where, row in stats.items() if _WAITING not in where[2]}


@contextmanager
def _mirror(
    bench: Bench, behind: Upstream, image: Image, prefix: tuple[str, ...], *, tls: bool
) -> Iterator[tuple[Process, int]]:
    """A mirror that holds the image, run by Python with these arguments in front."""
    home = bench.home / f"profiled-{sum(1 for _ in bench.home.glob('profiled-*'))}"
    home.mkdir()
    port = free_port()
    settings = {"tls": {"certificate": str(CA_FILE), "key": str(KEY_FILE)}} if tls else {}
    config = MirrorProcess(home, port).configure({"docker.io": {"url": behind.url}}, tag_ttl="1d", **settings)
    env = {name: value for name, value in os.environ.items() if not name.startswith("MIRROR_")}
    argv: list[str | Path] = [sys.executable, *prefix, "-m", "mirror", "serve", "--config", config]
    with machine.pinned(bench.cores.server):
        process = Process(argv, log=home / "mirror.log", env=env)
    try:
        process.wait_until(lambda: listens(port), seconds=_STOP_SECONDS)
        for path in (image.by_tag, *(blob.path for blob in image.blobs)):
            fetch(port, path, tls=tls)
        yield process, port
    finally:
        process.stop(seconds=_STOP_SECONDS)


def _times(what: Path) -> tuple[float, float]:
    """User and system seconds of a process, or of one of its threads, by its directory in /proc."""
    fields = (what / "stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) / _TICKS, int(fields[12]) / _TICKS


def _named(file: str, line: int, function: str) -> str:
    """A function as a reader looks for it: `mirror/api/sender.py send`, or the built-in's own name."""
    if file == "~":
        return _ADDRESS.sub("", function.strip("<>")).replace("built-in method ", "").replace("method ", "")
    path = Path(file)
    with suppress(ValueError):
        path = path.relative_to(Path(__file__).parents[2])
    parts = path.parts
    if "site-packages" in parts:
        parts = parts[parts.index("site-packages") + 1 :]
    elif path.is_absolute():
        parts = parts[-2:]
    return f"{'/'.join(parts)} {function}"

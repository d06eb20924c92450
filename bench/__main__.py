"""`python -m bench`: warm pulls from the mirror and its rivals; with `--objects N`, whether a full cache costs more."""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import tempfile
from collections.abc import Callable, Collection
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from bench import machine, objects, report
from bench.image import BenchFailed, read_image
from bench.load import WRK, can_request
from bench.questions import NAMES, Effort, Sample, measure, questions
from bench.servers import SERVERS, Server, Upstream, installed, upstream

FULL = Effort(rounds=5, blob_bytes=4 << 30, seconds=3)
QUICK = Effort(rounds=2, blob_bytes=1 << 30, seconds=1)


def main(arguments: list[str] | None = None) -> int:
    """Measures and prints; the exit code is 0 where every server that is installed answered every question."""
    options = _parser().parse_args(arguments)
    console = Console()
    cores = machine.choose_cores()
    if cores.load == cores.server:
        console.print("[yellow]Only one core: the load takes time from the servers. Read the CPU figures.[/yellow]")
    effort = QUICK if options.quick else FULL
    effort = Effort(options.rounds or effort.rounds, options.blob_bytes or effort.blob_bytes, effort.seconds)
    try:
        with (
            machine.pinned(cores.load),
            tempfile.TemporaryDirectory(prefix="mirror-bench-", dir=options.directory) as home,
        ):
            if options.objects:
                return objects.run(console, Path(home), options.objects, effort, cores, options.json)
            return _warm_pulls(console, Path(home), options, effort, cores.server)
    except (BenchFailed, OSError, RuntimeError) as error:
        print(f"bench failed: {error}", file=sys.stderr)
        return 1


def _warm_pulls(console: Console, home: Path, options: argparse.Namespace, effort: Effort, core: int) -> int:
    about = _about()
    samples: list[Sample] = []
    with ExitStack() as stack:
        behind = stack.enter_context(upstream(home, options.blob_size, read_image))
        servers = _start(console, stack, home, behind, options.servers, core)
        titles = {server.name: server.what for server in servers}
        asked = [question for question in questions(home, behind.image) if question.name in options.only]
        if not can_request():
            console.print(f"left out: manifests, since {WRK} is not installed")
            asked = [question for question in asked if question.kind == "blob"]
        for question in asked:
            found = list(measure(question, servers, effort))
            report.show(console, question, report.summarise(question.kind, found), titles)
            samples += found
        console.print("Ratios: the mirror's figure over this server's, median of the rounds.")
    about |= {"servers": titles, "rounds": effort.rounds, "load_average_after": os.getloadavg()}
    if options.json:
        report.write_json(options.json, about, asked, samples)
    return 0


def _start(
    console: Console, stack: ExitStack, home: Path, behind: Upstream, wanted: list[str], core: int
) -> list[Server]:
    """Starts those of the wanted servers that are installed, warm and on `core`."""
    servers = []
    for name in wanted:
        program, start = SERVERS[name]
        if program is not None and not installed(program):
            console.print(f"left out: {name}, since {program} is not installed")
            continue
        room = home / name
        room.mkdir()
        with machine.pinned(core):
            servers.append(stack.enter_context(start(room, behind)))
    return servers


def _about() -> dict[str, object]:
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"date": date, "machine": machine.describe(), "load_average_before": os.getloadavg()}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a short run, to see that everything works")
    parser.add_argument("--rounds", type=int, help=f"how often each server is asked (default: {FULL.rounds})")
    parser.add_argument("--servers", type=_some(SERVERS), default=list(SERVERS), help=f"of {','.join(SERVERS)} (all)")
    parser.add_argument("--only", type=_some(NAMES), default=list(NAMES), help=f"of {','.join(NAMES)} (all)")
    parser.add_argument("--blob-size", type=_mebibytes, default=256 << 20, metavar="MIB", help="default: 256")
    parser.add_argument("--blob-bytes", type=_mebibytes, metavar="MIB", help="sent for each blob figure")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there too")
    parser.add_argument("--directory", type=Path, help="where caches are made (default: the temporary one)")
    parser.add_argument("--objects", type=int, metavar="N", help="compare a cache of N blobs with an empty one instead")
    return parser


def _some(names: Collection[str]) -> Callable[[str], list[str]]:
    """Reads names with commas between them, of those that there are."""

    def read(text: str) -> list[str]:
        chosen = text.split(",")
        if unknown := [name for name in chosen if name not in names]:
            raise argparse.ArgumentTypeError(f"there is no {', '.join(unknown)}; there are {', '.join(names)}")
        return chosen

    return read


def _mebibytes(text: str) -> int:
    return round(float(text) * (1 << 20))


if __name__ == "__main__":
    sys.exit(main())

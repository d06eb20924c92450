"""`python -m bench [QUESTION ...]`: the mirror beside its rivals, one table after the other."""

from __future__ import annotations

import argparse
import datetime
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import machine, report
from bench.figures import Answer
from bench.questions import QUESTIONS
from bench.rounds import FAILURES, FULL, QUICK, TINY, Bench, Effort, reason
from bench.servers import MIRROR, SERVERS

_WIDTH = 140  # where there is no terminal to ask


def main(arguments: list[str] | None = None) -> int:
    """Measures and prints; the exit code is 0 where the mirror answered every question."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # and end what was started
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    cores = machine.choose_cores()
    if cores.load == cores.server:
        console.print("[yellow]Only one core: the load takes time from the servers. Read the CPU figures.[/yellow]")
    good = True
    for name in options.questions or QUESTIONS:
        answer, about = _ask(name, console, cores, options)
        if answer is None:
            good = False
            continue
        if options.json:
            report.write(options.json, about, [answer])
        report.show(console, answer)
        good = good and not any(row.failure for rows in answer.rows.values() for row in _of_mirror(rows))
    console.print("Ratios: the mirror's figure over this server's in the same round, median of the rounds.")
    return 0 if good else 1


def _ask(
    name: str, console: Console, cores: machine.Cores, options: argparse.Namespace
) -> tuple[Answer | None, Mapping[str, Any]]:
    """Asks one question in a directory of its own; None where it could not be asked at all."""
    load, began = os.getloadavg()[0], time.monotonic()
    effort = _effort(options)
    answer = None
    with (
        machine.pinned(cores.load),
        tempfile.TemporaryDirectory(prefix="mirror-bench-", dir=options.directory, ignore_cleanup_errors=True) as home,
    ):
        try:
            answer = QUESTIONS[name](Bench(Path(home), console, cores, effort, options.servers))
        except FAILURES as error:
            print(f"bench: {name} failed: {reason(error)}", file=sys.stderr)
    about = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine.describe(),
        "rounds": effort.rounds,
        "seconds": round(time.monotonic() - began),
        "load_average": [round(load, 2), round(os.getloadavg()[0], 2)],
    }
    return answer, about


def _of_mirror(rows: Mapping[str, Any]) -> list[Any]:
    return [row for server, row in rows.items() if server.startswith(MIRROR)]


def _effort(options: argparse.Namespace) -> Effort:
    effort = TINY if options.tiny else QUICK if options.quick else FULL
    if options.objects:
        effort = replace(effort, objects=options.objects)
    return replace(effort, rounds=options.rounds) if options.rounds else effort


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "questions", nargs="*", type=_one(QUESTIONS), metavar="QUESTION", help=f"of {' '.join(QUESTIONS)}"
    )
    parser.add_argument("--quick", action="store_true", help="a short run, to see that everything works")
    parser.add_argument("--tiny", action="store_true", help="a shorter one still, whose figures mean nothing")
    parser.add_argument("--rounds", type=int, help=f"how often each server is asked (default: {FULL.rounds})")
    parser.add_argument("--servers", type=_some(SERVERS), default=list(SERVERS), help=f"of {','.join(SERVERS)} (all)")
    parser.add_argument("--objects", type=int, metavar="N", help=f"blobs of a full cache (default: {FULL.objects:,})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="note all figures there; other questions' stay")
    parser.add_argument("--directory", type=Path, help="where caches are made (default: the temporary one)")
    return parser


def _one(names: Collection[str]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"there is no {text}; there are {', '.join(names)}")
        return text

    return read


def _some(names: Collection[str]) -> Callable[[str], list[str]]:
    """Reads names with commas between them, of those that there are."""

    def read(text: str) -> list[str]:
        return [_one(names)(name) for name in text.split(",")]

    return read


if __name__ == "__main__":
    sys.exit(main())

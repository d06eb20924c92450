"""`python -m examples.demo`: starts an upstream and a mirror, plays the story, prints the tables, stops everything."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from examples.demo import report, story
from examples.demo.client import PullFailed
from examples.demo.stage import Shape, Stage


def main(arguments: list[str] | None = None) -> int:
    """Plays it; the exit code is 0 where all went well."""
    options = _parser().parse_args(arguments)
    console = Console()
    signal.signal(signal.SIGTERM, _leave)
    shape = Shape((story.IMAGE, story.HERD_IMAGE), options.layer_size, options.rate, options.latency)
    try:
        with tempfile.TemporaryDirectory(prefix="mirror-demo-") as home:
            return _run(console, Stage(Path(home), shape), options.clients)
    except KeyboardInterrupt:
        return 130


def _run(console: Console, stage: Stage, clients: int) -> int:
    try:
        with stage:
            console.print(f"Upstream: a registry {stage.distance} away. Mirror: 127.0.0.1:{stage.port}.")
            acts = story.play(stage, clients, lambda text: console.print(f"[dim]… {text}[/dim]"))
            amplification = stage.amplification()
    except (PullFailed, story.PromiseBroken, OSError, RuntimeError) as error:
        print(f"demo failed: {error}\n{stage.last_words()}", file=sys.stderr)
        return 1
    report.show(console, acts, amplification)
    return 0


def _leave(number: int, _: object) -> NoReturn:
    """SIGTERM ends the demonstration as an error would: everything is stopped on the way out."""
    raise SystemExit(128 + number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument("--layer-size", default="32MiB", help="the largest layer of each image (default: 32MiB)")
    parser.add_argument("--rate", default="48MiB/s", help="what the upstream sends altogether (default: 48MiB/s)")
    parser.add_argument("--latency", type=float, default=0.02, metavar="SECONDS", help="before each of its answers")
    parser.add_argument("--clients", type=int, default=8, help="how many pull at the same moment (default: 8)")
    return parser


if __name__ == "__main__":
    sys.exit(main())

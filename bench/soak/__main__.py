"""`python -m bench.soak`: half an hour of clients of all kinds, an upstream in trouble, and too little room."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from bench.image import BenchFailed
from bench.soak import verdict
from bench.soak.run import run


def main(arguments: list[str] | None = None) -> int:
    """Runs and prints; the exit code is 0 where every promise was kept."""
    options = _parser().parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="mirror-soak-", dir=options.directory) as home:
            done = run(Path(home), options.minutes * 60, options.seed, lambda line: print(line, flush=True))
    except (BenchFailed, OSError, RuntimeError) as error:
        print(f"soak failed: {error}", file=sys.stderr)
        return 1
    found = verdict.summary(done)
    print(verdict.table(found))
    print(*found["examples"], sep="\n")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if all(check.good for check in verdict.checks(done)) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="default: 30; trends are judged from 10 on")
    parser.add_argument("--seed", type=int, default=1, help="of what is asked and of what goes wrong (default: 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found there")
    parser.add_argument("--directory", type=Path, help="where the cache is made (default: the temporary one)")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""Plays the whole table, or the rows that are named: `python -m tests.faults [--workers N] [ROW ...]`.

Rows by name tell their story. The whole table, where nothing was wrong in it, is noted for the documentation, unless it
was played with several workers.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time

import structlog

from tests.faults.constraints import every_row
from tests.faults.grammar import Row
from tests.faults.judgement import judge
from tests.faults.runner import play_all
from tests.faults.scene import Story
from tests.faults.table import write_table


def main(arguments: list[str]) -> int:
    """Returns how many rows were wrong."""
    workers, names = 1, arguments
    if arguments[:1] == ["--workers"]:
        workers, names = int(arguments[1]), arguments[2:]
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # the fake's: clients leave it all the time
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("info" if names else "critical"))
    rows = [Row.of(name) for name in names] or every_row()
    stories: list[Story] = []
    wrong = 0

    def told(row: Row, outcome: Story | BaseException) -> None:
        nonlocal wrong
        problems = judge(outcome) if isinstance(outcome, Story) else [f"the test itself failed: {outcome!r}"]
        if isinstance(outcome, Story):
            stories.append(outcome)
            if names:
                print(outcome)
        for problem in problems:
            print(f"{row.id}: {problem}")
        wrong += bool(problems)
        if not names and len(stories) % 100 == 0:
            print(f"{len(stories)} of {len(rows)} rows", flush=True)

    began = time.monotonic()
    for complaint in asyncio.run(play_all(rows, told, workers=workers)):
        print(complaint)
        wrong += 1
    print(f"{len(rows)} rows in {time.monotonic() - began:.0f} s, {wrong} wrong")
    if not names and not wrong and workers == 1:
        write_table(stories)
    return wrong


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))

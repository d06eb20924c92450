"""`python -m bench.soak.clients`: many clients of all kinds at once, until SIGTERM; what they saw goes to a file."""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
from pathlib import Path

import aiohttp

from bench.soak.asking import Asker
from bench.soak.tally import Tally
from bench.soak.workload import Workload

_SAVED_EVERY = 1.0


async def _run(url: str, count: int, strangers: int, seed: int, file: Path) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    tally = Tally()
    async with (
        aiohttp.ClientSession(
            auto_decompress=False,
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),
        ) as session,
        asyncio.TaskGroup() as group,
    ):
        workload = Workload(Asker(session, url, tally), random.Random(seed))
        tasks = [group.create_task(workload.run(strangers // count)) for _ in range(count)]
        tasks.append(group.create_task(_save(tally, file)))
        await stopped.wait()
        for task in tasks:
            task.cancel()
    tally.save(file)


async def _save(tally: Tally, file: Path) -> None:
    while True:
        tally.save(file)
        await asyncio.sleep(_SAVED_EVERY)


def main() -> None:
    """Parses the command line and asks until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak.clients", description=__doc__)
    parser.add_argument("--url", required=True, help="of the mirror")
    parser.add_argument("--count", type=int, required=True, help="clients at once")
    parser.add_argument("--strangers", type=int, required=True, help="that come first, to ask for what there is not")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--file", type=Path, required=True)
    options = parser.parse_args()
    asyncio.run(_run(options.url, options.count, options.strangers, options.seed, options.file))


if __name__ == "__main__":
    main()

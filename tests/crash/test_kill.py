"""kill -9 again and again while the mirror downloads, evicts and follows tags: nothing wrong is left, little lost."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from tests.crash.chain import Chain
from tests.crash.crowd import MIB, TAG_TTL, Crowd, World
from tests.crash.lives import Home
from tests.crash.seeds import KILLS, seeds
from tests.e2e.processes import held_port
from tests.upstream import FakeRegistry

CHAINS = 4
CLIENTS = 6
SMALL, ROOMY = 24 * MIB, 1 << 30
UPSTREAM_RATE = 24 * MIB


@pytest.mark.timeout(60 + 5 * KILLS)
@pytest.mark.parametrize("seed", seeds(CHAINS))
async def test_nothing_wrong_is_left_by_a_kill(seed: int, upstream: FakeRegistry, tmp_path: Path) -> None:
    """After each of them all blobs are right, nothing partial looks whole, the budget holds, what was there is not
    fetched again, no tag goes back, and every client gets all that it asked for.
    """
    choice = random.Random(seed)
    upstream.rate = UPSTREAM_RATE
    max_size = SMALL if seed % 2 else ROOMY
    settings = {
        "storage": {"max_size": max_size, "min_free": "0%"},
        "timeouts": {"try": "10s", "stale_after": "10s", "first_byte": "15s", "cold_head": "10s"},
        "upstreams": {"docker.io": {"url": upstream.url}},
        "tag_ttl": f"{TAG_TTL:g}s",
    }
    with held_port() as port:
        home, world = Home(tmp_path, port, settings), World(upstream, choice)
        crowd = Crowd(home, world, choice)
        chain = Chain(home, world, crowd, choice, max_size)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(crowd.pull_for_ever()) for _ in range(CLIENTS)]
                tasks.append(group.create_task(world.keep_moving()))
                for _ in range(KILLS // CHAINS):
                    await chain.live()
                await chain.outlive(2 * CLIENTS)
                for task in tasks:
                    task.cancel()
        finally:
            await crowd.close()
    print(seed, chain.figures, crowd.counted)
    assert chain.figures.evicted or max_size == ROOMY, "nothing was evicted, so this test has shown little"

"""kill -9 again and again while the mirror downloads, evicts and follows tags: nothing wrong is left, little lost."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from tests.crash.chain import Chain, CrewChain
from tests.crash.crowd import MIB, REPOSITORY, TAG_TTL, Crowd, World
from tests.crash.dying import Moment
from tests.crash.lives import Home
from tests.crash.seeds import KILLS, seeds
from tests.e2e.processes import held_port
from tests.storing import path_of, until
from tests.upstream import FakeRegistry, Image

CHAINS = 4
CLIENTS = 6
SMALL, ROOMY = 24 * MIB, 1 << 30
UPSTREAM_RATE = 24 * MIB
AT_START = [
    Moment("mkdir", "blobs", 2, after=True),
    Moment("open", "unsettled", 1, after=True),
    Moment("open", "blobs", 1, after=False),
    Moment("scan", "spool", 1, after=False),
]
AT_END = Moment("fsync", "unsettled", 1, after=False)


def settings_for(upstream: FakeRegistry, max_size: int) -> dict[str, Any]:
    """For a mirror that has patience with a busy machine."""
    return {
        "storage": {"max_size": max_size, "min_free": "0%"},
        "timeouts": {"try": "10s", "stale_after": "10s", "first_byte": "15s", "cold_head": "10s"},
        "upstreams": {"docker.io": {"url": upstream.url}},
        "tag_ttl": f"{TAG_TTL:g}s",
    }


@pytest.mark.timeout(60 + 5 * KILLS)
@pytest.mark.parametrize("seed", seeds(CHAINS))
async def test_nothing_wrong_is_left_by_a_kill(seed: int, upstream: FakeRegistry, tmp_path: Path) -> None:
    """After each of them all blobs are right, nothing partial looks whole, the budget holds, what was there is not
    fetched again, no tag goes back, and every client gets all that it asked for.
    """
    await check_kills(seed, upstream, tmp_path, Chain, KILLS // CHAINS)


@pytest.mark.timeout(60 + 5 * KILLS)
@pytest.mark.parametrize("seed", seeds(CHAINS // 2))
async def test_nothing_wrong_is_left_by_a_kill_of_workers(seed: int, upstream: FakeRegistry, tmp_path: Path) -> None:
    """The same with two of them, which are killed one by one, all at once, or by the loss of their supervisor."""
    await check_kills(seed, upstream, tmp_path, CrewChain, KILLS // CHAINS // 2, workers=2)


async def check_kills(
    seed: int, upstream: FakeRegistry, tmp_path: Path, kind: type[Chain], lives: int, **settings: Any
) -> None:
    """A chain of so many lives. Asserts all that is promised."""
    choice = random.Random(seed)
    upstream.rate = UPSTREAM_RATE
    max_size = SMALL if seed % 2 else ROOMY
    with held_port() as port:
        home = Home(tmp_path, port, {**settings_for(upstream, max_size), **settings})
        world = World(upstream, choice)
        crowd = Crowd(home, world, choice)
        chain = kind(home, world, crowd, choice, max_size)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(crowd.pull_for_ever()) for _ in range(CLIENTS)]
                tasks.append(group.create_task(world.keep_moving()))
                for _ in range(lives):
                    await chain.live()
                await chain.outlive(2 * CLIENTS)
                for task in tasks:
                    task.cancel()
        finally:
            await crowd.close()
    blobs = upstream.repositories[REPOSITORY].blobs.values()
    twice = sum(max(0, upstream.bytes_for(blob) - blob.size) for blob in blobs) if max_size == ROOMY else None
    print(f"\nseed {seed}, max_size {max_size}: {chain.figures}, {crowd.counted}, fetched twice: {twice}")
    assert chain.figures.evicted or max_size == ROOMY, "nothing was evicted, so this test has shown little"


async def take_all(crowd: Crowd, upstream: FakeRegistry, image: Image) -> None:
    """Pulls the image's blobs. Asserts that they are right, and fetched once by now."""
    for blob in image.blobs:
        body = bytearray()
        await crowd.take(f"blobs/{blob.digest}", body)
        assert bytes(body) == blob.content
        assert upstream.bytes_for(blob) == blob.size


@pytest.mark.timeout(90)
async def test_a_start_may_be_killed_at_any_call(upstream: FakeRegistry, tmp_path: Path) -> None:
    """And so may the end: the next start finds what the first one found, and serves all of it without a fetch."""
    image = upstream.add_image(REPOSITORY, "1", layers=[3 * MIB, MIB, 1000])
    choice = random.Random(1)
    with held_port() as port:
        home = Home(tmp_path, port, settings_for(upstream, ROOMY))
        crowd = Crowd(home, World(upstream, choice), choice)
        try:
            for moment in (None, *AT_START, AT_END, None):
                async with home.life(moment) as life:
                    if await life.serves(port):
                        await take_all(crowd, upstream, image)
                        await until(lambda: all(path_of(home.data, blob.digest).exists() for blob in image.blobs))
                        if moment is AT_END:
                            life.terminate()
                            await life.over()
        finally:
            await crowd.close()

"""`python -m bench.soak.upstream`: the registry of the long run, whose tags move on and which is often in trouble."""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
from collections import deque

from bench.soak import images
from bench.soak.faults import Trouble
from bench.soak.images import FIXED, LAGGING, MOVING, REPOSITORIES, Release
from mirror.oci.digest import Digest
from tests.upstream import Bearer, FakeRegistry

_MOVES_EVERY = 2.0  # seconds between two tags that move
_KEPT = 40  # images of each repository; older ones are removed
_TOKENS_LIVE = 20.0


class Releases:
    """What the registry holds: of each repository the newest images, and the first one."""

    def __init__(self, upstream: FakeRegistry) -> None:
        self._upstream = upstream
        self._kept: dict[str, deque[Release]] = {}
        self._spoilt: set[Digest] = set()
        for repository in REPOSITORIES:
            first = images.add(upstream, repository, 1)
            for tag in images.TAGS:
                upstream.tag(repository, tag, first.image)
            self._kept[repository] = deque([first])

    def is_spoilt(self, digest: Digest | None) -> bool:
        """Whether a wrong byte of this blob is part of the game."""
        return digest in self._spoilt

    def add(self, repository: str, *, lagging: bool) -> None:
        """A new image, to which the moving tag moves; the lagging one moves to where that was, if it is to."""
        kept = self._kept[repository]
        before, new = kept[-1], images.add(self._upstream, repository, kept[-1].number + 1)
        self._upstream.move_tag(repository, MOVING, new.image)
        if lagging:
            self._upstream.move_tag(repository, LAGGING, before.image)
        kept.append(new)
        if new.spoilt:
            self._spoilt.update(blob.digest for blob in new.own)
        if len(kept) > _KEPT:
            self._remove(repository, kept.popleft())

    def _remove(self, repository: str, old: Release) -> None:
        tags = self._upstream.repositories[repository].tags
        if old.image.digest in (tags[FIXED].digest, tags[LAGGING].digest):
            return  # somebody may still ask for it by name
        for blob in old.own:
            self._upstream.remove(repository, blob)
            self._spoilt.discard(blob.digest)
        self._upstream.remove(repository, old.image)
        if old.signature is not None:
            self._upstream.remove(repository, old.signature)


async def _serve(port: int, seed: int) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    choice = random.Random(seed)
    async with FakeRegistry(port=port, auth=Bearer(lifetime=_TOKENS_LIVE), referrers=True) as upstream:
        releases = Releases(upstream)
        trouble = Trouble(upstream, choice, lambda seen: releases.is_spoilt(seen.digest))
        print(f"{upstream.url} serves {len(REPOSITORIES)} repositories", flush=True)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(trouble.run()), group.create_task(_move(releases, choice))]
            await stopped.wait()
            for task in tasks:
                task.cancel()
        upstream.clear_faults()


async def _move(releases: Releases, choice: random.Random) -> None:
    while True:
        await asyncio.sleep(choice.expovariate(1 / _MOVES_EVERY))
        releases.add(choice.choice(REPOSITORIES), lagging=choice.random() < 0.3)


def main() -> None:
    """Parses the command line and serves until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak.upstream", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    options = parser.parse_args()
    asyncio.run(_serve(options.port, options.seed))


if __name__ == "__main__":
    main()

"""One life after the other on one data directory, each with what is asked of it, and with what it leaves."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

import aiohttp

from mirror.oci.digest import Digest
from tests.crash.crowd import Crowd, World
from tests.crash.dying import Moment
from tests.crash.lives import Home, Life
from tests.crash.ruins import Ruins, inspect, size_of

_LONGEST_LIFE = 1.2
"""Seconds under load."""
_AUDITED = 20
_LOOKS = 10
"""At a disk that seems to hold too much: a walk through it counts what goes meanwhile, and what comes in its place."""
_AT_WORK = [
    ("open", "spool"),
    ("write", "spool"),
    ("fsync", "spool"),
    ("write", "unsettled"),
    ("fsync", "unsettled"),
    ("rename", "blobs"),
    ("fsync_directory", "blobs"),
    ("unlink", "blobs"),
    ("unlink", "spool"),
]
_AT_START = [("mkdir", "blobs"), ("open", "unsettled"), ("fsync", "data"), ("unlink", "spool"), ("scan", "blobs")]
_OUTLIVED = {"open", "write", "rename", "unlink", "mkdir", "fsync_directory"}
"""Calls after which, too, a life may end."""


@dataclass
class Figures:
    """What a chain has seen."""

    kills: Counter[str] = field(default_factory=Counter)
    verified: int = 0
    """Blobs read and hashed on the disk after a kill."""
    asked_again: int = 0
    """Of them, those also pulled from the next process before anything else."""
    evicted: int = 0
    resumed: int = 0
    """Bytes that an earlier life had fetched of a blob and that were not fetched again."""
    largest: int = 0
    """Bytes on the disk at most."""
    longest_journal: int = 0


class Chain:
    """What happens on one data directory."""

    kinds: ClassVar = {"time": 9, "call": 8, "start": 2, "leaving": 1}
    """How lives end, by weight: after some time, at a call to the disk, while they begin or while they end in order."""

    def __init__(self, home: Home, world: World, crowd: Crowd, choice: random.Random, max_size: int) -> None:
        self.figures = Figures()
        self._home = home
        self._world = world
        self._crowd = crowd
        self._choice = choice
        self._max_size = max_size
        self._ruins = Ruins({}, {}, [], [])

    async def live(self) -> None:
        """One life: begun, audited, loaded and killed; then a look at what is left."""
        kind = self._choice.choices(list(self.kinds), list(self.kinds.values()))[0]
        self.figures.kills[kind] += 1
        life = await self._home.begin(self._moment(kind))
        self._crowd.life = life
        try:
            if kind == "start":
                await life.ends_within(self._choice.uniform(0, 1))
            elif await life.serves(self._home.port):
                with self._watch():
                    await self._audit(life)
                    await self._load(life, kind)
        finally:
            self._crowd.gate.clear()
            await life.kill()
        self._look()

    async def outlive(self, pulls: int) -> None:
        """The last life: who was interrupted gets what he wanted, and so many images are pulled; it ends in order."""
        async with self._home.life() as life:
            self._crowd.life = life
            assert await life.serves(self._home.port)
            self._crowd.gate.set()
            async with asyncio.timeout(30):
                await self._crowd.pulled(pulls)
            self._crowd.gate.clear()
            life.terminate()
            assert await life.ends_within(15)
        self._look()

    def _moment(self, kind: str) -> Moment | None:
        if kind not in ("call", "start") or (kind == "start" and self._choice.random() < 0.5):
            return None
        method, part = self._choice.choice(_AT_WORK if kind == "call" else _AT_START)
        return Moment(
            method,
            part,
            self._choice.randint(1, 30 if method == "write" else 5),
            after=method in _OUTLIVED and self._choice.random() < 0.5,
        )

    async def _load(self, life: Life, kind: str) -> None:
        """Lets the clients pull until it ends, or the time is over."""
        self._crowd.gate.set()
        seconds = _LONGEST_LIFE if kind == "call" else self._choice.uniform(0.05, _LONGEST_LIFE)
        if not await life.ends_within(seconds) and kind == "leaving":
            life.terminate()
            await life.ends_within(self._choice.uniform(0, 0.3))

    async def _audit(self, life: Life) -> None:
        """Before the clients come: of what was whole nothing is fetched, of what had come in part the rest."""
        held = list(self._ruins.blobs)
        try:
            for digest in self._choice.sample(held, min(_AUDITED, len(held))):
                fetched = await self._fetched(digest)
                assert fetched == 0 or await self._has_swept(), f"{digest} was held, and is fetched again"
                self.figures.asked_again += 1
            for digest, (spool, size) in list(self._ruins.spools.items())[:1]:  # others make room for it
                if spool.exists():
                    missing = self._world.find(digest).size - size
                    assert await self._fetched(digest) == missing, f"of {digest} not just the rest is fetched"
                    self.figures.resumed += size
        except (aiohttp.ClientError, OSError):
            assert await life.ends_within(2), "a living mirror broke an answer off"

    async def _has_swept(self) -> bool:
        return await self._home.counted("mirror_evictions_total") > 0

    async def _fetched(self, digest: Digest) -> int:
        """Content bytes that the upstream sends for a blob while we pull it."""
        body, before = bytearray(), self._world.upstream.bytes_for(digest)
        await self._crowd.take(f"blobs/{digest}", body)
        assert digest.matches(bytes(body)), f"wrong bytes of {digest}"
        return self._world.upstream.bytes_for(digest) - before

    def _look(self) -> None:
        before, self._ruins = self._ruins, inspect(self._home.data)
        self.figures.evicted += len(before.blobs.keys() - self._ruins.blobs.keys())
        self.figures.verified += len(self._ruins.blobs)
        self.figures.longest_journal = max(self.figures.longest_journal, len(self._ruins.noted))
        assert self._ruins.wrong == []
        assert size_of(self._home.data) <= self._max_size

    @contextmanager
    def _watch(self) -> Iterator[None]:
        """Asserts that the disk never holds more than it may."""
        over, done = [], threading.Event()

        def look() -> None:
            while not done.wait(0.02):
                size = size_of(self._home.data)
                for _ in range(_LOOKS if size > self._max_size else 0):
                    size = min(size, size_of(self._home.data))
                self.figures.largest = max(self.figures.largest, size)
                if size > self._max_size:
                    over.append(size)

        watcher = threading.Thread(target=look)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()
        assert over == [], f"the budget is {self._max_size}"


class CrewChain(Chain):
    """The same with two workers: in some lives one after the other is killed, others end with the supervisor alone."""

    kinds: ClassVar = {"time": 2, "start": 1, "leaving": 1, "workers": 4, "supervisor": 2}

    def _moment(self, kind: str) -> Moment | None:
        return None

    async def _load(self, life: Life, kind: str) -> None:
        if kind not in ("workers", "supervisor"):
            await super()._load(life, kind)
            return
        self._crowd.gate.set()
        for _ in range(self._choice.randint(1, 3) if kind == "workers" else 0):
            await asyncio.sleep(self._choice.uniform(0.05, _LONGEST_LIFE))
            life.kill_worker(self._choice.randrange(2))
        await asyncio.sleep(self._choice.uniform(0.05, _LONGEST_LIFE))
        if kind == "supervisor":
            self._crowd.gate.clear()
            await life.kill_supervisor()

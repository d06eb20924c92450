"""Clients that pull all the time, check every byte and every tag, and come again when the mirror dies on them."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field

import aiohttp

from mirror.oci.digest import Digest
from tests.crash.lives import Home, Life
from tests.upstream import FakeRegistry, Image, Stored

REPOSITORY = "library/app"
KIB, MIB = 1 << 10, 1 << 20
TAG_TTL = 1.0
_LATE = 3.0
"""Seconds on top of the TTL: between the upstream's word and our note of it a busy machine may do other things."""
_PATIENCE = 20.0
_RECENT = 14
"""Images that are pulled by digest: the newest ones, together more than the small budget holds."""
_BASES = [300 * KIB, 2 * MIB]


@dataclass
class _Tag:
    """What the upstream has said of a tag: images in order, each with the moment from which on it was meant."""

    said: list[tuple[Image, float]] = field(default_factory=list)
    seen: int = 0
    """The latest of them that a client has got."""

    def place(self, digest: str) -> int:
        """Which of them this is. Raises StopIteration for none."""
        return next(number for number, (image, _) in enumerate(self.said) if str(image.digest) == digest)


class World:
    """The upstream's content, which changes while it is pulled."""

    def __init__(self, upstream: FakeRegistry, choice: random.Random) -> None:
        self.upstream = upstream
        self.images: list[Image] = []
        self._choice = choice
        self._tags = {f"tag{number}": _Tag() for number in range(3)}
        for name in self._tags:
            self.move(name)

    async def keep_moving(self) -> None:
        """Moves one tag after the other, for ever."""
        while True:
            self.move(self._choice.choice(self.tags))
            await asyncio.sleep(self._choice.uniform(0.1, 0.6))

    @property
    def tags(self) -> list[str]:
        """Their names."""
        return list(self._tags)

    def move(self, tag: str) -> None:
        """Makes `tag` mean a new image, which has layers of its own and may have one of the others'."""
        number = len(self.images)
        layers = [self._choice.randrange(20 * KIB, 3 * MIB), self._choice.randrange(1000, 400 * KIB)]
        bases = [self.upstream.put_blob(REPOSITORY, size) for size in _BASES] if not self.images else []
        shared = list(self.images[0].layers[2:]) if self.images else bases
        image = self.upstream.add_image(REPOSITORY, tag, layers=[*layers, *shared], seed=f"image {number}")
        self.images.append(image)
        self._tags[tag].said.append((image, time.monotonic()))

    def latest(self, tag: str) -> int:
        """A number that grows with what clients have been told of the tag."""
        return self._tags[tag].seen

    def check(self, tag: str, digest: str, *, asked_at: float, known: int) -> Image:
        """The image that a client was told `tag` to mean, when its newest was `known`. Asserts that it may be."""
        history = self._tags[tag]
        place = history.place(digest)
        assert place >= known, f"{tag} went back from {known} to {place}"
        if place + 1 < len(history.said):
            too_old = asked_at - history.said[place + 1][1]
            assert too_old <= TAG_TTL + _LATE, f"{tag}: moved away {too_old:.1f} s before the request"
        history.seen = max(history.seen, place)
        return history.said[place][0]

    def recent(self) -> Image:
        """One of the newest images."""
        return self._choice.choice(self.images[-_RECENT:])

    def find(self, digest: Digest) -> Stored:
        """The blob of this digest."""
        return self.upstream.repositories[REPOSITORY].blobs[digest]


@dataclass
class Counted:
    """What clients have done; `most_tries` for one answer."""

    pulls: int = 0
    requests: int = 0
    retries: int = 0
    most_tries: int = 1
    bytes: int = 0


class Crowd:
    """Clients of the mirror at `home`. While `gate` is closed they ask nothing; `life` is who answers them.

    A request may break only where the mirror dies, and is then repeated: from its start, or from where it broke.
    """

    def __init__(self, home: Home, world: World, choice: random.Random) -> None:
        self.gate = asyncio.Event()
        self.life: Life | None = None
        self.counted = Counted()
        self._home = home
        self._world = world
        self._choice = choice
        self._news = asyncio.Event()
        self._session = aiohttp.ClientSession(
            auto_decompress=False,
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(total=_PATIENCE),
        )

    async def close(self) -> None:
        """After the last client."""
        await self._session.close()

    async def pull_for_ever(self) -> None:
        """One client: an image by tag or by digest, its blobs in any order, and then the next one."""
        while True:
            await self.pull()

    async def pull(self) -> None:
        """One image, complete and right. Raises AssertionError where it is not."""
        if self._choice.random() < 0.6:
            tag = self._choice.choice(self._world.tags)
            asked_at, known = time.monotonic(), self._world.latest(tag)
            digest = Digest.of(await self.fetch(f"manifests/{tag}"))
            image = self._world.check(tag, str(digest), asked_at=asked_at, known=known)
        else:
            image = self._world.recent()
            digest = Digest.of(await self.fetch(f"manifests/{image.digest}"))
        assert digest == image.digest
        for blob in self._choice.sample(image.blobs, len(image.blobs)):
            assert blob.digest.matches(await self.fetch(f"blobs/{blob.digest}")), f"wrong bytes of {blob.digest}"
        self.counted.pulls += 1
        self._news.set()

    async def pulled(self, more: int) -> None:
        """Waits until so many images more are pulled."""
        wanted = self.counted.pulls + more
        while self.counted.pulls < wanted:
            self._news.clear()
            await self._news.wait()

    async def fetch(self, path: str) -> bytes:
        """The body, however many mirrors die over it."""
        body, tries = bytearray(), 0
        while True:
            tries += 1
            await self.gate.wait()
            life = self.life
            deaths = life.deaths if life is not None else 0
            try:
                await self.take(path, body)
                break
            except (aiohttp.ClientError, OSError) as error:
                self.counted.retries += 1
                if life is None or not await _may_break(life, deaths):
                    raise AssertionError(f"{path} broke under a living mirror") from error
            if path.startswith("manifests/") or self._choice.random() < 0.3:
                body.clear()
        self.counted.requests += 1
        self.counted.most_tries = max(self.counted.most_tries, tries)
        self.counted.bytes += len(body)
        return bytes(body)

    async def take(self, path: str, body: bytearray) -> None:
        """One request: adds to `body` what it lacks, as far as it comes. Raises ClientError and OSError."""
        headers = {"Range": f"bytes={len(body)}-"} if body else {}
        async with self._session.get(f"{self._home.url}/v2/{REPOSITORY}/{path}", headers=headers) as response:
            if response.status == 503 and self.life is not None and self.life.ending:
                raise aiohttp.ClientConnectionError("it is leaving")
            expected = 206 if body else 200
            assert response.status == expected, f"{path}: {response.status} {await response.text()}"
            async for piece in response.content.iter_any():
                body += piece


async def _may_break(life: Life, deaths: int) -> bool:
    """Whether an answer may have broken off: a worker has died since there were `deaths`, or all of it ends."""
    # Whoever is cut off hears of it before the process has ended.
    if life.deaths == deaths and not (life.ending or await life.ends_within(2)):
        return False
    if life.ending or life.is_over:
        await life.over()
    return True

"""What the clients of the long run do: each method is one kind of client, and knows what the right answer is."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable

from bench.soak import images
from bench.soak.asking import Answer, Asker, Judge
from bench.soak.images import FIXED, LAGGING, MOVING, REPOSITORIES, TAGS, Release
from bench.soak.tally import Outcome
from mirror.oci.manifest import OCI_INDEX
from tests.parts import read_parts
from tests.upstream import Blob

_RECENT = 20
"""How far behind the newest image clients still ask by digest; the upstream keeps more."""
_PART = 200_000


class Workload:
    """Clients that share what they know: the newest image that a tag has meant."""

    def __init__(self, asker: Asker, choice: random.Random) -> None:
        self._asker = asker
        self._choice = choice
        self._newest: dict[tuple[str, str], int] = defaultdict(lambda: 1)
        self._kinds: list[tuple[Callable[[], Awaitable[object]], int]] = [
            (self.pull, 30),
            (self.known_manifest, 10),
            (self.tag_head, 10),
            (self.part, 14),
            (self.parts, 6),
            (self.blob_head, 6),
            (self.has_it_already, 6),
            (self.lists, 6),
            (self.referrers, 5),
            (self.leaver, 8),
            (self.slow_reader, 4),
            (self.stranger, 5),
        ]

    @property
    def kinds(self) -> list[Callable[[], Awaitable[object]]]:
        """Every kind of client."""
        return [kind for kind, _ in self._kinds]

    async def run(self, strangers: int) -> None:
        """One client after the other, without an end, after so many strangers."""
        for _ in range(strangers):
            await self.stranger()
        kinds, weights = zip(*self._kinds, strict=True)
        while True:
            await self._choice.choices(kinds, weights)[0]()
            await asyncio.sleep(self._choice.expovariate(20))

    async def pull(self) -> None:
        """As a container engine does: the tag, then config and layers at once."""
        repository = self._choice.choice(REPOSITORIES)
        tag = self._choice.choice((MOVING, MOVING, MOVING, LAGGING, FIXED))
        known = self._newest[repository, tag]

        def judge(answer: Answer) -> Outcome:
            try:
                number = images.number_of(answer.body)
            except ValueError:
                return Outcome.WRONG
            if answer.body != images.release(repository, number).image.manifest.content:
                return Outcome.WRONG
            return Outcome.RIGHT if number >= known else Outcome.BACK

        answer = await self._asker.ask("manifest by tag", f"/v2/{repository}/manifests/{tag}", judge)
        if answer is None:
            return
        number = images.number_of(answer.body)
        self._newest[repository, tag] = max(number, self._newest[repository, tag])
        await asyncio.gather(
            *(self._blob(repository, blob) for blob in images.release(repository, number).image.blobs)
        )  # fmt: skip

    async def known_manifest(self) -> None:
        """A manifest by digest."""
        repository, release = self._recent()
        manifest = release.image.manifest
        path = f"/v2/{repository}/manifests/{manifest.digest}"
        await self._asker.ask("manifest by digest", path, _is(manifest.content))

    async def tag_head(self) -> None:
        """Whether a tag has moved, without its manifest."""
        repository = self._choice.choice(REPOSITORIES)
        path = f"/v2/{repository}/manifests/{MOVING}"
        await self._asker.ask("HEAD", path, _always, method="HEAD")

    async def part(self) -> None:
        """One range: from the start, in the middle, to the end, or the last bytes."""
        repository, release = self._recent()
        blob = self._choice.choice(release.image.layers)
        first = self._choice.randrange(blob.size)
        last = min(blob.size - 1, first + self._choice.randrange(1, _PART))
        header, first, last = self._choice.choice(
            (
                (f"bytes={first}-{last}", first, last),
                (f"bytes=0-{last}", 0, last),
                (f"bytes={first}-", first, blob.size - 1),
                (f"bytes=-{blob.size - first}", first, blob.size - 1),
            )
        )

        def judge(answer: Answer) -> Outcome:
            if answer.headers.get("Content-Range") != f"bytes {first}-{last}/{blob.size}":
                return Outcome.WRONG
            return _compared(answer, answer.body == blob.read(first, last + 1 - first), release.may_be_wrong(blob))

        await self._asker.ask("range", _path(repository, blob), judge, status=206, Range=header)

    async def parts(self) -> None:
        """Several ranges at once, as those who pull lazily ask."""
        repository, release = self._recent()
        blob = max(release.image.layers, key=lambda layer: layer.size)
        step = blob.size // 4
        pairs = [
            (start, min(blob.size - 1, start + self._choice.randrange(1, 20_000))) for start in (step, 2 * step, 0)
        ]

        def judge(answer: Answer) -> Outcome:
            try:
                found = read_parts(answer.headers.get("Content-Type", ""), answer.body)
            except AssertionError:
                return Outcome.WRONG
            if [head.get("Content-Range") for head, _ in found] != [f"bytes {a}-{b}/{blob.size}" for a, b in pairs]:
                return Outcome.WRONG
            right = [body for _, body in found] == [blob.read(a, b + 1 - a) for a, b in pairs]
            return _compared(answer, right, release.may_be_wrong(blob))

        header = "bytes=" + ",".join(f"{first}-{last}" for first, last in pairs)
        await self._asker.ask("multi-range", _path(repository, blob), judge, status=206, Range=header)

    async def blob_head(self) -> None:
        """Whether there is a blob, and how large it is."""
        repository, release = self._recent()
        blob = self._choice.choice(release.image.blobs)

        def judge(answer: Answer) -> Outcome:
            same = answer.headers.get("Content-Length") == str(blob.size)
            return Outcome.RIGHT if same else Outcome.WRONG

        await self._asker.ask("HEAD", _path(repository, blob), judge, method="HEAD")

    async def has_it_already(self) -> None:
        """A client that names what it has, and needs only to be told that it is the same."""
        repository, release = self._recent()
        digest = release.image.digest
        path = f"/v2/{repository}/manifests/{digest}"
        await self._asker.ask("If-None-Match", path, _always, status=304, If_None_Match=f'"{digest}"')

    async def lists(self) -> None:
        """The tags of a repository, which stay the same while they move."""
        repository = self._choice.choice(REPOSITORIES)

        def judge(answer: Answer) -> Outcome:
            return Outcome.RIGHT if json.loads(answer.body) == {"name": repository, "tags": TAGS} else Outcome.WRONG

        await self._asker.ask("tags", f"/v2/{repository}/tags/list", judge)

    async def referrers(self) -> None:
        """Who looks for the signature of an image."""
        repository, release = self._recent()
        expected = [] if release.signature is None else [str(release.signature.digest)]

        def judge(answer: Answer) -> Outcome:
            index = json.loads(answer.body)
            found = [one["digest"] for one in index["manifests"]]
            return Outcome.RIGHT if (index["mediaType"], found) == (OCI_INDEX, expected) else Outcome.WRONG

        await self._asker.ask("referrers", f"/v2/{repository}/referrers/{release.image.digest}", judge)

    async def leaver(self) -> None:
        """A client that goes away in the middle of a layer."""
        await self._leave(after=self._choice.randrange(1 << 20), pause=0.0)

    async def slow_reader(self) -> None:
        """A client that takes a few seconds for little, and leaves."""
        await self._leave(after=self._choice.randrange(1 << 20), pause=0.1)

    async def stranger(self) -> None:
        """A client that asks for what there is not."""
        repository = self._choice.choice(REPOSITORIES)
        digest = f"sha256:{self._choice.randbytes(32).hex()}"
        path = self._choice.choice(
            (f"blobs/{digest}", f"manifests/{digest}", f"manifests/no{self._choice.randrange(10**6)}")
        )
        await self._asker.ask("unknown", f"/v2/{repository}/{path}", _always, status=404)

    async def _blob(self, repository: str, blob: Blob) -> None:
        def judge(answer: Answer) -> Outcome:
            same = hashlib.sha256(answer.body).hexdigest() == blob.digest.hex
            return Outcome.RIGHT if same else Outcome.WRONG

        await self._asker.ask("blob", _path(repository, blob), judge)

    async def _leave(self, *, after: int, pause: float) -> None:
        repository, release = self._recent()
        blob = self._choice.choice(release.image.layers)

        def right(offset: int, data: bytes) -> bool:
            return release.may_be_wrong(blob) or blob.read(offset, len(data)) == data

        await self._asker.leave("leaving", _path(repository, blob), right, after=after, pause=pause)

    def _recent(self) -> tuple[str, Release]:
        """An image that clients know of: one of the newest, or the first."""
        repository = self._choice.choice(REPOSITORIES)
        newest = self._newest[repository, MOVING]
        number = max(1, newest - min(_RECENT, int(self._choice.expovariate(0.2))))
        return repository, images.release(repository, number)


def _always(_: Answer) -> Outcome:
    return Outcome.RIGHT


def _is(content: bytes) -> Judge:
    return lambda answer: Outcome.RIGHT if answer.body == content else Outcome.WRONG


def _compared(answer: Answer, right: bool, may_be_wrong: bool) -> Outcome:
    """A part of a blob makes no promise while the blob is not verified."""
    if right:
        return Outcome.RIGHT
    return Outcome.UNPROMISED if may_be_wrong and not answer.verified else Outcome.WRONG


def _path(repository: str, blob: Blob) -> str:
    return f"/v2/{repository}/blobs/{blob.digest}"

"""An upstream in trouble: the fake registry in a thread of its own, with an image that real clients can run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Self, TypeVar

from mirror.oci.digest import Digest
from tests.e2e.images import Image
from tests.e2e.loops import LoopThread
from tests.upstream import FakeRegistry, Manifest

Result = TypeVar("Result")

_ANSWER = 10.0  # seconds that the fake may take for what a test asks of it


class TroubledUpstream:
    """Serves what `hold` was given, with the faults that a test sets through `do`; a context manager.

    `prepare` is called first in the thread in which `fake`, the registry, will live.
    """

    def __init__(self, fake: FakeRegistry | None = None, prepare: Callable[[], None] = lambda: None) -> None:
        self._loop = LoopThread("troubled-upstream", _ANSWER)
        self._fake = fake or FakeRegistry()
        self._prepare = prepare

    def __enter__(self) -> Self:
        self._loop.start()
        try:
            self.do(lambda _: self._prepare())
            self._loop.run(self._fake.start())
        except BaseException:
            self._loop.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.do(lambda fake: fake.clear_faults())
            self._loop.run(self._fake.__aexit__())
        finally:
            self._loop.end()

    @property
    def settings(self) -> Mapping[str, str]:
        """The mirror's `upstreams:` entry for it."""
        return {"url": self._fake.url}

    def do(self, action: Callable[[FakeRegistry], Result]) -> Result:
        """Returns what `action` does; it runs in the thread that the fake lives in."""

        async def call() -> Result:
            return action(self._fake)

        return self._loop.run(call())

    def stop(self) -> None:
        """Stops the registry as a dying process does; it keeps what it holds and has counted."""
        self._loop.run(self._fake.stop())

    def start(self) -> None:
        """Starts it again."""
        self._loop.run(self._fake.start())

    def hold(self, image: Image, repository: str, tag: str) -> None:
        """Makes `repository:tag` mean this image, for all its platforms and byte for byte."""
        self.do(lambda fake: _copy(image, fake, repository, tag))


def _copy(image: Image, fake: FakeRegistry, repository: str, tag: str) -> None:
    index = _manifest(image, image.digest, fake, repository)
    for named in json.loads(index.content)["manifests"]:
        manifest = json.loads(_manifest(image, named["digest"], fake, repository).content)
        for blob in (manifest["config"], *manifest["layers"]):
            fake.put_blob(repository, _content(image, blob["digest"]), media_type=blob["mediaType"])
    fake.tag(repository, tag, index)


def _manifest(image: Image, digest: str, fake: FakeRegistry, repository: str) -> Manifest:
    content = _content(image, digest)
    return fake.put_manifest(repository, content, media_type=json.loads(content)["mediaType"])


def _content(image: Image, digest: str) -> bytes:
    return (image.layout / "blobs" / "sha256" / Digest.parse(digest).hex).read_bytes()

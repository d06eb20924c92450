"""What a client makes of an answer, in one word, and what no answer may ever be."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import aiohttp
from multidict import CIMultiDictProxy

from tests.faults.grammar import RANGE, SIZE
from tests.harness import RunningMirror
from tests.upstream import FakeRegistry, Image

REPOSITORY = "team/app"
TAG = "1"

_RETRIED = (429, 503)
_BLOBS = ("blob", "head-blob", "range")


class Shelf:
    """What the upstream has: an image with a tag and a signature; after `renew` the tag means another image, and there
    is one more tag and one more signature of the first image."""

    def __init__(self, upstream: FakeRegistry) -> None:
        self._upstream = upstream
        self.first = self.last = upstream.add_image(REPOSITORY, TAG, layers=[SIZE])
        self._signatures = [self._sign("1")]

    def renew(self) -> None:
        """Changes everything that may change."""
        self.last = self._upstream.add_image(REPOSITORY, labels={"pushed": "later"})
        self._upstream.move_tag(REPOSITORY, TAG, self.last)
        self._upstream.tag(REPOSITORY, "new", self.last)
        self._signatures.append(self._sign("2"))

    def tags(self, image: Image) -> list[str]:
        """The tags when `image` was the one that the tag meant."""
        return [TAG] if image is self.first else [TAG, "new"]

    def referrers(self, image: Image) -> list[str]:
        """Likewise what was attached to the first image."""
        count = 1 if image is self.first else 2
        return [str(signature.digest) for signature in self._signatures[:count]]

    def _sign(self, name: str) -> Image:
        return self._upstream.add_image(REPOSITORY, layers=[10], subject=self.first.manifest, labels={"name": name})


@dataclass(frozen=True, slots=True)
class Heard:
    """What came of a request.

    word: `right`, `stale` (right once, and said to be old), `cut` (headers of success, and a body that ends before it
    should), `empty` (a list of referrers without any), `claim` (a HEAD
    with a length or digest that are not so), the status of an error; and what must not be: `wrong` (other
    bytes, and nothing that shows it), `old` (right once, and not said to be old), `reset`
    """

    word: str
    cache: str | None = None
    problems: list[str] = field(default_factory=list)


class Client:
    """Asks a mirror for one kind of thing, and knows what the answer should be."""

    def __init__(self, kind: str, shelf: Shelf, *, prefix_holds: bool = True) -> None:
        """`prefix_holds`: whether also what comes before a cut has to be right."""
        self._shelf = shelf
        self._prefix_holds = prefix_holds
        self._kind = kind.removeprefix("old-")
        self._success = 206 if self._kind == "range" else 200
        self.method = "HEAD" if self._kind.startswith("head-") else "GET"

    async def ask(self, mirror: RunningMirror) -> Heard:
        """Sends the request and reads all of the answer."""
        headers = {"Range": f"bytes={RANGE[0]}-{RANGE[1]}"} if self._kind == "range" else {}
        url = f"{mirror.url}/v2/{REPOSITORY}/{self._path()}"
        body = bytearray()
        try:
            async with mirror.session.request(self.method, url, headers=headers) as response:
                try:
                    async for piece in response.content.iter_any():
                        body += piece
                except aiohttp.ClientPayloadError:
                    return self._cut(response, bytes(body))
                return self._read(response, bytes(body))
        except aiohttp.ClientConnectionError as error:
            return Heard("reset", None, [f"the connection broke: {error!r}"])

    def _path(self) -> str:
        image = self._shelf.first
        return {
            "digest": f"manifests/{image.digest}",
            "blob": f"blobs/{image.layers[0].digest}",
            "head-blob": f"blobs/{image.layers[0].digest}",
            "range": f"blobs/{image.layers[0].digest}",
            "tags": "tags/list",
            "referrers": f"referrers/{image.digest}",
        }.get(self._kind, f"manifests/{TAG}")

    def _cut(self, response: aiohttp.ClientResponse, body: bytes) -> Heard:
        problems = []
        if response.status != self._success:
            problems.append(f"an answer of {response.status} was cut")
        if self._prefix_holds and not self._content(self._shelf.first).startswith(body):
            problems.append("what came before the cut is wrong")
        return Heard("cut", response.headers.get("X-Cache"), problems)

    def _read(self, response: aiohttp.ClientResponse, body: bytes) -> Heard:
        if response.status == self._success:
            return self._judge(response.headers, body)
        problems = []
        if response.status in _RETRIED and not response.headers.get("Retry-After", "").isdigit():
            problems.append(f"{response.status} without Retry-After")
        if self.method == "GET" and not json.loads(body)["errors"][0]["code"]:
            problems.append(f"{response.status} without a code")
        return Heard(str(response.status), None, problems)

    def _judge(self, headers: CIMultiDictProxy[str], body: bytes) -> Heard:
        """A complete answer: is it the right one?"""
        cache = headers.get("X-Cache")
        if cache is None:
            return Heard("wrong", None, ["there is no X-Cache"])
        if self._is_of(self._shelf.last, headers, body):
            return Heard("right", cache, ["what is new was called stale"] if cache == "stale" else [])
        if self._shelf.first is not self._shelf.last and self._is_of(self._shelf.first, headers, body):
            return Heard("stale" if cache == "stale" else "old", cache)
        if self.method == "HEAD":
            return Heard("claim", cache)
        return Heard("empty" if self._kind == "referrers" and not json.loads(body)["manifests"] else "wrong", cache)

    def _is_of(self, image: Image, headers: CIMultiDictProxy[str], body: bytes) -> bool:
        if self._kind == "tags":
            return bool(json.loads(body)["tags"] == self._shelf.tags(image))
        if self._kind == "referrers":
            found = [descriptor["digest"] for descriptor in json.loads(body)["manifests"]]
            return found == self._shelf.referrers(image)
        content = self._content(image)
        digest = image.layers[0].digest if self._kind in _BLOBS else image.digest
        return (
            headers["Docker-Content-Digest"] == str(digest)
            and int(headers["Content-Length"]) == len(content)
            and body == (b"" if self.method == "HEAD" else content)
        )

    def _content(self, image: Image) -> bytes:
        if self._kind not in _BLOBS:
            return image.manifest.content
        content = image.layers[0].content
        return content[RANGE[0] : RANGE[1] + 1] if self._kind == "range" else content

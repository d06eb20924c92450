"""Every request that arrived and every byte that left, and the questions tests ask about them."""

from __future__ import annotations

import asyncio
import fnmatch
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from multidict import CIMultiDict, CIMultiDictProxy

from mirror.oci.digest import Digest
from tests.upstream.content import Image, Index, Stored

Kind = Literal["ping", "manifest", "blob", "tags", "referrers", "token", "other"]
Origin = Literal["registry", "cdn"]
Thing = Stored | Image | Index | Digest | str
"""What a request can be for: a blob, a manifest, an image or index (its manifest), a digest as value or text, a tag as
`repository:tag`, or a path as a shell pattern that starts with `/` (`/v2/team/*`, `*` also matches `/`)."""


@dataclass
class Seen:
    """One request as it arrived, and what became of it."""

    number: int
    origin: Origin
    method: str
    target: str
    """The request target as it stood on the wire, percent-encoding and query included."""
    path: str
    """The path, decoded, without the query."""
    kind: Kind
    repository: str | None
    reference: str | None
    """The tag or digest as it was asked for."""
    digest: Digest | None
    """The digest asked for, or that the tag meant when the request came."""
    headers: CIMultiDictProxy[str] = field(repr=False, default_factory=lambda: CIMultiDictProxy(CIMultiDict()))
    body: bytes = field(repr=False, default=b"")
    status: int | None = None
    """What was answered; None where no header was sent."""
    bytes_sent: int = 0
    """Body bytes handed to the kernel, framing excluded."""
    faults: list[str] = field(default_factory=list)
    finished: bool = False
    """Whether the fake is done with it."""
    disconnected: bool = False
    """Whether the client left before that."""


class Counters:
    """The log of requests. Counting is by filters of equal names everywhere: `kind`, `method`, `status`, `origin`,
    `repository`, `reference`."""

    def __init__(self) -> None:
        self.requests: list[Seen] = []
        self.connections = 0
        """Connections accepted (or refused at accept) on either origin."""
        self._changed = asyncio.Event()
        self._number = 0

    def select(self, thing: Thing | None = None, **filters: object) -> list[Seen]:
        """The requests for `thing` (None: all) whose attributes equal the filters, in order of arrival."""
        wanted = matcher(thing)
        return [
            seen
            for seen in self.requests
            if wanted(seen) and all(getattr(seen, name) == value for name, value in filters.items())
        ]

    def count(self, thing: Thing | None = None, **filters: object) -> int:
        """How many requests `select` finds: `count(kind="manifest", method="HEAD")`."""
        return len(self.select(thing, **filters))

    def requests_for(self, thing: Thing, **filters: object) -> int:
        """How often the registry itself was asked for it, by any method and with any outcome (redirects' targets are
        counted by `count(thing, origin="cdn")`)."""
        return self.count(thing, **{"origin": "registry", **filters})

    def bytes_for(self, thing: Thing | None = None, **filters: object) -> int:
        """Bytes of content (bodies of 200 and 206) sent for it, by the registry and by the CDN.

        The bodies of errors and redirects are in `Seen.bytes_sent` alone.
        """
        return sum(seen.bytes_sent for seen in self.select(thing, **filters) if seen.status in (200, 206))

    def content_requests(self, **filters: object) -> list[Seen]:
        """Everything that asks for content or for a tag's state: GET and HEAD of manifests and blobs, tag lists,
        referrers. Empty means that the upstream was not needed; pings and tokens do not count."""
        return [seen for seen in self.select(None, **filters) if seen.kind not in ("ping", "token", "other")]

    @property
    def in_flight(self) -> int:
        """Requests that are being answered now."""
        return sum(not seen.finished for seen in self.requests)

    async def until(self, condition: Callable[[], bool], limit: float = 5.0) -> None:
        """Waits until `condition()` holds; it is asked again whenever a request comes, moves on or ends.

        Raises TimeoutError after `limit` seconds.
        """
        async with asyncio.timeout(limit):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def reset(self) -> None:
        """Forgets every request so far (those under way go on uncounted); the content and the faults stay."""
        self.requests = []
        self.connections = 0

    def next_number(self) -> int:
        """A number for the next request; the first is 1."""
        self._number += 1
        return self._number

    def note(self, seen: Seen | None = None) -> None:
        """Writes down a new request, or tells waiting tests that an old one has changed."""
        if seen is not None:
            self.requests.append(seen)
        self._changed.set()


def matcher(thing: Thing | None) -> Callable[[Seen], bool]:
    """Whether a request is for this thing."""
    if thing is None:
        return lambda _: True
    if isinstance(thing, str):
        return _text_matcher(thing)
    digest = thing if isinstance(thing, Digest) else thing.digest
    return lambda seen: seen.digest == digest


def _text_matcher(text: str) -> Callable[[Seen], bool]:
    if text.startswith("/"):
        return lambda seen: fnmatch.fnmatchcase(seen.path, text)
    if text.startswith(("sha256:", "sha512:")):
        digest = Digest.parse(text)
        return lambda seen: seen.digest == digest
    repository, colon, tag = text.rpartition(":")
    if not colon:
        return lambda seen: seen.repository == text
    return lambda seen: seen.kind == "manifest" and (seen.repository, seen.reference) == (repository, tag)

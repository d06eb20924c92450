"""The downloads under way: at most one per digest and upstream host that newcomers may join.

Bytes of different upstreams never mix. What one of them sends, garbage or silence, touches no client of another, and
nobody gets through one what another has shown. Two that are asked for a blob at the same time are asked once each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mirror.download.bodies import Body, FlightBody
from mirror.download.download import Download
from mirror.download.fetch import Tools
from mirror.oci.digest import Digest
from mirror.oci.errors import UpstreamUnavailable
from mirror.peers import Peers
from mirror.routing import Target, UpstreamName

_Key = tuple[Digest, str, bool]
"""A blob, its upstream's host, and whether another worker fetches it. That one may ask us for the same blob where we
do not agree who owns the host: it must not be given its own download."""


class Flights:
    """Those under way, whatever configuration each has begun under."""

    def __init__(self) -> None:
        self.joinable: dict[_Key, Download] = {}
        self.all: set[Download] = set()
        self.closed = False
        self.ended = 0
        """How many are over."""

    def part(self, elsewhere: Callable[[UpstreamName], bool]) -> None:
        """Lets nobody join those whose upstream is to be asked elsewhere from now on."""
        for key, download in list(self.joinable.items()):
            if elsewhere(download.upstream):
                del self.joinable[key]


class Downloads:
    """Starts downloads with `tools`, and owns their tasks; lets requests join those, and earlier ones of `flights`."""

    def __init__(
        self,
        tools: Tools,
        *,
        abandon_below: int,
        flights: Flights | None = None,
        peers: Peers | None = None,
        far_tools: Tools | None = None,
    ) -> None:
        """`far_tools` are those for upstreams that others of `peers` own."""
        self.tools = tools
        self._peers = peers
        self._far_tools = far_tools or tools
        self._abandon_below = abandon_below
        self._flights = flights or Flights()
        self._own: set[Download] = set()

    def current(self, digest: Digest, upstream: UpstreamName) -> Download | None:
        """The download of `digest` from `upstream` that a newcomer can join from byte 0."""
        joinable, key = self._flights.joinable, (digest, upstream.host, self._away(upstream.host))
        download = joinable.get(key)
        if download is not None and not download.joinable:
            del joinable[key]
            return None
        # The same host under another entry is asked in another way, which only its own configuration knows.
        return download if download is not None and download.upstream == upstream else None

    def tools_for(self, target: Target) -> Tools:
        """What fetches from the upstream need."""
        return self._far_tools if self._away(target.upstream.host) else self.tools

    def start(
        self, digest: Digest, target: Target, *, background: bool = False, pass_through: bool = False
    ) -> Download:
        """Begins a download from `target`; newcomers join it from now on.

        Raises UpstreamUnavailable, reason stopped, once we are stopping.
        """
        if self._flights.closed:
            raise UpstreamUnavailable("the mirror is stopping", reason="stopped")
        away = self._away(target.upstream.host)
        download = Download(
            digest,
            target,
            self.tools_for(target),
            abandon_below=self._abandon_below,
            background=background,
            pass_through=pass_through,
            peers=self._peers if away else None,
        )
        self._flights.joinable[digest, download.host, away] = download
        self._flights.all.add(download)
        self._own.add(download)
        download.start(self._ended)
        return download

    def read(self, download: Download, target: Target) -> FlightBody:
        """A reader of a download, counted among its audience from now on."""

        async def detour(error: OSError) -> Body:
            self._retire(download)
            return await self.detour(download.digest, target, error)

        return FlightBody(download, target, self.tools_for(target), detour)

    def anew(self, digest: Digest, target: Target) -> FlightBody:
        """The blob from its first byte on, past the disk unless somebody is storing it: shared, and verified."""
        download = self.current(digest, target.upstream)
        if download is None or download.queued_to_store:
            download = self.start(digest, target, pass_through=True)
        download.sources.add(target)
        return self.read(download, target)

    async def detour(self, digest: Digest, target: Target, error: OSError) -> Body:
        """A body for a client whose bytes can no longer be read from our disk."""
        self.tools.cache.trouble.note("blobs", error)
        return self.anew(digest, target)

    @property
    def all(self) -> tuple[Download, ...]:
        """Those under way."""
        return tuple(self._flights.all)

    @property
    def ended(self) -> int:
        """How many are over."""
        return self._flights.ended

    @property
    def flying(self) -> bool:
        """Whether one that was started here is under way."""
        return bool(self._own)

    async def landed(self) -> None:
        """Waits until none that was started here is under way."""
        while self._own:
            await asyncio.gather(*(download.wait() for download in self._own))

    async def finish(self, grace: float) -> None:
        """Lets those under way go on for `grace` seconds, then stops the rest; what they have is kept for later."""
        self._flights.closed = True
        try:
            async with asyncio.timeout(grace):
                await asyncio.gather(*(download.wait() for download in self.all))
        except TimeoutError:
            pass  # the rest is stopped
        await asyncio.gather(*(download.cancel() for download in self.all))

    def _away(self, host: str) -> bool:
        return self._peers is not None and self._peers.away(host)

    def _retire(self, download: Download) -> None:
        for away in (False, True):
            key = download.digest, download.host, away
            if self._flights.joinable.get(key) is download:
                del self._flights.joinable[key]

    def _ended(self, download: Download) -> None:
        self._retire(download)
        self._flights.all.discard(download)
        self._flights.ended += 1
        self._own.discard(download)

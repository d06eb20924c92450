"""The downloads under way: at most one per digest and upstream host that newcomers may join.

Bytes of different upstreams never mix. What one of them sends, garbage or silence, touches no client of another, and
nobody gets through one what another has shown. Two that are asked for a blob at the same time are asked once each.
"""

from __future__ import annotations

import asyncio

from mirror.download.bodies import Body, FlightBody
from mirror.download.download import Download
from mirror.download.fetch import Tools
from mirror.oci.digest import Digest
from mirror.oci.errors import UpstreamUnavailable
from mirror.routing import Target


class Downloads:
    """Starts downloads, lets requests join them, and owns their tasks."""

    def __init__(self, tools: Tools, *, abandon_below: int) -> None:
        self.tools = tools
        self._abandon_below = abandon_below
        self._joinable: dict[tuple[Digest, str], Download] = {}
        self._all: set[Download] = set()
        self._closed = False

    def current(self, digest: Digest, host: str) -> Download | None:
        """The download of `digest` from the upstream `host` that a newcomer can join from byte 0."""
        download = self._joinable.get((digest, host))
        if download is not None and not download.joinable:
            del self._joinable[digest, host]
            return None
        return download

    def start(
        self, digest: Digest, target: Target, *, background: bool = False, pass_through: bool = False
    ) -> Download:
        """Begins a download from `target`; newcomers join it from now on.

        Raises UpstreamUnavailable, reason stopped, once we are stopping.
        """
        if self._closed:
            raise UpstreamUnavailable("the mirror is stopping", reason="stopped")
        download = Download(
            digest,
            target,
            self.tools,
            abandon_below=self._abandon_below,
            background=background,
            pass_through=pass_through,
        )
        self._joinable[digest, download.host] = download
        self._all.add(download)
        download.start(self._ended)
        return download

    def read(self, download: Download, target: Target) -> FlightBody:
        """A reader of a download, counted among its audience from now on."""

        async def detour(error: OSError) -> Body:
            self._retire(download)
            return await self.detour(download.digest, target, error)

        return FlightBody(download, target, self.tools, detour)

    def anew(self, digest: Digest, target: Target) -> FlightBody:
        """The blob from its first byte on, past the disk unless somebody is storing it: shared, and verified."""
        download = self.current(digest, target.upstream.host)
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
        return tuple(self._all)

    async def finish(self, grace: float) -> None:
        """Lets those under way go on for `grace` seconds, then stops the rest; what they have is kept for later."""
        self._closed = True
        try:
            async with asyncio.timeout(grace):
                await asyncio.gather(*(download.wait() for download in self._all))
        except TimeoutError:
            pass  # the rest is stopped
        await asyncio.gather(*(download.cancel() for download in list(self._all)))

    def _retire(self, download: Download) -> None:
        key = (download.digest, download.host)
        if self._joinable.get(key) is download:
            del self._joinable[key]

    def _ended(self, download: Download) -> None:
        self._retire(download)
        self._all.discard(download)

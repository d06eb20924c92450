"""A download as another worker follows it, which reads the same file."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from mirror.cache import Cache
from mirror.download.download import Download
from mirror.download.tracks import SpoolTrack
from mirror.oci.errors import MirrorError
from mirror.peers.messages import Broken, Complete, Failure, Frozen, Grown, Head, News, Passing, Queued, Spooling
from mirror.routing import Target

_SOON, _MUCH = 0.005, 4 << 20
"""Seconds between two words on how far it is, where so many bytes have come meanwhile."""
_LATER = 0.025
"""Seconds where it is less."""


async def follow(
    download: Download, targets: Collection[Target], joined: bool, cache: Cache, tell: Callable[[News], None]
) -> None:
    """Tells what becomes of one attempt of the download, until there is nothing more to tell of it.

    As long as it runs it counts as a reader for the repositories `targets`, which may grow meanwhile.
    """
    download.attach()
    try:
        if download.queued:
            tell(Queued(True))
            await download.begun()
            tell(Queued(False))
        first = next(iter(targets))
        try:
            size = await download.opened(first)
        except MirrorError:
            tell(_broken(download, targets, again=False))
            return
        track, shown = download.track, download.shown
        counts = shown is not None and await cache.still_counts(shown)
        if not isinstance(track, SpoolTrack):
            tell(Passing())
            return
        written = track.written
        tell(
            Spooling(
                track.spool.path.name,
                track.spool.inode,
                size,
                written,
                shown.target.repository if shown is not None and counts else None,
                joined,
            )
        )
        last = await _tell_progress(track, written, tell)
        tell(last if last is not None else _broken(download, targets, again=download.goes_on))
    finally:
        download.detach()


async def _tell_progress(track: SpoolTrack, told: int, tell: Callable[[News], None]) -> Complete | Frozen | None:
    """How it ended; None where it failed."""
    loop = asyncio.get_running_loop()
    at = 0.0
    shown = False
    while True:
        if track.is_complete:
            return Complete(track.visible)
        if track.frozen is not None:
            return Frozen(track.written)
        if track.error is not None:
            return None
        if track.head and not shown:
            shown = True
            tell(Head(track.head))
        wait = at + (_SOON if track.written - told >= _MUCH else _LATER) - loop.time()
        if track.written > told and wait <= 0:
            told, at = track.written, loop.time()
            tell(Grown(told))
        if track.written == told:
            await track.news()
            continue
        try:
            async with asyncio.timeout(max(0.0, wait)):
                await track.news()
        except TimeoutError:
            pass


def _broken(download: Download, targets: Collection[Target], *, again: bool) -> Broken:
    return Broken({target.repository: Failure.of(download.failure_for(target)) for target in targets}, again)

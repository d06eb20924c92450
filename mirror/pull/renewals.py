"""Links of some age are asked for again behind the back of whoever uses them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from mirror.cache import Cache, Kind
from mirror.memory import Bounded
from mirror.oci.digest import Digest
from mirror.oci.errors import MirrorError
from mirror.routing import Router, Target
from mirror.singleflight import SingleFlight
from mirror.store.shapes import LinkRecord
from mirror.transport import Deadline

_REST_SECONDS = 60.0
"""After an attempt without an answer the upstream is left alone so long, however often the link is used."""
_RESTS = 10_000
_Key = tuple[Target, Kind, Digest]
_log = structlog.get_logger()


class Renewals:
    """Starts at most one renewal of a link at a time; its use goes on meanwhile, and after no answer."""

    def __init__(self, cache: Cache, router: Router) -> None:
        self._cache = cache
        self._router = router
        self._asking = SingleFlight()
        self._rests: Bounded[_Key, Deadline] = Bounded(_RESTS)

    async def idle(self) -> None:
        """Waits until none is under way."""
        await self._asking.idle()

    async def close(self) -> None:
        """Stops those under way."""
        await self._asking.close()

    def used(
        self, target: Target, kind: Kind, digest: Digest, link: LinkRecord, ask: Callable[[], Awaitable[object]]
    ) -> None:
        """Asks by `ask`, which notes what it hears, if the link is older than its upstream's `link_ttl`."""
        self._start(target, kind, digest, link, ask)

    async def renewed(
        self, target: Target, kind: Kind, digest: Digest, link: LinkRecord, ask: Callable[[], Awaitable[object]]
    ) -> bool:
        """The same, for who waits for it: whether the link is young now."""
        if not self._is_due(target, link):
            return True
        asking = self._start(target, kind, digest, link, ask)
        return asking is not None and await asyncio.shield(asking)

    def _is_due(self, target: Target, link: LinkRecord) -> bool:
        settings = self._router.settings(target.upstream)
        return not settings.offline and self._cache.overdue(link.checked_at, settings.link_ttl) >= 0

    def _start(
        self, target: Target, kind: Kind, digest: Digest, link: LinkRecord, ask: Callable[[], Awaitable[object]]
    ) -> asyncio.Task[bool] | None:
        if not self._is_due(target, link):
            return None
        key = (target, kind, digest)
        rest = self._rests.get(key)
        if rest is not None and not rest.expired and not self._asking.running(key):
            return None
        return self._asking.start(key, lambda: self._renew(key, ask))

    async def _renew(self, key: _Key, ask: Callable[[], Awaitable[object]]) -> bool:
        self._rests.set(key, Deadline.after(_REST_SECONDS))
        try:
            await ask()
        except MirrorError as error:
            _log.info("a link was not renewed", source=str(key[0]), digest=str(key[2]), reason=error.message)
            return False
        self._rests.pop(key)
        return True

"""The only place that makes aiohttp sessions, with the settings that keep bytes exact and waits bounded."""

from __future__ import annotations

import asyncio
import ssl
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver

from mirror import __version__
from mirror.config import Timeouts, UpstreamSettings
from mirror.oci.errors import UpstreamUnavailable
from mirror.transport.addresses import GuardedResolver, IsGlobal

_HEADER_LIMIT = 64 << 10  # signed URLs in Location pass aiohttp's 8190 bytes
_IDLE = 30.0
_MOST_IDLE = 128


class Sessions:
    """Two sessions, made when first needed: an open one, and a guarded one that reaches global addresses only.

    `connections` at most for each; callers see to it that there are never more requests.
    """

    def __init__(
        self, timeouts: Timeouts, resolver: AbstractResolver | None, is_global: IsGlobal, *, connections: int
    ) -> None:
        self._timeouts = timeouts
        self._given_resolver = resolver
        self._own_resolver: AbstractResolver | None = None
        self._is_global = is_global
        self._sessions: dict[bool, aiohttp.ClientSession] = {}
        self._connections = connections
        self._closed = False
        self._contexts: dict[Path, ssl.SSLContext] = {}
        # Not the default executor: there, a DNS server that does not answer holds all threads.
        self._pool = ThreadPoolExecutor(1, "ca-files")

    @property
    def resolver(self) -> AbstractResolver:
        """The system's resolver, in threads: NSS and search domains as everywhere else on the machine."""
        if self._given_resolver is not None:
            return self._given_resolver
        if self._own_resolver is None:
            self._own_resolver = aiohttp.ThreadedResolver()
        return self._own_resolver

    def get(self, *, guarded: bool) -> aiohttp.ClientSession:
        """The session; one set of connections each, so that a connection of the guarded one was always checked.

        Raises UpstreamUnavailable, reason stopped, after `close`.
        """
        if self._closed:
            raise UpstreamUnavailable("the mirror is stopping", reason="stopped")
        session = self._sessions.get(guarded)
        if session is None:
            session = self._sessions[guarded] = self._make(guarded)
        return session

    async def tls(self, settings: UpstreamSettings) -> ssl.SSLContext | bool:
        """What verifies the upstream, its token endpoint and its redirects: the system's CAs and its own `ca_file`.

        Raises OSError (ssl.SSLError included) where `ca_file` cannot be used.
        """
        if settings.insecure:
            return False
        if settings.ca_file is None:
            return True
        context = self._contexts.get(settings.ca_file)
        if context is None:
            context = await asyncio.get_running_loop().run_in_executor(self._pool, _context, settings.ca_file)
            self._contexts[settings.ca_file] = context
        return context

    async def close(self) -> None:
        """Closes every connection."""
        self._closed = True
        self._pool.shutdown(wait=False)
        sessions = list(self._sessions.values())
        self._sessions.clear()
        for session in sessions:
            await session.close()
        if self._own_resolver is not None:
            await self._own_resolver.close()

    def _make(self, guarded: bool) -> aiohttp.ClientSession:
        resolver = GuardedResolver(self.resolver, self._is_global) if guarded else self.resolver
        limits = self._timeouts
        return aiohttp.ClientSession(
            connector=_Connector(resolver=resolver, limit=self._connections, limit_per_host=0, keepalive_timeout=_IDLE),
            timeout=aiohttp.ClientTimeout(total=None, connect=limits.connect, sock_connect=limits.connect_address),
            headers={"User-Agent": f"mirror/{__version__}", "Accept-Encoding": "identity", "Accept": "*/*"},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,  # bytes are hashed as they were sent
            max_line_size=_HEADER_LIMIT,
            max_field_size=_HEADER_LIMIT,
            trust_env=False,  # would read .netrc, too
        )


class _Connector(aiohttp.TCPConnector):
    """Keeps few idle connections: aiohttp counts those in use only, and a pattern stands for any number of hosts."""

    def _release(self, key: Any, protocol: Any, *, should_close: bool = False) -> None:
        idle = sum(map(len, self._conns.values()))
        super()._release(key, protocol, should_close=should_close or idle >= _MOST_IDLE)


def _context(ca_file: Path) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.load_verify_locations(cafile=ca_file)
    # Python 3.13 wants more of an authority's certificate than its clients do, such as a key usage: many are without.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context

"""How many connections a port takes, in all and from one address; one too many is told so, at no cost to speak of."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable

from prometheus_client import Counter, Gauge

from mirror.api.responses import refusal

_DESCRIPTORS_EACH = 3
"""A connection's own, its duplicate while a thread sends on it, and the file that it is sent."""
_RESERVE = 2560
"""Descriptors for everything else: connections to upstreams, spools, records, those who are turned away."""
_TOO_MANY = refusal(503, "UNAVAILABLE", "there are too many connections; come back later")
_LINGERING = 256
"""Clients who may be hearing at the same time that they are not served; any more are cut off without a word."""
_LINGER_SECONDS = 2.0


def places(wanted: int) -> int:
    """As many of the `wanted` connections as the process may have descriptors for."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    return max(1, min(wanted, (soft - min(_RESERVE, soft // 2)) // _DESCRIPTORS_EACH))


def share(most: int, slots: int) -> int:
    """Of the places that workers in so many slots have together, those of each one."""
    return -(-most // slots)


class Admission:
    """Counts the connections of a port. `most` in all, `most_each` from one address, but from proxies any number.

    `refused` counts by `reason` total and client; `present` shows how many there are.
    """

    def __init__(
        self,
        most: int,
        most_each: int,
        *,
        is_proxy: Callable[[str], bool],
        refused: Counter,
        present: Gauge | None = None,
    ) -> None:
        self._most = most
        self._most_each = most_each
        self._is_proxy = is_proxy
        self._refused = refused
        self._present = present
        self._count = 0
        self._by_client: dict[str, int] = {}
        self._lingering: set[_TurnedAway] = set()

    def adjust(self, most: int, most_each: int) -> None:
        """Other limits from now on; who is here stays."""
        self._most, self._most_each = most, most_each

    def enter(self, transport: asyncio.Transport) -> str | None:
        """One more connection; its client's address, to `leave` with. None where it has been turned away instead."""
        peer = transport.get_extra_info("peername")
        client = peer[0] if isinstance(peer, tuple) else ""
        reason = self._full(client)
        if reason is not None:
            self._refused.labels(reason).inc()
            self.turn_away(transport, _TOO_MANY)
            return None
        self._add(client)
        return client

    def come(self, client: str) -> bool:
        """Counts a connection before it is one, so that it need not `enter` later. False: there is no place for it."""
        if self._full(client) is not None:
            return False
        self._add(client)
        return True

    def leave(self, client: str) -> None:
        """A connection that had entered is over."""
        left = self._by_client.pop(client) - 1
        if left:
            self._by_client[client] = left
        self._note(-1)

    def turn_away(self, transport: asyncio.Transport, answer: bytes) -> None:
        """Answers a connection that does not count, and ends it; without a word where there are too many of them."""
        if len(self._lingering) >= _LINGERING:
            transport.abort()
        else:
            self._lingering.add(_TurnedAway(transport, answer, self._lingering.discard))

    def _full(self, client: str) -> str | None:
        if self._count >= self._most:
            return "total"
        if self._by_client.get(client, 0) >= self._most_each and not self._is_proxy(client):
            return "client"
        return None

    def _add(self, client: str) -> None:
        self._by_client[client] = self._by_client.get(client, 0) + 1
        self._note(1)

    def _note(self, change: int) -> None:
        self._count += change
        if self._present is not None:
            self._present.set(self._count)


class _TurnedAway(asyncio.Protocol):
    """Answers the first thing it hears, drops the rest, and is gone with the client or after a moment.

    An answer before there is a question is a protocol error to some clients, and a close with unread bytes a reset
    that can overtake the answer.
    """

    def __init__(self, transport: asyncio.Transport, answer: bytes, gone: Callable[[_TurnedAway], None]) -> None:
        self._transport = transport
        self._answer = answer
        self._gone = gone
        self._timer = asyncio.get_running_loop().call_later(_LINGER_SECONDS, transport.abort)
        self._answered = False
        transport.set_protocol(self)

    def data_received(self, data: bytes) -> None:
        if self._answered:
            return
        self._answered = True
        head, end, _ = self._answer.partition(b"\r\n\r\n")
        self._transport.write(head + end if data.startswith(b"HEAD ") else self._answer)
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        self._gone(self)

"""Brings a row's trouble on, at its moment and for the requests that it is for, and ends it."""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack
from urllib.parse import urlsplit

from tests.faults.grammar import KINDS, RANGE, SIZE, Row
from tests.faults.troubles import TROUBLES, Place
from tests.upstream import ANY, Bearer, FakeRegistry, Fault, Rule, ranged, then, truncate
from tests.upstream.answers import Answer, Exchange, Pause

_PART = RANGE[1] - RANGE[0] + 1
_LITTLE = 20
"""Bytes that every list, token and manifest has."""


class Stage:
    """The upstream's side of a row."""

    def __init__(self, row: Row, upstream: FakeRegistry) -> None:
        self._row = row
        self._kind = KINDS[row.kind]
        self._trouble = TROUBLES[row.trouble]
        self._upstream = upstream
        self._tasks: set[asyncio.Task[None]] = set()
        self._held = ExitStack()
        """The ports of an upstream that is down: its address must not become another one's."""

    async def bring_on(self) -> Rule | None:
        """From now on requests meet the trouble; the rule by which they do, None where no connection comes so far."""
        skip, only_ranged = 0, None
        if self._row.moment == "resume":
            skip, only_ranged = 1, ranged if self._row.kind == "range" else None
            self._break_first()
        if self._trouble.spoils is not None:
            fault, times = self._trouble.spoils(self._place()), self._trouble.times
        elif self._row.moment == "before":
            await self._strike()
            return None
        else:
            fault, times = Fault(self._row.trouble, self._strike_at, methods=frozenset({"GET"})), 1
        return self._upstream.fault(ANY, fault, kind=self._kind.asked, times=times, skip=skip, when=only_ranged)

    async def clear(self) -> None:
        """Ends the trouble."""
        await asyncio.gather(*self._tasks)
        self._held.close()
        self._upstream.clear_faults()
        self._upstream.refuse_connections(0)
        await self._upstream.start()

    def _break_first(self) -> None:
        """Ends the first answer in its middle."""
        half = (_PART if self._row.kind == "range" else SIZE) // 2
        when = ranged if self._row.kind == "range" else None
        self._upstream.fault(ANY, truncate(half), kind="blob", times=1, when=when)
        if isinstance(self._upstream.auth, Bearer):
            self._upstream.fault(ANY, then(self._upstream.auth.expire_tokens), kind="blob", times=1)

    def _place(self) -> Place:
        row = self._row
        if row.moment == "before":
            return Place(None, 0)
        start, size = (RANGE[0], _PART) if row.kind == "range" else (0, SIZE)
        if self._kind.asked != "blob":
            size = 2 * _LITTLE
        at = {"first": 1, "middle": size // 2, "last": -2, "resume": size // 4}[row.moment]
        where = {"first": start, "middle": start + size // 2, "last": start + size - 1, "resume": start + size * 3 // 4}
        return Place(at, -1 if row.moment == "last" and row.kind != "range" else where[row.moment])

    # Without a connection.

    def _strike_at(self, _exchange: Exchange, answer: Answer, _rule: Rule) -> None:
        at = self._place().at
        if self._row.moment == "resume":
            at = None
        answer.steps.append(Pause(at, self._strike_soon))

    async def _strike_soon(self) -> None:
        task = asyncio.create_task(self._strike())
        self._tasks.add(task)
        await asyncio.Event().wait()  # the strike drops this connection, too

    async def _strike(self) -> None:
        if self._row.trouble == "outage":
            await self._upstream.stop()
            for url in (self._upstream.url, self._upstream.cdn_url):
                place = self._held.enter_context(socket.socket())
                place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                place.bind(("127.0.0.1", urlsplit(url).port))  # who does not listen refuses
        else:
            self._upstream.refuse_connections()
            self._upstream.drop_connections()

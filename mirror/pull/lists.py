"""Lists that upstreams give in pages: gathered, good for a short while, stale where the upstream does not answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from mirror.cache import Cache, ListName
from mirror.config import Timeouts
from mirror.metrics import Metrics
from mirror.oci.errors import InvalidRequest, UpstreamUnavailable
from mirror.pull.answers import Source
from mirror.pull.questions import Questions
from mirror.routing import Router, Target
from mirror.store.shapes import ListRecord
from mirror.transport import Deadline
from mirror.upstream import ListPage

Ask = Callable[[str], Awaitable["Gathered"]]
"""Gathers a list from a query of the upstream's on; empty: from its start."""
Page = Callable[[str], Awaitable[ListPage]]
"""Asks for the page that a query of the upstream's means."""

MOST_STRETCHES = 100
"""How many of a long list are looked through for one answer; after as many without anything there is an empty page."""
_MOST_PAGES = 100
_MOST_ITEMS = 100_000
_MOST_BYTES = 8 << 20
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Gathered:
    """What an upstream said: a list up to a bound. `following` is its query for the rest; None: there is none.

    `endless`: its pages came again instead of ending. `checked_at`: when it was said, None for just now. `source`:
    where it comes from; what is stale is not noted again. `substitute`: it stands for a list that the upstream has not.
    """

    items: tuple[str, ...]
    following: str | None = None
    endless: bool = False
    checked_at: float | None = None
    source: Source = Source.MISS
    substitute: bool = False


@dataclass(frozen=True, slots=True)
class ListAnswer:
    """A list, or a stretch of it; `rest` is the cursor of the stretch that follows, empty where nothing does."""

    items: Sequence[str]
    rest: str
    source: Source


@dataclass(frozen=True, slots=True)
class Following:
    """Where a list goes on: after the entry `last` (None: at its start) of the stretch that `cursor` points to."""

    last: str | None
    cursor: str


class FarLists(Protocol):
    """Other workers, which own upstreams."""

    def away(self, target: Target) -> bool:
        """Whether one of them is to be asked."""

    async def hear(self, target: Target, name: ListName, ask: Ask) -> ListAnswer:
        """What it says; by `ask` where it says nothing, and then it is not noted."""


class Lists:
    """Holds lists for the shorter of their upstream's `tag_ttl` and 30 s; asks for each of them once at a time."""

    def __init__(
        self,
        cache: Cache,
        router: Router,
        metrics: Metrics,
        timeouts: Timeouts,
        silence: Callable[[Target], str | None],
        far: FarLists | None = None,
    ) -> None:
        """`silence` says why nobody who holds a copy should wait for an upstream; None where it may answer. `far` asks
        for lists at whoever owns their upstreams.
        """
        self._far = far
        self._cache = cache
        self._router = router
        self._metrics = metrics
        self._timeouts = timeouts
        self._silence = silence
        self._questions = Questions()

    async def close(self) -> None:
        """Stops what is being asked."""
        await self._questions.close()

    async def get(self, target: Target, name: ListName, deadline: Deadline, ask: Ask) -> ListAnswer:
        """The list, by `ask` where it is not known or not fresh.

        Raises what `ask` raises, UpstreamTimeout, and InvalidRequest for a cursor that we never gave.
        """
        record = await self._cache.list_of(target, name)
        if record is None:
            return await self._ask(target, name, deadline, ask)
        overdue = self._cache.overdue(record.checked_at, self._cache.list_ttl(target))
        if overdue < 0:
            return _answer(record, Source.HIT)
        settings = self._router.settings(target.upstream)
        if overdue > settings.stale_if_error and not settings.offline:
            return await self._ask(target, name, deadline, ask)
        revalidates = overdue < settings.stale_while_revalidate
        at_once = "revalidating" if revalidates else self._silence(target)
        if at_once is not None:
            self._start(target, name, ask)
            return self._gone_stale(target, name, record, at_once)
        try:
            sooner = min(deadline, Deadline.after(self._timeouts.stale_after))
            return await self._ask(target, name, sooner, ask)
        except UpstreamUnavailable as error:
            return self._gone_stale(target, name, record, error.reason)

    async def learn(self, target: Target, name: ListName, ask: Ask) -> ListAnswer:
        """The same for another worker, which has looked at what is stale by itself: fresh, or as the upstream says.

        Where nobody who holds a copy should wait for the upstream, nobody waits: UpstreamUnavailable tells why.
        """
        record = await self._cache.list_of(target, name)
        if record is not None:
            overdue = self._cache.overdue(record.checked_at, self._cache.list_ttl(target))
            if overdue < 0:
                return _answer(record, Source.HIT)
            silence = self._silence(target)
            if silence is not None and overdue <= self._router.settings(target.upstream).stale_if_error:
                self._start(target, name, ask)
                raise UpstreamUnavailable(f"{target}: there is no answer to be had at the moment", reason=silence)
        return await self._ask(target, name, Deadline.after(self._timeouts.first_byte), ask)

    def _gone_stale(self, target: Target, name: ListName, record: ListRecord, reason: str) -> ListAnswer:
        self._metrics.stale_served.labels(upstream=target.upstream.entry, reason=reason).inc()
        _log.warning("served stale", source=str(target), kind=name.kind, reason=reason)
        return _answer(record, Source.STALE)

    async def _ask(self, target: Target, name: ListName, deadline: Deadline, ask: Ask) -> ListAnswer:
        """Asks, or joins whoever does; that goes on when we stop waiting."""
        key, question = self._question(target, name, ask)
        answer, joined = await self._questions.ask(key, question, deadline, f"{name.kind} of {target}")
        return replace(answer, source=Source.JOINED) if joined and answer.source is Source.MISS else answer

    def _start(self, target: Target, name: ListName, ask: Ask) -> None:
        self._questions.start(*self._question(target, name, ask))

    def _question(
        self, target: Target, name: ListName, ask: Ask
    ) -> tuple[tuple[bool, Target, ListName], Callable[[], Awaitable[ListAnswer]]]:
        far = self._far
        if far is not None and far.away(target):
            return (True, target, name), lambda: far.hear(target, name, ask)
        return (False, target, name), lambda: self.hear(target, name, ask)

    async def hear(self, target: Target, name: ListName, ask: Ask) -> ListAnswer:
        """What the upstream says, by `ask`; it is noted."""
        # Whoever came while an earlier question was ending may find its answer.
        record = await self._cache.list_of(target, name)
        if record is not None and self._cache.overdue(record.checked_at, self._cache.list_ttl(target)) < 0:
            return _answer(record, Source.HIT)
        await self._cache.check_absence(target, name, name.kind)
        query = await query_at(self._cache, target, name)
        question = await self._cache.question(target)
        async with self._cache.hearing_no(target, name, name.kind):
            heard = await ask(query)
        checked_at = heard.checked_at
        if checked_at is None or self._cache.overdue(checked_at, self._cache.list_ttl(target)) >= 0:
            checked_at = self._cache.now()  # what was said before still counts, by configuration: not asked each time
        if heard.source is Source.STALE:
            return ListAnswer(heard.items, "", heard.source)
        if record is None or (record.items, record.checked_at) != (heard.items, checked_at):
            record = await self._cache.put_list(
                question, name, heard.items, heard.following, checked_at, substitute=heard.substitute
            )
        return _answer(record, heard.source)


async def gather(ask: Page, query: str, until: Deadline, *, pages: int = _MOST_PAGES) -> Gathered:
    """The list from `query` on, without duplicates: to its end, or to the page at which it is long enough.

    That is so many pages, 100,000 entries or 8 MiB, or no time is left before `until`. Raises what `ask` raises: half a
    list is none.
    """
    items: dict[str, None] = {}
    asked: set[str] = set()
    size = 0
    while True:
        asked.add(query)
        page = await ask(query)
        known = len(items)
        items.update(dict.fromkeys(page.items))
        size += sum(map(len, page.items))
        if page.following is None:
            return Gathered(tuple(items))
        # Some proxies ignore where a page is to begin: they give the first one for ever.
        if page.following in asked or (page.items and len(items) == known):
            return Gathered(tuple(items), endless=True)
        query = page.following
        if len(asked) >= pages or len(items) >= _MOST_ITEMS or size >= _MOST_BYTES or until.expired:
            return Gathered(tuple(items), query)


async def query_at(cache: Cache, target: Target, name: ListName) -> str:
    """The upstream's query that a client's cursor means, if there is one.

    Raises InvalidRequest for one that we did not give.
    """
    query = await cache.query_of(target, name) if name.cursor else ""
    if query is None:
        raise InvalidRequest("next= is of no Link that was given here lately; list again from the start")
    return query


def _answer(record: ListRecord, source: Source) -> ListAnswer:
    return ListAnswer(record.items, record.rest, source)

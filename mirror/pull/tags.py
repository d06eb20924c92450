"""Lists of tags: whole and in order where they can be gathered, stretch by stretch where they are too long for that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from urllib.parse import parse_qs, urlencode

import structlog

from mirror.cache import Cache, ListName
from mirror.oci.errors import TagsUnknown, UpstreamUnavailable
from mirror.oci.reference import is_tag
from mirror.oci.tag_list import page_of
from mirror.pull.answers import Source
from mirror.pull.lists import MOST_STRETCHES, Following, Gathered, ListAnswer, Lists, Page, gather, query_at
from mirror.routing import Target
from mirror.transport import Deadline
from mirror.upstream import ListPage, Upstreams

_PAGE = "1000"
"""What upstreams are asked for at once; ECR refuses more."""
_WHOLE = f"n={_PAGE}"
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class TagsAnswer:
    """Some tags of a repository in ASCII order; `following` is None where there are no more."""

    tags: Sequence[str]
    following: Following | None
    source: Source


class TagsPuller:
    """Answers GET and HEAD of tag lists."""

    def __init__(self, cache: Cache, upstreams: Upstreams, lists: Lists, first_byte: float, asking: float) -> None:
        """Seconds: how long a client waits at most, and an upstream is asked."""
        self._cache = cache
        self._upstreams = upstreams
        self._lists = lists
        self._first_byte = first_byte
        self._asking = asking

    async def get(self, target: Target, count: int | None, last: str | None, cursor: str = "") -> TagsAnswer:
        """At most `count` tags (None: as many as there are), those after `last`, which need not exist.

        Raises TagsUnknown, NameUnknown, UpstreamRefused and UpstreamUnavailable, and InvalidRequest for a cursor that
        we never gave.
        """
        deadline = Deadline.after(self._first_byte)
        name = ListName("tags", cursor=cursor)
        for _ in range(MOST_STRETCHES):
            answer = await self._lists.get(target, name, deadline, lambda query: self._gather(target, query))
            tags, more = page_of(answer.items, count, last)
            if count == 0:
                return TagsAnswer(tags, None, answer.source)
            if more:
                return TagsAnswer(tags, Following(tags[-1], name.cursor), answer.source)
            if tags or not answer.rest:
                break
            if cursor:
                last = None  # a link of ours names a place in that stretch alone; otherwise it is the client's own
            name = await self._beyond(target, name, answer.rest, last)
        return TagsAnswer(tags, Following(None, answer.rest) if answer.rest else None, answer.source)

    async def learn(self, target: Target, name: ListName) -> ListAnswer:
        """A stretch of the list for another worker, see Lists.learn."""
        return await self._lists.learn(target, name, lambda query: self._gather(target, query))

    async def _beyond(self, target: Target, name: ListName, rest: str, last: str | None) -> ListName:
        """Where to go on after a stretch without any tag after `last`."""
        following = replace(name, cursor=rest)
        if last is None or not is_tag(last):
            return following
        query = parse_qs(await query_at(self._cache, target, following), keep_blank_values=True)
        if "last" not in query or not set(query) <= {"n", "last"} or query["last"][0] >= last:
            return following
        # A client has named a tag far down, and the upstream's own pages begin by the name of a tag: so does this one.
        return replace(name, cursor=await self._cache.put_cursor(target, name, urlencode({"n": _PAGE, "last": last})))

    async def _gather(self, target: Target, query: str) -> Gathered:
        """The tags from the upstream's own `query` on, or all of them."""
        deadline = Deadline.after(self._asking)
        # Half of the time for gathering: the last page needs some, too, and whoever asked has waited for all of them.
        until = Deadline.after(self._asking / 2)

        async def page(query: str) -> ListPage:
            try:
                return await self._upstreams.list_tags(target, query, deadline)
            except TagsUnknown as error:
                if query in ("", _WHOLE):
                    raise
                raise UpstreamUnavailable(f"{target}: its tags do not go on", reason="page") from error

        if query:
            gathered = await gather(page, query, until, pages=1)
        else:
            gathered = await self._from_start(target, page, until)
        if gathered.endless:
            _log.warning("an upstream's list of tags does not end", source=str(target), tags=len(gathered.items))
        return replace(gathered, items=tuple(sorted(gathered.items)))

    async def _from_start(self, target: Target, page: Page, until: Deadline) -> Gathered:
        try:
            gathered = await gather(page, _WHOLE, until)
        except UpstreamUnavailable as error:
            if error.reason != "page":
                raise
        else:
            if not gathered.endless:
                return gathered
        return await gather(page, "", until)

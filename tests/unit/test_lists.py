"""Lists as they are gathered from an upstream's pages, and as they are kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.cache import Cache, ListName
from mirror.metrics import Metrics
from mirror.oci.digest import Digest
from mirror.oci.errors import NameUnknown, TagsUnknown, UpstreamTimeout
from mirror.pull.answers import Source
from mirror.pull.lists import Gathered, ListAnswer, Lists, gather
from mirror.routing import Target
from mirror.transport import Deadline
from mirror.upstream import ListPage
from tests.books import Book
from tests.clock import Clock
from tests.harness import short_timeouts
from tests.unit.test_cache import make_cache, make_router

TAGS = ListName("tags")


def pages_of(items: list[str], size: int) -> tuple[list[str], Callable[[str], Awaitable[ListPage]]]:
    """An upstream whose pages have `size` items, the query being where one begins; and what it was asked."""
    asked: list[str] = []

    async def page(query: str) -> ListPage:
        asked.append(query)
        start = int(query or 0)
        end = start + size
        return ListPage(items[start:end], str(end) if end < len(items) else None)

    return asked, page


class TestGathering:
    @given(st.lists(st.text(max_size=4), max_size=40, unique=True), st.integers(1, 10), st.integers(1, 10))
    async def test_stretches_are_together_the_list(self, items: list[str], size: int, pages: int) -> None:
        """Whatever the bound: nothing is lost or said twice, and every page is asked for once."""
        asked, page = pages_of(items, size)
        found: list[str] = []
        query: str | None = ""
        while query is not None:
            gathered = await gather(page, query, Deadline.after(60), pages=pages)
            assert not gathered.endless
            found += gathered.items
            query = gathered.following
        assert found == items
        assert len(asked) == len(set(asked)) == max(1, -(-len(items) // size))

    async def test_duplicates_are_dropped(self) -> None:
        """A page may begin with the entry that the one before ended with."""
        pages = {"": ListPage(["a", "b"], "2"), "2": ListPage(["b", "c"], None)}

        async def page(query: str) -> ListPage:
            return pages[query]

        assert await gather(page, "", Deadline.after(60)) == Gathered(("a", "b", "c"))

    @pytest.mark.parametrize(
        "pages",
        [
            {"": ListPage(["a"], "2"), "2": ListPage(["a"], "3"), "3": ListPage(["a"], "4")},
            {"": ListPage(["a"], "2"), "2": ListPage(["b"], "2")},
            {"": ListPage(["a"], "2"), "2": ListPage([], "3"), "3": ListPage([], "2")},
        ],
        ids=["same-entries", "same-query", "circle"],
    )
    async def test_pages_that_come_again_end(self, pages: dict[str, ListPage]) -> None:
        """And it is said that the list did not."""

        async def page(query: str) -> ListPage:
            return pages[query]

        assert (await gather(page, "", Deadline.after(60))).endless

    async def test_an_empty_page_ends_nothing(self) -> None:
        """Some upstreams filter after they have cut."""
        pages = {"": ListPage([], "2"), "2": ListPage(["a"], None)}

        async def page(query: str) -> ListPage:
            return pages[query]

        assert await gather(page, "", Deadline.after(60)) == Gathered(("a",))

    async def test_half_a_list_is_none(self) -> None:
        """An error of any page is the error of all."""

        async def page(query: str) -> ListPage:
            if query:
                raise UpstreamTimeout("too late")
            return ListPage(["a"], "2")

        with pytest.raises(UpstreamTimeout):
            await gather(page, "", Deadline.after(60))

    @pytest.mark.parametrize(
        ("items", "first"),
        [(list(map(str, range(300_000))), 100_000), ([f"{n}{'x' * (3 << 20)}" for n in range(5)], 3)],
    )
    async def test_entries_and_bytes_are_bounded(self, items: list[str], first: int) -> None:
        """What has become long enough is not gathered any further."""
        _, page = pages_of(items, 50_000 if len(items) > 5 else 1)
        gathered = await gather(page, "", Deadline.after(60))
        assert (len(gathered.items), gathered.following) == (first, str(first))

    async def test_time_is_bounded(self) -> None:
        """The first page is asked for in any case, the next one only while there is time."""
        asked, page = pages_of(["a", "b"], 1)
        assert await gather(page, "", Deadline.after(0)) == Gathered(("a",), "1")
        assert asked == [""]


@pytest.fixture
def clock() -> Clock:
    """The wall clock."""
    return Clock()


@pytest.fixture
async def book() -> Book:
    """The records below."""
    return Book()


@pytest.fixture
async def cache(book: Book, clock: Clock) -> AsyncIterator[Cache]:
    """The cache under test."""
    cache = make_cache(book, clock=clock)
    yield cache
    await cache.close()


@pytest.fixture
def target() -> Target:
    """A repository."""
    return make_router().resolve("a.test/app", None)


async def put(cache: Cache, target: Target, name: ListName, *items: str, following: str | None = None) -> None:
    """The upstream lists these."""
    await cache.put_list(await cache.question(target), name, items, following, cache.now())


class TestKeeping:
    async def test_a_list_is_there_for_the_next_process(
        self, cache: Cache, book: Book, target: Target, clock: Clock
    ) -> None:
        """With its order, and when it was heard."""
        await put(cache, target, TAGS, "b", "a")

        for one in (cache, make_cache(book, clock=clock)):
            record = await one.list_of(target, TAGS)
            assert record is not None
            assert (record.items, record.rest) == (("b", "a"), "")
            assert one.overdue(record.checked_at, 30) < 0

    async def test_every_list_is_another_one(self, cache: Cache, target: Target) -> None:
        """Tags and referrers, of each digest, from each place on, in each repository of each upstream."""
        other, there = (make_router().resolve(name, None) for name in ("a.test/other", "b.test/app"))
        one, two = Digest.of(b"1"), Digest.of(b"2")
        names = [TAGS, ListName("tags", cursor="c"), ListName("referrers", one), ListName("referrers", two)]
        for where in (target, other, there):
            for name in names:
                await put(cache, where, name, f"{where} {name}")
        for where in (target, other, there):
            for name in names:
                record = await cache.list_of(where, name)
                assert record is not None
                assert record.items == (f"{where} {name}",)

    async def test_a_refusal_ends_lists(self, cache: Cache, book: Book, target: Target, clock: Clock) -> None:
        """Those from before, for this process and the next, and those that were on their way."""
        await put(cache, target, TAGS, "a")
        question = await cache.question(target)
        await cache.refuse(target)

        assert await cache.list_of(target, TAGS) is None
        await cache.put_list(question, TAGS, ("a",), None, cache.now())
        assert await cache.list_of(target, TAGS) is None
        assert await make_cache(book, clock=clock).list_of(target, TAGS) is None

    async def test_a_no_to_a_list_is_remembered(self, cache: Cache, target: Target) -> None:
        """It takes the list away; unless it denies the repository, nothing else; and a yes takes it back."""
        await put(cache, target, TAGS, "a")
        await cache.heard_no(target, TAGS, "tags", TagsUnknown("none"))

        assert await cache.list_of(target, TAGS) is None
        with pytest.raises(NameUnknown):
            await cache.check_absence(target, TAGS, "tags")
        await put(cache, target, TAGS, "a")
        await cache.check_absence(target, TAGS, "tags")

    async def test_cursors_mean_queries(self, cache: Cache, book: Book, target: Target, clock: Clock) -> None:
        """Of this repository and this list alone, and after a restart; the query itself is not to be seen in one."""
        await put(cache, target, TAGS, "a", following="last=a&token=secret")
        record = await cache.list_of(target, TAGS)
        assert record is not None
        assert "secret" not in record.rest
        name = ListName("tags", cursor=record.rest)

        assert await cache.query_of(target, name) == "last=a&token=secret"
        assert await make_cache(book, clock=clock).query_of(target, name) == "last=a&token=secret"
        assert await cache.query_of(make_router().resolve("a.test/other", None), name) is None
        assert await cache.query_of(target, ListName("referrers", Digest.of(b"x"), record.rest)) is None

    async def test_a_list_too_long_for_memory_is_kept_on_disk(self, cache: Cache, target: Target) -> None:
        """Where it takes more than all lists together may take in memory."""
        items = [f"{number:01000}" for number in range(65_000)]
        await put(cache, target, TAGS, "a")
        await put(cache, target, TAGS, *items)
        record = await cache.list_of(target, TAGS)
        assert record is not None
        assert len(record.items) == len(items)


async def test_whoever_comes_late_finds_the_answer(book: Book, target: Target, clock: Clock) -> None:
    """A client that was still reading an expired list when a question for it ended asks no second time."""
    before = make_cache(book, clock=clock)
    await put(before, target, TAGS, "old")
    await before.close()
    clock.forward(31)
    cache = make_cache(book, clock=clock)
    lists = Lists(cache, make_router(), Metrics(), short_timeouts(), silence=lambda _: None)
    asked = 0

    async def ask(_: str) -> Gathered:
        nonlocal asked
        asked += 1
        return Gathered(("new",))

    async def get() -> ListAnswer:
        return await lists.get(target, TAGS, Deadline.after(60), ask)

    book.hold()
    late = asyncio.create_task(get())
    await book.reading.wait()
    book.release()
    book.hold()  # it has the list, and reads whether it still counts
    await book.reading.wait()
    first = await get()
    book.release()

    assert (first.source, first.items) == (Source.MISS, ("new",))
    assert ((await late).source, (await late).items) == (Source.HIT, ("new",))
    assert asked == 1
    await lists.close()
    await cache.close()

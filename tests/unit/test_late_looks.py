"""Whoever looked before an answer was noted, and asks after it: that question has been answered already."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from mirror.cache import Cache, Kind
from mirror.config import Timeouts
from mirror.download import Sample
from mirror.metrics import Metrics
from mirror.oci.digest import Digest
from mirror.oci.reference import Reference, Tag
from mirror.pull.answers import ManifestAnswer, Source
from mirror.pull.manifests import ManifestPuller
from mirror.pull.permission import Permissions
from mirror.pull.renewals import Renewals
from mirror.routing import Target
from mirror.store.shapes import LinkRecord
from mirror.transport import Deadline
from tests.books import Book
from tests.clock import Clock
from tests.unit.test_cache import make_cache, make_router

ROUTER = make_router()
TARGET = ROUTER.resolve("a.test/app", None)
DIGEST, SIZE = Digest.of(b"content"), 7
TAG = Tag("1")
SAMPLE = Sample(0, b"content")


class Upstream:
    """Has everything, and counts how often it is asked: a Witness and an Asker."""

    def __init__(self, cache: Cache) -> None:
        self.asked = 0
        self._cache = cache

    def silence(self, target: Target) -> str | None:
        return None

    async def renew(self, *_: object) -> None:
        raise AssertionError("nothing here is old")

    async def claim(self, target: Target, digest: Digest, deadline: Deadline) -> LinkRecord:
        return await self._show(target, "blob", proven=False)

    async def prove(self, target: Target, digest: Digest, size: int, ours: Sample, deadline: Deadline) -> LinkRecord:
        return await self._show(target, "blob", proven=True)

    async def by_digest(self, target: Target, digest: Digest, *, head: bool) -> ManifestAnswer:
        await self._show(target, "manifest", proven=False)
        return ManifestAnswer(digest, SIZE, "", None, Source.MISS)

    async def by_tag(self, target: Target, tag: Tag, known: Digest | None, *, head: bool) -> ManifestAnswer:
        answer = await self.by_digest(target, DIGEST, head=head)
        await self._cache.put_tag(await self._cache.question(target), tag, DIGEST)
        return answer

    async def _show(self, target: Target, kind: Kind, *, proven: bool) -> LinkRecord:
        self.asked += 1
        question = await self._cache.question(target)
        return await self._cache.put_link(question, kind, DIGEST, SIZE, proven=proven)


@pytest.fixture
def book() -> Book:
    """Holds reads back."""
    return Book()


@pytest.fixture
async def cache(book: Book) -> Cache:
    """Over `book`; it has read all of the repository but what the upstream denied."""
    cache = make_cache(book, clock=Clock(), router=ROUTER)
    await cache.link(TARGET, "blob", DIGEST)
    await cache.link(TARGET, "manifest", DIGEST)
    await cache.tag(TARGET, TAG)
    return cache


@pytest.fixture
def upstream(cache: Cache) -> Upstream:
    """Whoever is asked."""
    return Upstream(cache)


@pytest.fixture
async def permissions(cache: Cache, upstream: Upstream) -> AsyncIterator[Permissions]:
    """Of blobs."""
    permissions = Permissions(cache, lambda _: upstream, Renewals(cache, ROUTER), 60.0)
    yield permissions
    await permissions.close()


@pytest.fixture
async def manifests(cache: Cache, upstream: Upstream) -> AsyncIterator[ManifestPuller]:
    """Of the same repository."""
    manifests = ManifestPuller(cache, lambda _: upstream, Renewals(cache, ROUTER), ROUTER, Metrics(), Timeouts())
    yield manifests
    await manifests.close()


async def late(book: Book, call: Callable[[], Awaitable[object]]) -> None:
    """Two callers: one has looked before the other one's question, and hears of what it saw after that."""
    book.hold()
    slow = asyncio.ensure_future(call())
    await book.reading.wait()
    await call()
    book.release()
    await slow


async def test_of_a_claim(book: Book, permissions: Permissions, upstream: Upstream) -> None:
    """One HEAD of the blob."""
    await late(book, lambda: permissions.size(TARGET, DIGEST, Deadline.after(60)))

    assert upstream.asked == 1


async def test_of_a_proof(book: Book, cache: Cache, permissions: Permissions, upstream: Upstream) -> None:
    """One comparison of bytes."""
    await permissions.prove(TARGET, DIGEST, SIZE, SAMPLE, Deadline.after(60))
    await permissions.prove(TARGET, DIGEST, SIZE, SAMPLE, Deadline.after(60))

    assert upstream.asked == 1


async def test_not_of_a_claim_that_is_doubted(cache: Cache, permissions: Permissions, upstream: Upstream) -> None:
    """Whoever holds other bytes than were claimed has it asked again."""
    doubted = await permissions.claim(TARGET, DIGEST, Deadline.after(60))
    await permissions.claim(TARGET, DIGEST, Deadline.after(60), doubted=doubted)

    assert upstream.asked == 2


@pytest.mark.parametrize("reference", [DIGEST, TAG], ids=["digest", "tag"])
async def test_of_a_manifest(book: Book, manifests: ManifestPuller, upstream: Upstream, reference: Reference) -> None:
    """One HEAD of it."""
    await late(book, lambda: manifests.get(TARGET, reference, head=True))

    assert upstream.asked == 1

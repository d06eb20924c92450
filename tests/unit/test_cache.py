"""What we hold by name: who may have what, until when, and that losing a record costs questions, never secrets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from mirror.cache import Cache, Question
from mirror.config import Settings, Storage, UpstreamSettings
from mirror.metrics import Metrics
from mirror.oci.digest import Digest
from mirror.oci.errors import BlobUnknown, ManifestUnknown, NameUnknown, UpstreamRefused, UpstreamTimeout
from mirror.oci.reference import Tag
from mirror.routing import Router, Target
from mirror.store.blobs import BlobStore
from mirror.store.budget import Budget
from mirror.store.files import Files
from mirror.store.trouble import Trouble
from tests.books import Book
from tests.clock import Clock

DAY = 86400.0
DIGEST = Digest.of(b"content")
SIZE = 7
TAG = Tag("1")
NO = UpstreamRefused("no")


def make_router() -> Router:
    """Two upstreams."""
    return Router(Settings(upstreams={"a.test": UpstreamSettings(), "b.test": UpstreamSettings(negative_ttl=0)}))


def make_cache(book: Book | None = None, *, clock: Callable[[], float], router: Router | None = None) -> Cache:
    """A cache over a book; its blob store is never opened."""
    metrics, root = Metrics(), Path("/nonexistent")
    trouble = Trouble(metrics, clock)
    blobs = BlobStore(root, Files(), clock)
    budget = Budget(Storage(path=root), blobs, trouble, metrics)
    return Cache(book or Book(), blobs, budget, trouble, router or make_router(), clock=clock)


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


@pytest.fixture
def other() -> Target:
    """The same name at another upstream."""
    return make_router().resolve("b.test/app", None)


async def show(cache: Cache, target: Target, *, proven: bool = True, size: int = SIZE) -> None:
    """The upstream shows the blob."""
    await cache.put_link(await cache.question(target), "blob", DIGEST, size, proven=proven)


async def permitted(cache: Cache, target: Target, size: int = SIZE) -> bool:
    """Whether the blob may be given without asking."""
    link = await cache.link(target, "blob", DIGEST)
    return link is not None and await cache.permits(target, DIGEST, link, size)


class TestLinks:
    async def test_a_digest_is_linked_where_it_was_shown(self, cache: Cache, target: Target, other: Target) -> None:
        """Not at another upstream, not under another repository's name, not as another kind of thing."""
        await show(cache, target)

        assert await permitted(cache, target)
        assert not await permitted(cache, other)
        assert not await permitted(cache, Target(target.upstream, "app/app"))
        assert await cache.link(target, "manifest", DIGEST) is None

    @pytest.mark.parametrize(
        ("origin", "size", "good"), [("a.test", SIZE, True), ("a.test", SIZE + 1, False), ("b.test", SIZE, False),
                                     (None, SIZE, False)],
    )  # fmt: skip
    async def test_a_claim_is_good_for_bytes_of_its_own_upstream(
        self, cache: Cache, target: Target, origin: str | None, size: int, good: bool
    ) -> None:
        """With the right length, and as long as we know where the bytes came from."""
        await show(cache, target, proven=False, size=size)
        if origin is not None:
            await cache.put_origin(DIGEST, origin)

        assert await permitted(cache, target) is good

    async def test_nothing_at_all_needs_no_proof(self, cache: Cache, target: Target) -> None:
        """The empty blob is everybody's, who claims it."""
        assert not await permitted(cache, target, size=0)
        await show(cache, target, proven=False, size=0)

        assert await permitted(cache, target, size=0)

    async def test_a_claim_takes_nothing_from_a_proof(self, cache: Cache, target: Target, clock: Clock) -> None:
        """It only says that the link is good still, whatever length it tells."""
        await show(cache, target)
        clock.forward(100)

        await show(cache, target, proven=False, size=99)

        link = await cache.link(target, "blob", DIGEST)
        assert link is not None
        assert (link.proven, link.size) == (True, SIZE)
        assert cache.overdue(link.checked_at, 50) < 0

    async def test_a_claim_that_turned_out_wrong_is_dropped_and_a_proof_is_not(
        self, cache: Cache, target: Target
    ) -> None:
        """One bad copy does not undo what was shown before."""
        await show(cache, target, proven=False)
        await cache.drop_claim(target, "blob", DIGEST)
        assert await cache.link(target, "blob", DIGEST) is None

        await show(cache, target)
        await cache.drop_claim(target, "blob", DIGEST)
        assert await permitted(cache, target)

    async def test_a_404_ends_one_link(self, cache: Cache, target: Target) -> None:
        """And not that of the manifest with the same digest."""
        await show(cache, target)
        await cache.put_link(await cache.question(target), "manifest", DIGEST, SIZE, "a/b", proven=True)

        await cache.heard_no(target, DIGEST, "blob", BlobUnknown("gone"))

        assert await cache.link(target, "blob", DIGEST) is None
        assert await cache.link(target, "manifest", DIGEST) is not None

    async def test_a_404_is_not_undone_by_a_renewal(
        self, cache: Cache, book: Book, target: Target, clock: Clock
    ) -> None:
        """A link that is being renewed on use while it ends stays ended."""
        await show(cache, target)
        clock.forward(2 * DAY)

        await asyncio.gather(
            cache.link(target, "blob", DIGEST), cache.heard_no(target, DIGEST, "blob", BlobUnknown("gone"))
        )

        assert await cache.link(target, "blob", DIGEST) is None
        assert await make_cache(book, clock=clock).link(target, "blob", DIGEST) is None

    async def test_a_renewal_is_written_once_a_day(
        self, cache: Cache, book: Book, target: Target, clock: Clock
    ) -> None:
        """The hot path writes nothing."""
        await show(cache, target)
        written = dict(book.rows)
        clock.forward(0.9 * DAY)
        await cache.link(target, "blob", DIGEST)
        assert book.rows == written

        clock.forward(0.2 * DAY)
        await cache.link(target, "blob", DIGEST)
        assert book.rows != written
        assert set(book.rows) == set(written)


class TestEpochs:
    async def test_a_refusal_ends_all_and_nothing_of_others(
        self, cache: Cache, book: Book, target: Target, other: Target, clock: Clock
    ) -> None:
        """Links and tags of that repository, for this process and the next."""
        for one in (target, other):
            await show(cache, one)
            await cache.put_tag(await cache.question(one), TAG, DIGEST)

        await cache.refuse(target)

        for cache_ in (cache, make_cache(book, clock=clock)):
            assert not await permitted(cache_, target)
            assert await cache_.tag(target, TAG) is None
            assert await permitted(cache_, other)
            assert await cache_.tag(other, TAG) is not None

    async def test_an_answer_to_a_question_from_before_is_void(self, cache: Cache, target: Target) -> None:
        """A yes that was on its way when the refusal came counts for nothing."""
        question = await cache.question(target)
        await cache.refuse(target)

        await cache.put_link(question, "blob", DIGEST, SIZE, proven=True)
        await cache.put_tag(question, TAG, DIGEST)

        assert not await permitted(cache, target)
        assert await cache.tag(target, TAG) is None

    async def test_an_answer_from_before_takes_nothing_from_what_came_since(self, cache: Cache, target: Target) -> None:
        """It does not replace a link or a tag of the new epoch either."""
        question = await cache.question(target)
        await cache.refuse(target)
        await show(cache, target)
        await cache.put_tag(await cache.question(target), TAG, DIGEST)

        await cache.put_link(question, "blob", DIGEST, SIZE, proven=True)
        await cache.put_tag(question, TAG, DIGEST)

        assert await permitted(cache, target)
        assert await cache.tag(target, TAG) is not None

    async def test_a_refusal_during_the_write_counts(
        self, cache: Cache, book: Book, target: Target, clock: Clock
    ) -> None:
        """In whatever order the two come to the disk."""
        question = await cache.question(target)

        await asyncio.gather(cache.put_link(question, "blob", DIGEST, SIZE, proven=True), cache.refuse(target))

        assert not await permitted(cache, target)
        assert not await permitted(make_cache(book, clock=clock), target)

    async def test_a_refusal_during_a_renewal_counts(
        self, cache: Cache, book: Book, target: Target, clock: Clock
    ) -> None:
        """The daily renewal of a link does not renew an epoch that has ended."""
        await show(cache, target)
        clock.forward(2 * DAY)

        await asyncio.gather(cache.link(target, "blob", DIGEST), cache.refuse(target))

        assert not await permitted(cache, target)
        assert not await permitted(make_cache(book, clock=clock), target)

    async def test_no_epoch_ever_comes_back(self, cache: Cache, book: Book, target: Target, clock: Clock) -> None:
        """Links of every earlier epoch are dead, also where the epoch's record is lost in between."""
        dead = []
        for _ in range(5):
            await show(cache, target)
            dead.append({key: row for key, row in book.rows.items() if key[0] == "link-blob"})
            await cache.refuse(target)
            for key in [key for key in book.rows if key[0] == "epoch"]:
                del book.rows[key]
        await show(cache, target)

        for rows in dead:
            book.rows.update(rows)
            assert not await permitted(make_cache(book, clock=clock), target)

    async def test_a_lost_epoch_ends_links_and_brings_none_back(
        self, cache: Cache, book: Book, target: Target, clock: Clock
    ) -> None:
        """Its loss costs one question per link."""
        await show(cache, target)
        del book.rows["epoch", "a.test", "app"]

        assert not await permitted(make_cache(book, clock=clock), target)

    async def test_an_epoch_outlives_its_links(self, cache: Cache, book: Book, target: Target, clock: Clock) -> None:
        """It is renewed with them: use alone keeps both."""
        await show(cache, target)
        key = ("epoch", "a.test", "app")
        assert book.useful_for[key] > book.useful_for["link-blob", "a.test", "app", str(DIGEST)]
        book.useful_for[key] = 0

        clock.forward(2 * DAY)
        await cache.link(target, "blob", DIGEST)

        assert book.useful_for[key] > 0

    async def test_a_repository_that_showed_nothing_leaves_no_record(
        self, cache: Cache, book: Book, target: Target
    ) -> None:
        """Whoever asks for names that nobody has fills no disk with refusals."""
        for number in range(100):
            nowhere = Target(target.upstream, f"nowhere/{number}")
            assert await cache.tag(nowhere, TAG) is None
            await cache.heard_no(nowhere, TAG, "manifest", NO)

        assert book.rows == {}

    async def test_a_refusal_counts_where_the_disk_takes_nothing(
        self, cache: Cache, book: Book, target: Target
    ) -> None:
        """As long as this process lives."""
        await show(cache, target)
        book.lost = True

        await cache.refuse(target)

        assert not await permitted(cache, target)


class TestTags:
    async def test_a_tag_is_kept_beyond_what_may_be_served(self, cache: Cache, book: Book, target: Target) -> None:
        """Its record saves a GET as long as its manifest is held."""
        await cache.put_tag(await cache.question(target), TAG, DIGEST)

        assert book.useful_for["tag", "a.test", "app", "1"] >= 30 * DAY

    async def test_what_it_meant_before_is_kept_until_we_have_what_it_means(self, cache: Cache, target: Target) -> None:
        """However often it moves in between."""
        first, second, third = (json.dumps({"schemaVersion": 2, "n": n}).encode() for n in range(3))

        async def name(content: bytes, *, held: bool) -> str | None:
            digest = Digest.of(content)
            if held:
                await cache.put_manifest(digest, content)
            await cache.put_tag(await cache.question(target), TAG, digest)
            record = await cache.tag(target, TAG)
            assert record is not None
            assert record.digest == str(digest)
            return record.before

        assert await name(first, held=True) == ""
        assert await name(second, held=False) == str(Digest.of(first))
        assert await name(second, held=False) == str(Digest.of(first))
        assert await name(third, held=False) == str(Digest.of(first))
        assert await name(third, held=True) == ""

    @pytest.mark.parametrize(("age", "overdue"), [(0, -10), (9, -1), (10, 0), (15, 5), (-1, 0), (-1e9, 0)])
    def test_overdue(self, clock: Clock, age: float, overdue: float) -> None:
        """Below 0 it is fresh; what comes from the future is just out of date."""
        cache = make_cache(Book(), clock=lambda: 1_000_000.0)

        assert cache.overdue(1_000_000.0 - age, 10) == overdue


class TestAbsences:
    @pytest.mark.parametrize("error", [ManifestUnknown("gone"), NameUnknown("gone")])
    async def test_the_same_no_is_said_again(
        self, cache: Cache, book: Book, target: Target, clock: Clock, error: ManifestUnknown | NameUnknown
    ) -> None:
        """Of the same kind, by this process and the next, for `negative_ttl`."""
        await cache.heard_no(target, TAG, "manifest", error)

        for cache_ in (cache, make_cache(book, clock=clock)):
            with pytest.raises(type(error), match="gone"):
                await cache_.check_absence(target, TAG, "manifest")
            await cache_.check_absence(target, TAG, "blob")
        clock.forward(31)
        await cache.check_absence(target, TAG, "manifest")

    async def test_refusals_and_silence_are_not_remembered(self, cache: Cache, target: Target, other: Target) -> None:
        """Nor is anything where `negative_ttl` is 0."""
        for error in (NO, UpstreamTimeout("late")):
            await cache.heard_no(target, DIGEST, "blob", error)
        await cache.heard_no(other, DIGEST, "blob", BlobUnknown("gone"))

        await cache.check_absence(target, DIGEST, "blob")
        await cache.check_absence(other, DIGEST, "blob")

    async def test_what_is_shown_is_not_absent(self, cache: Cache, book: Book, target: Target, clock: Clock) -> None:
        """Even if the absence was written by an earlier process."""
        await cache.heard_no(target, DIGEST, "blob", BlobUnknown("gone"))
        await cache.heard_no(target, TAG, "manifest", ManifestUnknown("gone"))
        later = make_cache(book, clock=clock)
        await show(later, target)
        await later.put_tag(await later.question(target), TAG, DIGEST)

        await later.check_absence(target, DIGEST, "blob")
        await later.check_absence(target, TAG, "manifest")


class TestManifests:
    async def test_bytes_are_the_same_after_a_restart(self, cache: Cache, book: Book, clock: Clock) -> None:
        """And are renewed on use, daily."""
        content = b'{"schemaVersion": 2}'
        digest = Digest.of(content)
        await cache.put_manifest(digest, content)
        written = book.rows["manifest", str(digest)]

        later = make_cache(book, clock=clock)
        held = await later.manifest(digest)
        assert held is not None
        assert held.content == content
        assert book.rows["manifest", str(digest)] == written
        clock.forward(2 * DAY)
        await later.manifest(digest)
        assert book.rows["manifest", str(digest)] != written

    @pytest.mark.parametrize("damage", [b"", b"short", b"12345678{}"])
    async def test_damaged_bytes_are_not_there(self, cache: Cache, book: Book, damage: bytes) -> None:
        """They are verified when they are read."""
        book.rows["manifest", str(DIGEST)] = damage

        assert await cache.manifest(DIGEST) is None

    async def test_serving_tells_the_lengths_of_blobs(self, cache: Cache, target: Target, other: Target) -> None:
        """For that repository, of the first thousand; a length below 0 tells nothing."""
        blobs = [Digest.of(f"{number}".encode()) for number in range(3000)]
        layers = [{"digest": str(blob), "size": number - 1} for number, blob in enumerate(blobs)]
        content = json.dumps({"schemaVersion": 2, "layers": layers}).encode()
        await cache.put_manifest(Digest.of(content), content)

        cache.note_served(target, Digest.of(content))

        assert cache.hints.get(target, blobs[0]) is None
        assert cache.hints.get(target, blobs[500]) == 499
        assert cache.hints.get(target, blobs[2500]) is None
        assert cache.hints.get(other, blobs[500]) is None
        cache.hints.forget(target, blobs[500])
        assert cache.hints.get(target, blobs[500]) is None


async def test_a_question_is_a_value(cache: Cache, target: Target) -> None:
    """Two questions of one epoch are equal; of two epochs they are not."""
    first = await cache.question(target)
    assert first == await cache.question(target) == Question(target, first.epoch)
    await cache.refuse(target)

    assert first != await cache.question(target)

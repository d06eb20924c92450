"""A refusal ends what a repository has shown us, all at once; a 404 ends one thing; links are asked again from time
to time."""

from __future__ import annotations

import asyncio
import sqlite3

import pytest

from mirror.config import UpstreamSettings
from tests.clock import Clock
from tests.conftest import StartMirror
from tests.harness import RunningMirror, short_timeouts
from tests.reading import Reading, blob_path
from tests.upstream import ANY, Bearer, FakeRegistry, Fault, Image, html, refuse, stall, stall_at, status

REPOSITORY = "team/app"
DAY = 86400.0
PATIENT = short_timeouts(first_byte=5, cold_head=5, stale_after=2)
REFUSALS = pytest.mark.parametrize(
    "refusal", [status(401), status(403), status(404, error="NAME_UNKNOWN")], ids=["401", "403", "no-repository"]
)


@pytest.fixture
def clock() -> Clock:
    """The mirror's wall clock."""
    return Clock()


@pytest.fixture
async def mirror(start_mirror: StartMirror, clock: Clock) -> RunningMirror:
    """A mirror in front of `upstream` as docker.io."""
    return await start_mirror(clock=clock, timeouts=PATIENT)


@pytest.fixture
async def image(mirror: RunningMirror, upstream: FakeRegistry) -> Image:
    """An image that the mirror holds, by its tag and by digests."""
    image = upstream.add_image(REPOSITORY, "1", layers=[10_000, 20_000])
    for path in paths(image):
        assert (await mirror.get(path)).status == 200
    await mirror.quiet()
    upstream.reset()
    return image


def paths(image: Image) -> list[str]:
    """All that the image is asked for by."""
    ends = ["manifests/1", f"manifests/{image.digest}", *(f"blobs/{blob.digest}" for blob in image.blobs)]
    return [f"/v2/{REPOSITORY}/{end}" for end in ends]


async def refused(mirror: RunningMirror, upstream: FakeRegistry, refusal: Fault) -> None:
    """Lets the mirror hear a refusal, by a question about something that nobody has."""
    rule = upstream.fault(REPOSITORY, refusal)
    assert (await mirror.manifest(REPOSITORY, "unheard-of")).status in (403, 404)
    rule.remove()


class TestRepositories:
    @REFUSALS
    async def test_a_refusal_ends_all_that_the_repository_showed(
        self, mirror: RunningMirror, upstream: FakeRegistry, image: Image, refusal: Fault
    ) -> None:
        """Tags, manifests and blobs, fresh and held as they are, are refused with it; also after a restart."""
        rule = upstream.fault(REPOSITORY, refusal)
        await mirror.manifest(REPOSITORY, "unheard-of")
        for path in paths(image):
            for method in ("GET", "HEAD"):
                assert (await mirror.get(path, method=method)).status in (403, 404)

        await mirror.restart()
        assert {(await mirror.get(path)).status for path in paths(image)} <= {403, 404}
        rule.remove()

    @REFUSALS
    async def test_afterwards_each_thing_is_asked_for_once(
        self, mirror: RunningMirror, upstream: FakeRegistry, image: Image, refusal: Fault
    ) -> None:
        """Once the upstream says yes again, one question each gives all back: the bytes never went."""
        await refused(mirror, upstream, refusal)
        upstream.reset()

        digests = paths(image)[1:]
        first = [await mirror.get(path) for path in digests]
        second = [await mirror.get(path) for path in digests]

        assert {reply.cache for reply in first} == {"revalidated"}
        assert {reply.cache for reply in second} == {"hit"}
        assert [seen.method for seen in upstream.content_requests()] == ["HEAD"] * len(digests)
        assert upstream.bytes_for() == 0

    async def test_what_was_refused_is_not_served_stale(
        self, mirror: RunningMirror, upstream: FakeRegistry, image: Image
    ) -> None:
        """No answer after a refusal: nobody knows whether it still holds, so nothing is given."""
        await refused(mirror, upstream, status(403))
        upstream.fault(ANY, status(503, retry_after=60))

        assert {(await mirror.get(path)).status for path in paths(image)} == {503}

    async def test_other_repositories_are_not_concerned(
        self, mirror: RunningMirror, upstream: FakeRegistry, image: Image
    ) -> None:
        """Not even those that share every blob with it."""
        copies = [path.replace(REPOSITORY, "team/copy") for path in paths(image)]
        for blob in image.blobs:
            upstream.put_blob("team/copy", blob)
        upstream.put_manifest("team/copy", image.manifest, "1")
        for path in copies:
            assert (await mirror.get(path)).status == 200
        await refused(mirror, upstream, status(403))
        upstream.fault(ANY, status(503))

        assert [(await mirror.get(path)).cache for path in copies] == ["hit"] * len(copies)

    async def test_a_second_refusal_brings_nothing_back(
        self, mirror: RunningMirror, upstream: FakeRegistry, image: Image
    ) -> None:
        """What one refusal ended stays ended after the next one, whatever was shown in between."""
        await refused(mirror, upstream, status(403))
        assert (await mirror.get(paths(image)[1])).status == 200
        await refused(mirror, upstream, status(403))
        await mirror.restart()
        upstream.fault(ANY, status(503, retry_after=60))

        assert {(await mirror.get(path)).status for path in paths(image)} == {503}

    async def test_a_yes_from_before_the_refusal_does_not_outlive_it(
        self, mirror: RunningMirror, upstream: FakeRegistry, image: Image
    ) -> None:
        """A long download that ends after it gives its client the blob, and nobody else."""
        late = upstream.put_blob(REPOSITORY, 100_000)
        held = upstream.fault(late, stall_at(50_000))
        async with await Reading.ask(mirror, blob_path(REPOSITORY, late)) as client:
            begun = await client.take(1000)
            await refused(mirror, upstream, status(403))
            held.release()
            assert begun + await client.rest() == late.content
        await mirror.quiet()
        upstream.fault(ANY, status(403))

        assert (await mirror.blob(REPOSITORY, late.digest)).status == 403

    async def test_a_head_from_before_the_refusal_does_not_outlive_it(
        self, mirror: RunningMirror, upstream: FakeRegistry, image: Image
    ) -> None:
        """The same for a question that is answered after another one was refused."""
        new = upstream.add_image(REPOSITORY, "2")
        held = upstream.fault(f"{REPOSITORY}:2", stall(), method="HEAD")
        client = asyncio.create_task(mirror.manifest(REPOSITORY, "2", method="HEAD"))
        await held.reached.wait()
        await refused(mirror, upstream, status(403))
        held.release()
        assert (await client).headers["Docker-Content-Digest"] == str(new.digest)
        upstream.fault(ANY, status(403))

        assert (await mirror.manifest(REPOSITORY, "2", method="HEAD")).status == 403

    async def test_an_expired_token_is_no_refusal(
        self, start_mirror: StartMirror, upstream: FakeRegistry, clock: Clock
    ) -> None:
        """Only a fresh token counts: a 401 that a new one mends ends nothing."""
        upstream.auth = Bearer()
        image = upstream.add_image(REPOSITORY, "1")
        mirror = await start_mirror(clock=clock, timeouts=PATIENT)
        for path in paths(image):
            await mirror.get(path)
        await mirror.quiet()
        upstream.auth.expire_tokens()
        upstream.add_image(REPOSITORY, "2", layers=[5000])
        assert (await mirror.manifest(REPOSITORY, "2")).status == 200
        upstream.fault(ANY, status(503))

        assert [(await mirror.get(path)).cache for path in paths(image)] == ["hit"] * len(paths(image))

    async def test_a_repository_that_goes_private_is_closed_by_its_next_question(
        self, start_mirror: StartMirror, upstream: FakeRegistry, clock: Clock
    ) -> None:
        """A tag's revalidation is one: then all of it is closed, and open again as soon as the upstream says so."""
        upstream.auth = Bearer()
        image = upstream.add_image(REPOSITORY, "1")
        mirror = await start_mirror(clock=clock, timeouts=PATIENT)
        for path in paths(image):
            await mirror.get(path)
        await mirror.quiet()
        upstream.make_private(REPOSITORY, ["somebody"])
        clock.forward(301)
        assert {(await mirror.get(path)).status for path in paths(image)} == {403}
        upstream.make_public(REPOSITORY)

        assert [(await mirror.get(path)).status for path in paths(image)] == [200] * len(paths(image))


class TestOneThing:
    async def test_a_404_ends_only_what_it_was_said_of(
        self, start_mirror: StartMirror, upstream: FakeRegistry, clock: Clock
    ) -> None:
        """A blob deleted upstream is gone once it was asked for again; all else of the repository is given on."""
        settings = UpstreamSettings(url=upstream.url, link_ttl=DAY)
        mirror = await start_mirror(upstreams={"docker.io": settings}, clock=clock, timeouts=PATIENT, tag_ttl=10 * DAY)
        image = upstream.add_image(REPOSITORY, "1", layers=[10_000, 20_000])
        for path in paths(image):
            await mirror.get(path)
        await mirror.quiet()
        upstream.remove(REPOSITORY, image.layers[0])
        gone = f"/v2/{REPOSITORY}/blobs/{image.layers[0].digest}"
        clock.forward(DAY + 1)

        await _until(mirror, gone, 404)

        rest = [path for path in paths(image) if path != gone]
        assert [(await mirror.get(path)).status for path in rest] == [200] * len(rest)


class TestRenewal:
    @pytest.fixture
    async def old(self, mirror: RunningMirror, upstream: FakeRegistry, image: Image, clock: Clock) -> Image:
        """The image, when its links are older than `link_ttl`."""
        clock.forward(DAY + 1)
        return image

    async def test_an_old_link_is_asked_for_again_behind(
        self, mirror: RunningMirror, upstream: FakeRegistry, old: Image
    ) -> None:
        """It is a hit all the same, and one HEAD makes it young again."""
        digests = paths(old)[1:]
        for path in digests:
            assert (await mirror.get(path)).cache == "hit"
        await _settle(mirror)

        for path in digests:
            assert (await mirror.get(path)).cache == "hit"
        await _settle(mirror)
        assert [seen.method for seen in upstream.content_requests()] == ["HEAD"] * len(digests)

    async def test_heads_renew_as_well(self, mirror: RunningMirror, upstream: FakeRegistry, old: Image) -> None:
        """Also for what is not held any more, so that HEAD does not go on saying yes for ever."""
        layer = old.layers[0]
        await mirror.app.blobs.remove(layer.digest)
        upstream.remove(REPOSITORY, layer)

        await _until(mirror, f"/v2/{REPOSITORY}/blobs/{layer.digest}", 404, method="HEAD")

    @pytest.mark.parametrize(
        "fault", [refuse(), status(503), status(429, retry_after=60), html()], ids=lambda fault: fault.name
    )
    async def test_no_answer_leaves_a_link_and_is_not_repeated_at_each_use(
        self, mirror: RunningMirror, upstream: FakeRegistry, old: Image, fault: Fault
    ) -> None:
        """An upstream that is down is not asked at every hit, only again after a while."""
        upstream.fault(ANY, fault)
        path = paths(old)[2]
        assert (await mirror.get(path)).cache == "hit"
        await _settle(mirror)
        asked = upstream.count()

        for _ in range(20):
            assert (await mirror.get(path)).cache == "hit"
        await _settle(mirror)
        assert upstream.count() == asked

    @pytest.mark.parametrize("refusal", [status(401), status(403)], ids=["401", "403"])
    async def test_a_refusal_of_a_renewal_ends_the_links(
        self, mirror: RunningMirror, upstream: FakeRegistry, old: Image, refusal: Fault
    ) -> None:
        """What nobody waited for counts as well. (A HEAD has no body to say NAME_UNKNOWN in: it ends one link.)"""
        upstream.fault(REPOSITORY, refusal)

        await _until(mirror, paths(old)[2], *(403, 404))

        assert {(await mirror.get(path)).status for path in paths(old)} <= {403, 404}

    async def test_use_keeps_names_and_bytes_for_good(
        self, mirror: RunningMirror, upstream: FakeRegistry, image: Image, clock: Clock
    ) -> None:
        """Renewed on use, they outlive every one of their terms; a restart changes nothing."""
        for _ in range(4):
            clock.forward(25 * DAY)
            for path in paths(image):
                assert (await mirror.get(path)).status == 200
            await _settle(mirror)
        upstream.reset()
        await mirror.restart()

        assert [(await mirror.get(path)).cache for path in paths(image)] == ["hit"] * len(paths(image))
        assert upstream.content_requests() == []


async def _until(mirror: RunningMirror, path: str, *statuses: int, method: str = "GET") -> None:
    """Asks until the answer is one of these."""
    async with asyncio.timeout(5):
        while (await mirror.get(path, method=method)).status not in statuses:
            pass


async def _settle(mirror: RunningMirror) -> None:
    """Waits for the renewals under way."""
    async with asyncio.timeout(10):
        await mirror.app.renewals.idle()


async def test_a_refusal_counts_for_who_joins_a_blob_in_flight(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """Those who were let in before get the rest; a newcomer is asked for, and hears the refusal."""
    blob = upstream.put_blob(REPOSITORY, 4 << 20)
    pause = upstream.fault(blob, stall_at(2 << 20), times=1)
    async with await Reading.ask(mirror, blob_path(REPOSITORY, blob)) as first:
        begun = await first.take(1 << 20)
        await refused(mirror, upstream, status(403))
        upstream.fault(REPOSITORY, status(403))

        late = await mirror.blob(REPOSITORY, blob.digest)

        assert late.status == 403
        pause.release()
        assert begun + await first.rest() == blob.content


async def test_a_refusal_outlives_a_locked_database_and_a_restart(
    mirror: RunningMirror, upstream: FakeRegistry
) -> None:
    """What the disk could not be told is told later, or at the stop."""
    blob = upstream.put_blob(REPOSITORY, 50_000)
    assert (await mirror.blob(REPOSITORY, blob.digest)).status == 200
    await mirror.quiet()
    database = mirror.settings.storage.path / "records" / "cache.db"
    lock = sqlite3.connect(database, isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    await refused(mirror, upstream, status(403))
    upstream.fault(REPOSITORY, status(403))
    lock.execute("ROLLBACK")
    lock.close()

    await mirror.restart()

    assert (await mirror.blob(REPOSITORY, blob.digest)).status == 403

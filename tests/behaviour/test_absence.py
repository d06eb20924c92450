"""What an upstream does not have is remembered for a moment; what it only refuses, or does not say, is not."""

from __future__ import annotations

import asyncio

import pytest

from mirror.config import UpstreamSettings
from tests.clock import Clock
from tests.conftest import StartMirror
from tests.harness import RunningMirror, short_timeouts
from tests.upstream import ANY, FakeRegistry, Fault, html, redirect, reset, stall, status
from tests.upstream.content import make_blob, make_manifest

REPOSITORY = "library/demo"
NEGATIVE_TTL = 30.0
PATIENT = short_timeouts(first_byte=5, cold_head=5)

BLOB = make_blob(1000, seed="absent", media_type="application/octet-stream")
MANIFEST = make_manifest({"schemaVersion": 2, "layers": []}, media_type="application/vnd.oci.image.manifest.v1+json")

PATHS = {
    "/v2/demo/manifests/1": "MANIFEST_UNKNOWN",
    f"/v2/demo/manifests/{MANIFEST.digest}": "MANIFEST_UNKNOWN",
    f"/v2/demo/blobs/{BLOB.digest}": "BLOB_UNKNOWN",
}
"""What is asked for, by tag, digest and as a blob, and the error code for it."""


@pytest.fixture
def clock() -> Clock:
    """The mirror's wall clock."""
    return Clock()


@pytest.fixture
async def mirror(start_mirror: StartMirror, clock: Clock, upstream: FakeRegistry) -> RunningMirror:
    """A mirror in front of `upstream` as docker.io, which has a repository without anything in it."""
    upstream.repository(REPOSITORY)
    return await start_mirror(clock=clock, timeouts=PATIENT)


def push(upstream: FakeRegistry) -> None:
    """Adds all that was missing."""
    upstream.put_blob(REPOSITORY, BLOB)
    upstream.put_manifest(REPOSITORY, MANIFEST, "1")


async def statuses(mirror: RunningMirror, method: str = "GET") -> set[int]:
    """Of all three."""
    return {(await mirror.get(path, method=method)).status for path in PATHS}


class TestRemembering:
    @pytest.mark.parametrize("first", ["GET", "HEAD"])
    async def test_a_404_is_remembered(self, mirror: RunningMirror, upstream: FakeRegistry, first: str) -> None:
        """One question for all clients of the next moment, by GET or HEAD, with the upstream's own code."""
        for path, code in PATHS.items():
            assert (await mirror.get(path, method=first)).status == 404
            for _ in range(2):
                head, get = await mirror.get(path, method="HEAD"), await mirror.get(path)
                assert (head.status, get.status, get.code) == (404, 404, code)
                assert head.headers["Content-Length"] == get.headers["Content-Length"]
                assert head.body == b""

        assert len(upstream.content_requests()) == len(PATHS)

    async def test_a_herd_hears_one_404(self, mirror: RunningMirror, upstream: FakeRegistry) -> None:
        """Also at once."""
        for path, code in PATHS.items():
            replies = await mirror.together(20, path)
            assert {(reply.status, reply.code) for reply in replies} == {(404, code)}

        assert len(upstream.content_requests()) == len(PATHS)

    async def test_a_restart_remembers_it(self, mirror: RunningMirror, upstream: FakeRegistry) -> None:
        """It is a record like any other."""
        await statuses(mirror)
        upstream.reset()

        await mirror.restart()

        for path, code in PATHS.items():
            assert (await mirror.get(path)).code == code
        assert upstream.content_requests() == []

    async def test_what_appears_is_found_after_negative_ttl(
        self, mirror: RunningMirror, upstream: FakeRegistry, clock: Clock
    ) -> None:
        """Not before, since nobody asks; then at once."""
        await statuses(mirror)
        push(upstream)
        clock.forward(NEGATIVE_TTL - 1)
        assert await statuses(mirror) == {404}

        clock.forward(2)

        assert await statuses(mirror) == {200}
        assert await statuses(mirror, "HEAD") == {200}

    async def test_a_clock_that_was_set_back_asks_again(
        self, mirror: RunningMirror, upstream: FakeRegistry, clock: Clock
    ) -> None:
        """An absence from the future does not last until then."""
        clock.forward(86400)
        await statuses(mirror)
        push(upstream)
        clock.forward(-86400)

        assert await statuses(mirror) == {200}

    async def test_none_is_remembered_without_negative_ttl(
        self, start_mirror: StartMirror, upstream: FakeRegistry
    ) -> None:
        """0 turns it off."""
        upstream.repository(REPOSITORY)
        settings = UpstreamSettings(url=upstream.url, negative_ttl=0)
        mirror = await start_mirror(upstreams={"docker.io": settings}, timeouts=PATIENT)
        assert await statuses(mirror) == {404}
        push(upstream)

        assert await statuses(mirror) == {200}

    async def test_a_digest_that_comes_by_its_tag_is_there_at_once(
        self, mirror: RunningMirror, upstream: FakeRegistry
    ) -> None:
        """Who waits for a push by digest need not wait longer once somebody has pulled the tag, restarts or not."""
        assert (await mirror.manifest("demo", MANIFEST.digest)).status == 404
        await mirror.restart()
        push(upstream)

        assert (await mirror.manifest("demo", "1")).status == 200

        assert (await mirror.manifest("demo", MANIFEST.digest)).status == 200
        assert (await mirror.manifest("demo", MANIFEST.digest, method="HEAD")).status == 200

    async def test_one_absence_is_no_other(self, mirror: RunningMirror, upstream: FakeRegistry) -> None:
        """A tag, a digest and a blob of the same repository, and the same things of another, are absent one by one."""
        assert await statuses(mirror) == {404}
        push(upstream)
        upstream.put_manifest("library/other", MANIFEST, "1")
        upstream.tag(REPOSITORY, "2", MANIFEST)

        assert (await mirror.manifest("demo", "2")).status == 200
        assert (await mirror.manifest("other", "1")).status == 200
        assert (await mirror.blob("demo", BLOB.digest)).status == 404

    async def test_a_repository_that_does_not_exist_is_remembered(
        self, mirror: RunningMirror, upstream: FakeRegistry
    ) -> None:
        """With the code that says so."""
        for path in PATHS:
            for _ in range(3):
                assert (await mirror.get(path.replace("demo", "nowhere"))).code == "NAME_UNKNOWN"

        assert len(upstream.content_requests()) == len(PATHS)

    async def test_what_is_gone_is_gone_from_the_tag_on(
        self, mirror: RunningMirror, upstream: FakeRegistry, clock: Clock
    ) -> None:
        """A tag that was deleted upstream is 404 after its TTL, and is served again when it is pushed again."""
        push(upstream)
        assert (await mirror.manifest("demo", "1")).status == 200
        upstream.remove(REPOSITORY, "1")
        clock.forward(301)
        assert (await mirror.manifest("demo", "1")).status == 404
        upstream.tag(REPOSITORY, "1", MANIFEST)
        clock.forward(NEGATIVE_TTL + 1)

        assert (await mirror.manifest("demo", "1")).status == 200


class TestForgetting:
    @pytest.mark.parametrize("refusal", [status(401), status(403)], ids=["401", "403"])
    async def test_a_refusal_is_no_absence(self, mirror: RunningMirror, upstream: FakeRegistry, refusal: Fault) -> None:
        """403 DENIED, never 404 or 401; and the next request asks again, since access may be granted at any moment."""
        push(upstream)
        rule = upstream.fault(ANY, refusal)

        for path in PATHS:
            for method in ("GET", "HEAD"):
                reply = await mirror.get(path, method=method)
                assert reply.status == 403
                assert "WWW-Authenticate" not in reply.headers
        rule.remove()
        assert await statuses(mirror) == {200}

    @pytest.mark.parametrize(
        "fault",
        [reset(), stall(), status(500), status(429), html(200), redirect(lifetime=-1)],
        ids=lambda fault: fault.name,
    )
    async def test_no_answer_is_no_absence(
        self, start_mirror: StartMirror, upstream: FakeRegistry, fault: Fault
    ) -> None:
        """A 5xx (or 429) that is not remembered: the next answer counts."""
        mirror = await start_mirror(timeouts=short_timeouts(first_byte=0.2, cold_head=0.2))
        push(upstream)
        rule = upstream.fault(ANY, fault)

        assert await statuses(mirror) <= {429, 502, 503, 504}
        rule.remove()
        rule.release()
        await mirror.stop()
        await mirror.start()  # forgets the pause after a 429
        async with asyncio.timeout(5):
            while await statuses(mirror) != {200}:
                pass  # a busy machine may miss 200 ms

    async def test_a_404_of_a_redirects_target_is_no_absence(
        self, mirror: RunningMirror, upstream: FakeRegistry
    ) -> None:
        """The registry has the blob, its storage does not find it: no answer, 503."""
        push(upstream)
        upstream.fault(BLOB, redirect())
        lost = upstream.fault(BLOB, status(404, b"<Error/>", content_type="application/xml"), origin="cdn")

        for method in ("GET", "HEAD"):
            assert (await mirror.blob("demo", BLOB.digest, method=method)).status == 503
        lost.remove()
        assert (await mirror.blob("demo", BLOB.digest)).body == BLOB.content

"""One download, several repositories and upstreams that want the same blob: each hears its own upstream's words."""

from __future__ import annotations

import asyncio

import pytest

from tests.conftest import StartMirror
from tests.harness import RunningMirror, short_timeouts
from tests.reading import Reading, left_behind, nothing_unheard, settled
from tests.upstream import (
    Blob,
    FakeRegistry,
    flip,
    refuse,
    reset,
    stall,
    stall_at,
    status,
)
from tests.upstream.fixtures import StartUpstream

MIB = 1 << 20


def path(name: str, blob: Blob) -> str:
    """Where the mirror serves a blob of `name`, with its upstream in front where that is not docker.io."""
    return f"/v2/{name}/blobs/{blob.digest}"


async def sources_of(mirror: RunningMirror, count: int) -> None:
    """Waits until the one download under way knows so many repositories to ask."""
    async with asyncio.timeout(5):
        while len(mirror.app.downloads.all[0].sources.all) < count:  # noqa: ASYNC110 - a join tells nobody else
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("code", [404, 403])
async def test_a_refusal_moves_on_to_who_joined_meanwhile(
    mirror: RunningMirror, upstream: FakeRegistry, code: int
) -> None:
    """The first repository says no while a second one waits: the second is asked and served, the first hears no."""
    blob = upstream.put_blob("team/second", MIB)
    refusal = upstream.fault("team/first", status(code), kind="blob")
    held = upstream.fault("team/first", stall(), kind="blob", times=1)

    first = asyncio.create_task(mirror.get(path("team/first", blob)))
    await held.reached.wait()
    second = asyncio.create_task(mirror.get(path("team/second", blob)))
    await sources_of(mirror, 2)
    held.release()
    refused, served = await first, await second

    assert (served.status, served.body) == (200, blob.content)
    assert refused.status == code
    assert refusal.hits >= 1
    assert upstream.bytes_for(blob) == blob.size


async def test_everybody_hears_the_no_of_his_own_repository(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """And learns nothing of another: neither its name nor what it answered."""
    blob = upstream.put_blob("library/elsewhere", 1000)
    upstream.fault("team/secret", status(403), kind="blob")
    held = upstream.fault("team/secret", stall(), kind="blob", times=1)
    upstream.fault("team/open", status(404), kind="blob")

    first = asyncio.create_task(mirror.get(path("team/secret", blob)))
    await held.reached.wait()
    second = asyncio.create_task(mirror.get(path("team/open", blob)))
    await sources_of(mirror, 2)
    held.release()
    secret, public = await first, await second

    assert (secret.status, public.status) == (403, 404)
    assert b"team/secret" not in public.body
    assert b"team/open" not in secret.body
    await settled(mirror)
    assert left_behind(mirror) == {}


async def test_no_answer_of_one_is_no_answer_of_the_other(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """One upstream request fails, the other is refused: 503 to the one, 404 to the other."""
    blob = upstream.put_blob("library/elsewhere", 1000)
    upstream.fault("team/broken", status(500), kind="blob")
    held = upstream.fault("team/broken", stall(), kind="blob", times=1)
    upstream.fault("team/open", status(404), kind="blob")

    first = asyncio.create_task(mirror.get(path("team/broken", blob)))
    await held.reached.wait()
    second = asyncio.create_task(mirror.get(path("team/open", blob)))
    await sources_of(mirror, 2)
    held.release()
    broken, public = await first, await second

    assert (broken.status, public.status) == (503, 404)
    assert b"team/broken" not in public.body


async def test_a_dead_upstream_does_not_keep_another_from_being_asked(
    start_mirror: StartMirror, upstream: FakeRegistry, start_upstream: StartUpstream
) -> None:
    """The first never answers; who joined with a healthy one is served from there, without a word to the first."""
    healthy = await start_upstream()
    blob = healthy.put_blob("app", MIB)
    upstream.put_blob("library/demo", blob)
    upstream.fault(blob, stall())
    mirror = await start_mirror(upstreams={"docker.io": upstream, "healthy.test": healthy})

    first = asyncio.create_task(mirror.get(path("demo", blob)))
    await upstream.until(lambda: upstream.requests_for(blob) == 1)
    served = await mirror.get(path("healthy.test/app", blob))

    assert (served.status, served.body) == (200, blob.content)
    assert (await first).status in (503, 504)
    assert healthy.bytes_for(blob, method="GET") == blob.size


async def test_the_second_repository_shows_the_rest(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """The first one's access ends in the middle; at the same registry the other goes on, with what is missing."""
    blob = upstream.put_blob("team/first", 2 * MIB)
    upstream.put_blob("team/second", blob)
    cut = upstream.fault("team/first", stall_at(MIB), kind="blob", times=1)
    upstream.fault("team/first", status(403), kind="blob", skip=1)

    first = asyncio.create_task(mirror.get(path("team/first", blob)))
    await cut.reached.wait()
    second = await mirror.get(path("team/second", blob))

    assert second.body == blob.content
    assert (await first).body == blob.content
    assert upstream.bytes_for(blob, method="GET") <= blob.size + 4096


# Bytes are given to those alone whose upstream has shown them.


async def test_an_upstream_that_only_claims_a_blob_gets_nobody_its_bytes(
    start_mirror: StartMirror, upstream: FakeRegistry, start_upstream: StartUpstream
) -> None:
    """It sends the right headers and no byte, in the hope that the rest comes from where the blob really is."""
    hostile = await start_upstream()
    blob = upstream.put_blob("team/private", MIB)
    hostile.put_blob("evil", blob)
    claim = hostile.fault(blob, stall_at(0), method="GET", times=1)
    hostile.fault(blob, refuse(), skip=1, method="GET")
    mirror = await start_mirror(
        upstreams={"docker.io": upstream, "hostile.test": hostile},
        timeouts=short_timeouts(no_progress=20, stall=0.3, first_byte=2),
    )

    thief = asyncio.create_task(mirror.get(path("hostile.test/evil", blob)))
    await claim.reached.wait()
    owner = await mirror.get(path("team/private", blob))
    stolen = await thief

    assert owner.body == blob.content
    assert stolen.status == 504
    await mirror.quiet()
    assert (await mirror.get(path("team/private", blob))).cache == "hit"
    assert (await mirror.get(path("hostile.test/evil", blob))).status != 200


async def test_wrong_bytes_of_one_upstream_touch_nobody_at_another(
    start_mirror: StartMirror, upstream: FakeRegistry, start_upstream: StartUpstream
) -> None:
    """While one sends wrong bytes, who asks another one for the same blob gets the right ones from there."""
    other = await start_upstream()
    blob = upstream.put_blob("library/demo", MIB)
    other.put_blob("app", blob)
    for at in range(0, MIB, 4000):
        upstream.fault(blob, flip(at), method="GET", times=1)
    held = upstream.fault(blob, stall_at(MIB // 2), method="GET", times=1)
    mirror = await start_mirror(
        upstreams={"docker.io": upstream, "other.test": other}, timeouts=short_timeouts(stall=10)
    )

    async with await Reading.ask(mirror, path("demo", blob)) as reading:
        await held.reached.wait()
        early = await mirror.get(path("other.test/app", blob))
        held.release()
        await reading.rest()
    await mirror.quiet()

    assert (early.status, early.body) == (200, blob.content)
    assert (await mirror.get(path("other.test/app", blob))).body == blob.content


async def test_a_permission_may_take_longer_than_the_download(
    start_mirror: StartMirror, upstream: FakeRegistry
) -> None:
    """Who joins from another repository is asked about there; meanwhile the download ends and closes its files."""
    mirror = await start_mirror(timeouts=short_timeouts(first_byte=10, try_=10, stall=10))
    blob = upstream.put_blob("team/first", 100_000)
    upstream.put_blob("team/second", blob)
    cut = upstream.fault("team/first", stall_at(50_000), kind="blob", times=1)
    question = upstream.fault("team/second", stall(), kind="blob", method="HEAD", times=1)

    first = asyncio.create_task(mirror.get(path("team/first", blob)))
    await cut.reached.wait()
    second = asyncio.create_task(mirror.get(path("team/second", blob)))
    await question.reached.wait()
    cut.release()
    assert (await first).body == blob.content
    await mirror.quiet()
    question.release()

    assert (await second).body == blob.content
    await settled(mirror)
    assert left_behind(mirror) == {}


async def test_a_failed_download_may_end_before_the_permission(
    start_mirror: StartMirror, upstream: FakeRegistry
) -> None:
    """The same, but it ends badly: an answer with a status, and nothing unheard."""
    mirror = await start_mirror(timeouts=short_timeouts(first_byte=10, try_=10, no_progress=0.3))
    blob = upstream.put_blob("team/first", MIB)
    upstream.put_blob("team/second", blob)
    cut = upstream.fault("team/first", stall_at(MIB // 2), kind="blob", times=1)
    upstream.fault("team/first", reset(), kind="blob", skip=1)
    question = upstream.fault("team/second", stall(), kind="blob", method="HEAD", times=1)
    upstream.fault("team/second", reset(), kind="blob", method="GET")

    with nothing_unheard():
        async with await Reading.ask(mirror, path("team/first", blob)) as reading:
            await cut.reached.wait()
            second = asyncio.create_task(mirror.get(path("team/second", blob)))
            await question.reached.wait()
            await reading.rest()
            assert reading.ending == "short"
        question.release()
        reply = await second

    assert reply.status == 503
    await settled(mirror)
    assert left_behind(mirror) == {}

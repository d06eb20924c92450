"""The wall clock jumps a day ahead or back: nothing stops, nothing old is taken for fresh, and the right blobs go."""

from __future__ import annotations

import json
import os
from email.utils import formatdate

import pytest

from mirror.config import UpstreamSettings
from tests.clock import Clock
from tests.conftest import StartMirror
from tests.harness import RunningMirror, short_timeouts
from tests.storing import path_of
from tests.upstream import ANY, Bearer, Blob, FakeRegistry, Image, retry_after_forms, status

KIB = 1 << 10
MIB = 1 << 20
DAY = 86400.0
REPOSITORY = "library/demo"
PATIENT = short_timeouts(first_byte=10.0, cold_head=10.0, stall=10.0, no_progress=20.0, stale_after=5.0)
JUMPS = pytest.mark.parametrize("jump", [DAY, -DAY], ids=["ahead", "back"])


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def mirror(start_mirror: StartMirror, clock: Clock) -> RunningMirror:
    return await start_mirror(clock=clock, timeouts=PATIENT)


@pytest.fixture
def image(upstream: FakeRegistry) -> Image:
    return upstream.add_image(REPOSITORY, "1", layers=[100 * KIB, 1000])


async def pull(mirror: RunningMirror, image: Image) -> None:
    """All of it by its tag, right to the byte."""
    assert (await mirror.manifest("demo", "1")).body == image.manifest.content
    for blob in image.blobs:
        assert (await mirror.blob("demo", blob.digest)).body == blob.content
    await mirror.quiet()


async def tags(mirror: RunningMirror) -> list[str]:
    """As the mirror lists them."""
    found: list[str] = json.loads((await mirror.get("/v2/demo/tags/list")).body)["tags"]
    return found


@JUMPS
async def test_what_moved_is_noticed_after_a_jump(
    mirror: RunningMirror, upstream: FakeRegistry, clock: Clock, image: Image, jump: float
) -> None:
    """A tag, a list and an absence are asked again at once, there and on the way back; then they are fresh as ever."""
    for number, seconds in enumerate((jump, -jump, jump)):
        await pull(mirror, image)
        await tags(mirror)
        assert (await mirror.manifest("demo", f"late{number}")).status == 404
        clock.forward(seconds)

        image = upstream.add_image(REPOSITORY, "1", layers=[100 * KIB + number])
        late = upstream.add_image(REPOSITORY, f"late{number}")
        await pull(mirror, image)
        assert (await mirror.manifest("demo", f"late{number}")).body == late.manifest.content
        assert f"late{number}" in await tags(mirror)
        assert (await mirror.manifest("demo", "1")).cache == "hit"


@JUMPS
async def test_a_jump_is_no_outage(
    mirror: RunningMirror, upstream: FakeRegistry, clock: Clock, image: Image, jump: float
) -> None:
    """Without the upstream all is served as before the jump, also after a restart and back again."""
    await pull(mirror, image)
    listed = await tags(mirror)
    await upstream.stop()

    for seconds in (jump, -jump):
        clock.forward(seconds)
        await pull(mirror, image)
        assert await tags(mirror) == listed
        await mirror.restart()
        await pull(mirror, image)


@JUMPS
async def test_a_jump_costs_no_blob_bytes(
    mirror: RunningMirror, upstream: FakeRegistry, clock: Clock, image: Image, jump: float
) -> None:
    """Names may be asked again, once; what is held stays held and permitted."""
    await pull(mirror, image)
    await mirror.app.upkeep.round()
    upstream.reset()

    for seconds in (jump, -jump):
        clock.forward(seconds)
        for _ in range(3):
            await pull(mirror, image)
        await mirror.app.budget.scan(0)

    await mirror.app.renewals.idle()
    assert all(upstream.bytes_for(blob) == 0 for blob in image.blobs)
    assert upstream.count(kind="manifest") <= 4
    assert mirror.metric("mirror_evictions_total") == 0


@JUMPS
async def test_a_token_lives_as_long_as_before(
    start_mirror: StartMirror, upstream: FakeRegistry, clock: Clock, image: Image, jump: float
) -> None:
    """It says when it was issued, by the upstream's clock: neither an endless life nor one token for each request."""
    upstream.auth = Bearer({"ci": "secret"}, anonymous=False)
    settings = UpstreamSettings(url=upstream.url, username="ci", password="secret")  # type: ignore[arg-type]  # as it is written
    mirror = await start_mirror(clock=clock, timeouts=PATIENT, upstreams={"docker.io": settings})
    clock.forward(jump)

    for number in range(5):
        upstream.add_image(REPOSITORY, str(number))
        assert (await mirror.manifest("demo", str(number))).status == 200

    assert upstream.count(kind="token") <= 2


@JUMPS
async def test_a_date_of_retry_after_is_read_by_the_upstreams_clock(
    mirror: RunningMirror, upstream: FakeRegistry, clock: Clock, image: Image, jump: float
) -> None:
    """A wait of a minute stays one: it is neither skipped nor made five."""
    clock.forward(jump)
    date = {"Date": formatdate(usegmt=True)}
    upstream.fault(ANY, status(429, retry_after=retry_after_forms(60)["http-date"], headers=date))

    refused = await mirror.manifest("demo", "1")

    assert refused.status == 429
    assert 50 <= int(refused.headers["Retry-After"]) <= 70
    upstream.reset()
    assert (await mirror.manifest("demo", "1")).status == 429
    assert upstream.content_requests() == []


async def fetch(mirror: RunningMirror, *blobs: Blob) -> None:
    """Each of them, one after the other."""
    for blob in blobs:
        assert (await mirror.blob("demo", blob.digest)).body == blob.content
        await mirror.quiet()


def held(mirror: RunningMirror, *blobs: Blob) -> list[bool]:
    """Whether each is there."""
    return [path_of(mirror.settings.storage.path, blob.digest).exists() for blob in blobs]


async def test_who_was_used_in_the_future_does_not_stay_for_ever(
    start_mirror: StartMirror, upstream: FakeRegistry, clock: Clock
) -> None:
    """The clock was a day ahead while the cache filled. After it is set right, what is in use stays and what is not
    goes, as ever: a blob is not taken for older because it was used now.
    """
    mirror = await start_mirror(clock=clock, timeouts=PATIENT, storage={"max_size": 30 * MIB})
    clock.forward(DAY)
    unused = [upstream.put_blob(REPOSITORY, MIB + number) for number in range(6)]
    used = [upstream.put_blob(REPOSITORY, MIB + 100 + number) for number in range(3)]
    await fetch(mirror, *unused, *used)
    await mirror.app.blobs.flush_uses()
    clock.forward(-DAY)

    await mirror.app.budget.scan(0)  # as upkeep does each hour, and whenever room is to be made
    clock.forward(60)
    await fetch(mirror, *used)
    clock.forward(60)
    new = [upstream.put_blob(REPOSITORY, MIB + 200 + number) for number in range(4)]
    await fetch(mirror, *new)
    await mirror.app.budget.scan(0)
    await mirror.app.budget.make_room(3 * MIB, "budget")

    assert held(mirror, *used) == [True] * 3
    assert held(mirror, *new) == [True] * 4
    assert sum(held(mirror, *unused)) == 3


async def test_a_clock_that_nobody_has_set_forgets_no_ages(
    start_mirror: StartMirror, upstream: FakeRegistry, clock: Clock
) -> None:
    """A machine without a battery begins in 1970: the ages of blobs are kept until it knows better."""
    mirror = await start_mirror(clock=clock, timeouts=PATIENT)
    blobs = [upstream.put_blob(REPOSITORY, 1000 + number) for number in range(3)]
    for blob in blobs:
        await fetch(mirror, blob)
        clock.forward(60)
    await mirror.app.blobs.flush_uses()
    paths = [path_of(mirror.settings.storage.path, blob.digest) for blob in blobs]
    before = [os.stat(path).st_mtime for path in paths]  # noqa: PTH116 - tells ruff that a test may block

    clock.forward(1000 - clock())
    await mirror.app.budget.scan(0)

    assert [os.stat(path).st_mtime for path in paths] == before  # noqa: PTH116 - as above

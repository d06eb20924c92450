"""The power goes while the mirror works: of what was not synced anything may be left, and nothing wrong is served."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from tests.conftest import StartMirror
from tests.crash.power import PowerFiles, mutilated
from tests.crash.ruins import inspect, size_of
from tests.crash.seeds import CUTS, seeds
from tests.crash.torn import spoil_book, tear_log
from tests.harness import RunningMirror, short_timeouts
from tests.reading import Reading, blob_path
from tests.storing import path_of
from tests.upstream import FakeRegistry, Image

KIB, MIB = 1 << 10, 1 << 20
REPOSITORY = "library/app"
SMALL, ROOMY = 14 * MIB, 1 << 30
LONGEST = 120
"""Changes of the disk after which the power goes at the latest, or with the workload's end."""
SAMPLE = 4 * KIB
PATIENT = short_timeouts(first_byte=10.0, cold_head=10.0, stall=10.0, no_progress=20.0, try_=8.0, stale_after=8.0)


async def pull(mirror: RunningMirror, image: Image, tag: str, choice: random.Random) -> None:
    """By tag; all blobs at once. Who gets a short body asks again. Asserts that whatever looks whole is right."""
    assert (await mirror.manifest(REPOSITORY, tag)).body == image.manifest.content
    blobs = choice.sample(image.blobs, len(image.blobs))
    bodies = await asyncio.gather(*(whole(mirror, blob_path(REPOSITORY, blob)) for blob in blobs))
    assert all(blob.digest.matches(body) for blob, body in zip(blobs, bodies, strict=True))


async def whole(mirror: RunningMirror, path: str) -> bytes:
    """The body of a complete answer, the first or the second one."""
    for _ in range(2):
        async with await Reading.ask(mirror, path) as reading:
            assert reading.status == 200, path
            body = await reading.rest()
            if reading.ending == "complete":
                return body
    raise AssertionError(f"{path} is never whole")


def lie(data: Path, choice: random.Random) -> None:
    """Damages blobs, all of which are young, as a disk does that did not sync them although it said so."""
    for digest in inspect(data).blobs:
        path = path_of(data, digest)
        if choice.random() < 0.3:
            path.write_bytes(mutilated(b"", path.read_bytes(), choice))


@pytest.mark.parametrize("seed", seeds(CUTS))
async def test_nothing_wrong_is_served_after_a_power_loss(
    seed: int, upstream: FakeRegistry, start_mirror: StartMirror, tmp_path: Path
) -> None:
    """Every blob that was whole on the disk costs no fetch, any other one at most; every client gets right bytes."""
    choice = random.Random(seed)
    storage = {"max_size": choice.choice([SMALL, ROOMY])}
    images = {
        f"tag{number}": upstream.add_image(
            REPOSITORY, f"tag{number}", layers=[choice.randrange(10 * KIB, 3 * MIB) for _ in range(3)]
        )
        for number in range(3)
    }
    (first, kept), *others = images.items()
    disk, after_it = PowerFiles(tmp_path / "before"), tmp_path / "after"
    before = await start_mirror(path=tmp_path / "before", files=disk, storage=storage, timeouts=PATIENT)
    await pull(before, kept, first, choice)
    await before.quiet()
    disk.cut_at(choice.randint(1, LONGEST), after_it, choice)
    await asyncio.gather(*(pull(before, image, tag, choice) for tag, image in others))
    await before.quiet()
    disk.cut()
    done = tear_log(after_it / "records", choice)
    if choice.random() < 0.4:
        done += ", " + spoil_book(after_it / "records", choice)
    left = inspect(after_it)
    assert left.wrong == []
    if storage["max_size"] == ROOMY:
        assert left.blobs.keys() >= {blob.digest for blob in kept.blobs}, "what was committed is lost"
    if choice.random() < 0.4:
        done += ", blobs lost by a disk that lied"
        lie(after_it, choice)
    left = inspect(after_it)
    damaged = {Path(path).name for path in left.wrong}
    upstream.reset()

    after = await start_mirror(path=after_it, storage=storage, timeouts=PATIENT)
    for tag, image in images.items():
        await pull(after, image, tag, choice)
        await after.quiet()

    for blob in {blob for image in images.values() for blob in image.blobs}:
        cost = upstream.bytes_for(blob)
        if storage["max_size"] == ROOMY and blob.digest in left.blobs and blob.digest.hex not in damaged:
            assert cost <= SAMPLE, f"{blob.digest} was there ({done})"
        assert cost <= 2 * blob.size, f"{blob.digest} was fetched more than twice ({done})"
    assert inspect(after_it).wrong == []
    await after.app.upkeep.round()  # what was evicted may have come back
    assert size_of(after_it) <= storage["max_size"]

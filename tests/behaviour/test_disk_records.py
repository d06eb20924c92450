"""Records that are damaged, missing, or of another version: names are asked again, bytes are kept, nobody gets a wrong
answer.
"""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from pathlib import Path

import pytest

from mirror.store.database import SCHEMA, encode_key
from tests.conftest import StartMirror
from tests.damage import DAMAGES, Damage
from tests.disks import PATIENT
from tests.harness import RunningMirror
from tests.lines import Lines, lines
from tests.upstream import FakeRegistry, Image

__all__ = ["lines"]

KIB = 1 << 10


@pytest.fixture
def image(upstream: FakeRegistry) -> Image:
    return upstream.add_image("library/demo", "1", layers=[100 * KIB, 20 * KIB, 1000])


@pytest.fixture
async def mirror(start_mirror: StartMirror) -> RunningMirror:
    return await start_mirror(timeouts=PATIENT)


async def pull(mirror: RunningMirror, image: Image) -> None:
    """By tag and by digest, with the list of tags: all of it right."""
    for reference in ("1", str(image.digest)):
        assert (await mirror.manifest("demo", reference)).body == image.manifest.content
    for blob in image.blobs:
        assert (await mirror.blob("demo", blob.digest)).body == blob.content
    assert json.loads((await mirror.get("/v2/demo/tags/list")).body)["tags"] == ["1"]
    assert (await mirror.manifest("demo", "absent")).status == 404
    await mirror.quiet()


def check_bytes_were_kept(upstream: FakeRegistry, image: Image) -> None:
    """At most one proof of possession for each blob."""
    assert all(upstream.bytes_for(blob) <= 4 * KIB for blob in image.blobs)


async def check_well(mirror: RunningMirror) -> None:
    """After the next round of upkeep nothing is told any more."""
    await mirror.app.upkeep.round()
    assert mirror.app.trouble.reasons == []
    assert mirror.metric("mirror_storage_degraded") == 0


@pytest.mark.parametrize("damage", DAMAGES)
async def test_damaged_records_cost_questions(
    mirror: RunningMirror, upstream: FakeRegistry, image: Image, tmp_path: Path, damage: Damage
) -> None:
    """Met at the start, as a crash and a bad disk leave them."""
    await pull(mirror, image)
    path = mirror.settings.storage.path / "records"
    shutil.copytree(path, tmp_path / "records")
    await mirror.stop()
    shutil.rmtree(path)
    shutil.copytree(tmp_path / "records", path)
    damage(path, random.Random(1))
    upstream.reset()

    await mirror.start()

    await pull(mirror, image)
    check_bytes_were_kept(upstream, image)
    await check_well(mirror)


@pytest.mark.parametrize("damage", DAMAGES)
async def test_records_damaged_under_us_cost_questions(
    mirror: RunningMirror, upstream: FakeRegistry, image: Image, damage: Damage
) -> None:
    """Met while we run, and by the process that follows."""
    await pull(mirror, image)
    upstream.reset()
    damage(mirror.settings.storage.path / "records", random.Random(1))

    await pull(mirror, image)
    other = upstream.add_image("library/other", "1", layers=[1000])
    assert (await mirror.manifest("other", "1")).body == other.manifest.content
    for _ in range(2):
        await mirror.app.upkeep.round()
    await check_well(mirror)
    await mirror.restart()

    await pull(mirror, image)
    check_bytes_were_kept(upstream, image)
    await check_well(mirror)


@pytest.mark.parametrize(
    ("schema", "said", "place"),
    [
        (SCHEMA - 1, f"written by an older version (schema {SCHEMA - 1})", "records.aside"),
        (SCHEMA + 1, f"written by a newer version (schema {SCHEMA + 1})", f"records.schema-{SCHEMA + 1}"),
    ],
    ids=["older", "newer"],
)
async def test_records_of_another_version_are_put_aside_in_one_line(
    mirror: RunningMirror, upstream: FakeRegistry, image: Image, lines: Lines, schema: int, said: str, place: str
) -> None:
    """After an upgrade or a downgrade: bytes are kept, and the line tells where the records are now."""
    await pull(mirror, image)
    await mirror.stop()
    top = mirror.settings.storage.path
    with sqlite3.connect(top / "records" / "cache.db") as database:
        row = (str(schema).encode(), encode_key(("schema",)))
        database.execute("UPDATE Cache SET value = ? WHERE key = ?", row)
    database.close()
    upstream.reset()

    await mirror.start()
    await pull(mirror, image)

    check_bytes_were_kept(upstream, image)
    (told,) = [line for line in lines.all() if line["event"].startswith("records moved aside")]
    assert (told["reason"], told["aside"]) == (said, str(top / place))
    assert (top / place / "cache.db").exists()
    await check_well(mirror)

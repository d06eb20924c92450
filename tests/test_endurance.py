"""Endurance: what a crowd of slow clients costs in memory, and whether `make soak` notices what it is for."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from bench.soak import images, verdict
from bench.soak.asking import Asker
from bench.soak.images import FIXED, LAGGING, MOVING, REPOSITORIES, TAGS
from bench.soak.run import MAX_SIZE, Run, Sample
from bench.soak.tally import FORBIDDEN, Outcome, Tally
from bench.soak.workload import Workload
from tests.harness import RunningMirror
from tests.upstream import ANY, FakeRegistry, Fault, content_type, flip, status, wrong_206

TOP = Path(__file__).parents[1]


@pytest.mark.timeout(300)
def test_memory_is_bounded_by_clients_and_fills(tmp_path: Path) -> None:
    """500 clients on 8 blobs of 1 GiB, half of them on their way, cost 128 KiB each and 4 MiB for each fill at most."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.crowd", "--seconds=10", f"--directory={tmp_path}"],
        cwd=TOP, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert (found["clients"], found["fills"]) == (500, 4)
    assert found["bound"] == found["idle"] + 500 * (128 << 10) + 4 * (4 << 20)
    assert found["read"] > 1 << 30


@pytest.mark.timeout(180)
def test_a_short_run_finds_nothing_wrong(tmp_path: Path) -> None:
    """Some seconds of everything at once: right answers only, the budget kept, and no file left open."""
    file = tmp_path / "soak.json"
    done = subprocess.run(
        [sys.executable, "-m", "bench.soak", "--minutes=0.3", f"--json={file}", f"--directory={tmp_path}"],
        cwd=TOP, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(file.read_text())
    assert found["requests"] > 100
    assert verdict.table(found) in done.stdout


@pytest.fixture
async def tally() -> Tally:
    """What the clients of a test saw."""
    return Tally()


@pytest.fixture
async def stocked(upstream: FakeRegistry) -> FakeRegistry:
    """An upstream that has the first image of each repository."""
    upstream.referrers = True
    for repository in REPOSITORIES:
        release = images.add(upstream, repository, 1)
        for tag in TAGS:
            upstream.tag(repository, tag, release.image)
    return upstream


@pytest.fixture
async def clients(stocked: FakeRegistry, tally: Tally) -> AsyncIterator[Workload]:
    """Clients that ask the upstream itself, with no mirror between: they see all of its faults."""
    async with aiohttp.ClientSession() as session:
        yield Workload(Asker(session, stocked.url, tally), random.Random(0))


async def test_clients_are_content_with_a_mirror(stocked: FakeRegistry, mirror: RunningMirror, tally: Tally) -> None:
    """Every kind of client knows the right answer when it gets it, or leaves."""
    clients = Workload(Asker(mirror.session, mirror.url, tally), random.Random(0))
    for kind in clients.kinds:
        for _ in range(4):
            await kind()

    assert tally.total > 4 * len(clients.kinds)
    assert tally.of(Outcome.RIGHT) + tally.of(Outcome.LEFT) == tally.total


@pytest.mark.parametrize(
    ("fault", "kind", "outcome"),
    [
        (flip(0), Workload.pull, Outcome.WRONG),
        (wrong_206("shifted"), Workload.part, Outcome.WRONG),
        (status(404), Workload.known_manifest, Outcome.ODD),
        (status(503), Workload.known_manifest, Outcome.REFUSED),
        (content_type("multipart/byteranges; boundary=x"), Workload.parts, Outcome.ODD),
    ],
    ids=["wrong bytes", "wrong part", "unknown", "in trouble", "not parts"],
)
async def test_clients_notice_what_is_wrong(
    clients: Workload, tally: Tally, upstream: FakeRegistry, fault: Fault, kind: Callable[..., object], outcome: Outcome
) -> None:
    """A wrong byte, a wrong part and a status that cannot be right are told apart from honest trouble."""
    upstream.fault(ANY, fault)
    for _ in range(3):
        await kind(clients)  # type: ignore[misc]  # each of them is awaitable

    assert tally.of(outcome) >= 1
    assert bool(tally.examples) == (outcome in FORBIDDEN)


async def test_clients_notice_a_tag_that_goes_back(clients: Workload, tally: Tally, upstream: FakeRegistry) -> None:
    """Who has seen the new image of a tag must not be given the old one."""
    for repository in REPOSITORIES:
        new = images.add(upstream, repository, 2).image
        for tag in (MOVING, LAGGING, FIXED):
            upstream.move_tag(repository, tag, new)
    for _ in range(60):
        await clients.pull()
    assert not tally.of(Outcome.BACK)

    for repository in REPOSITORIES:
        for tag in TAGS:
            upstream.move_tag(repository, tag, images.release(repository, 1).image)
    for _ in range(20):
        await clients.pull()

    assert tally.of(Outcome.BACK)


def sample(number: int, **changes: int) -> Sample:
    """A sample every two seconds, of a process that is quite the same."""
    return Sample(
        2.0 * number, **{"resident": 80 << 20, "own": 60 << 20, "files": 50, "threads": 40, "disk": 1, **changes}
    )


FLAT = Run(
    1800.0, sample(0, files=20), tuple(sample(number) for number in range(1, 900)), sample(901, files=21), Tally(),
    evictions=5, mismatches=3, held=7, rotten=0, tracebacks=0,
)  # fmt: skip


def broken(run: Run) -> list[str]:
    """Which promises are broken."""
    return [check.what for check in verdict.checks(run) if not check.good]


def test_a_flat_run_is_good() -> None:
    """Nothing that grows, nothing that is wrong."""
    assert broken(FLAT) == []


@pytest.mark.parametrize(
    ("growth", "promise"),
    [
        ({"resident": 40 << 10}, "resident memory, trend of the second half"),
        ({"own": 40 << 10}, "memory of its own, trend of the second half"),
        ({"files": 1}, "open files, trend of the second half"),
        ({"threads": 1}, "threads, trend of the second half"),
        ({"disk": MAX_SIZE // 800}, "data directory, the most"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_grows_is_noticed(growth: dict[str, int], promise: str) -> None:
    """A little more with each sample adds up."""
    first = sample(0)
    grown = {name: [getattr(first, name) + step * number for number in range(1, 900)] for name, step in growth.items()}
    during = [
        sample(number, **{name: values[number - 1] for name, values in grown.items()}) for number in range(1, 900)
    ]

    assert broken(replace(FLAT, during=tuple(during))) == [promise]


@pytest.mark.parametrize("outcome", FORBIDDEN)
def test_one_bad_answer_breaks_a_promise(outcome: Outcome) -> None:
    """Of a million good ones."""
    tally = Tally()
    tally.counts["blob", Outcome.RIGHT] = 1_000_000
    tally.note("blob", outcome, "GET /v2/")

    assert len(broken(replace(FLAT, tally=tally))) == 1
    assert "GET /v2/" in tally.examples[0]


@pytest.mark.parametrize("change", [{"rotten": 1}, {"tracebacks": 1}, {"after": sample(901, files=40)}])
def test_what_is_left_behind_breaks_a_promise(change: dict[str, object]) -> None:
    """A rotten blob on the disk, a traceback in the log, files that stay open."""
    assert len(broken(replace(FLAT, **change))) == 1  # type: ignore[arg-type]  # of the names that it has


def test_a_tally_survives_its_file(tmp_path: Path) -> None:
    """What the clients write is what the report reads."""
    tally = Tally(read=7)
    tally.note("blob", Outcome.RIGHT)
    tally.note("range", Outcome.WRONG, "GET")

    tally.save(tmp_path / "tally.json")

    assert Tally.load(tmp_path / "tally.json") == tally

"""A half of the rows with two workers: what an upstream does wrong looks the same through several of them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.constraints import covering_rows
from tests.faults.grammar import Row
from tests.faults.judgement import judge
from tests.faults.runner import Runner
from tests.faults.scene import Scene

_ROWS = sorted(random.Random(6).sample(covering_rows(), len(covering_rows()) // 2), key=lambda row: row.id)
_LIMIT = 170.0


@pytest.fixture(scope="module")
def runner(request: pytest.FixtureRequest) -> Iterator[Runner]:
    """Plays the rows of all tests that were chosen, many at a time, from the first test on."""
    chosen = {item.name for item in request.session.items if isinstance(item, pytest.Function)}
    runner = Runner((row for row in _ROWS if f"{test_row_of_workers.__name__}[{row.id}]" in chosen), workers=2)
    yield runner
    runner.end()


@pytest.mark.timeout(180)
@pytest.mark.parametrize("row", [pytest.param(row, id=row.id) for row in _ROWS])
def test_row_of_workers(row: Row, runner: Runner) -> None:
    """The row ends as its rule says, in as many requests and bytes as with one process."""
    assert judge(runner.story(row, _LIMIT)) == []


@pytest.mark.timeout(180)
def test_nothing_of_workers_went_unheard(runner: Runner) -> None:
    """No row left an exception that nobody retrieved, or a task that nobody awaited."""
    assert runner.complaints(_LIMIT) == []


async def test_rows_of_workers_ask_one_through_the_other(tmp_path: Path) -> None:
    """And not each the upstream for itself."""
    scene = Scene(Row.of("reset:middle:one:blob"), tmp_path / "data", workers=2)

    assert judge(await scene.play()) == []

    other, owner = scene.mirrors
    assert other.metric("mirror_peer_requests_total", result="answered") >= 1
    assert owner.metric("mirror_peer_requests_total") == other.metric("mirror_upstream_requests_total") == 0

"""Each row is a test: what clients saw, what is held, what the upstream was asked, and that all is well afterwards."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.constraints import covering_rows
from tests.faults.grammar import Row
from tests.faults.judgement import judge
from tests.faults.runner import Runner
from tests.faults.table import read_table

_ROWS = covering_rows()
_DOCUMENTED = read_table()["troubles"]
_LIMIT = 110.0


@pytest.fixture(scope="module")
def runner(request: pytest.FixtureRequest) -> Iterator[Runner]:
    """Plays the rows of all tests that were chosen, many at a time, from the first test on."""
    chosen = {item.name for item in request.session.items if isinstance(item, pytest.Function)}
    runner = Runner(row for row in _ROWS if f"{test_row.__name__}[{row.id}]" in chosen)
    yield runner
    runner.end()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("row", [pytest.param(row, id=row.id) for row in _ROWS])
def test_row(row: Row, runner: Runner) -> None:
    """The row ends as its rule says, with nothing wrong in any answer or in the cache."""
    story = runner.story(row, _LIMIT)

    assert judge(story) == []
    assert story.words <= set(_DOCUMENTED[row.trouble][row.kind][row.moment]), "docs/reliability.md says otherwise"


@pytest.mark.timeout(120)
def test_nothing_went_unheard(runner: Runner) -> None:
    """No row left an exception that nobody retrieved, or a task that nobody awaited."""
    assert runner.complaints(_LIMIT) == []

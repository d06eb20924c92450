"""The helms, or the reason why not."""

from __future__ import annotations

import pytest

from tests.chart.rendering import HELMS
from tests.e2e.programs import need


@pytest.fixture(autouse=True)
def _helms() -> None:
    need(*HELMS)

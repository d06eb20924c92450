"""What the application logs during a test, as its reader would get it.

Import the fixture where it is wanted: `from tests.lines import lines`; ask for it before the mirror.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from mirror import log


class Lines:
    """Every line since the fixture began, from structlog and from the logging of libraries alike."""

    def __init__(self) -> None:
        self._stream = io.StringIO()
        log.configure(level="info", stream=self._stream, force_json=True)

    def all(self) -> list[dict[str, Any]]:
        """All lines so far; nothing is logged after this."""
        log.close()
        return [json.loads(line) for line in self._stream.getvalue().splitlines()]

    def access(self) -> list[dict[str, Any]]:
        """The access lines."""
        return [line for line in self.all() if line["event"] == "request"]

    def troubles(self) -> list[dict[str, Any]]:
        """Lines with an exception, and those above info."""
        return [line for line in self.all() if "exception" in line or line["level"] not in ("info", "debug")]

    @property
    def text(self) -> str:
        """All lines so far, as they were written."""
        log.close()
        return self._stream.getvalue()


@pytest.fixture
def lines() -> Iterator[Lines]:
    """Collects lines of level info and above; afterwards logging is as it was."""
    before = structlog.get_config()
    collected = Lines()
    yield collected
    log.close()
    structlog.configure(**before)

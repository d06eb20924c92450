"""Who may ask what now, and how little of it is remembered."""

from __future__ import annotations

import time

from yarl import URL

from mirror.config import Timeouts
from mirror.metrics import Metrics
from mirror.transport.breakers import Effort
from mirror.transport.deadline import Deadline
from mirror.transport.gate import Gate


async def test_a_long_redirect_is_remembered_by_its_beginning() -> None:
    """An upstream that leads to paths as long as it can fills no memory with them."""
    gate = Gate(Timeouts(), Metrics(), time.time)
    passage = await gate.enter(URL(f"https://a.test/{'x' * 60_000}"), "blob", "a.test", Effort(), Deadline.after(5))
    assert len(passage.thing) < 1100

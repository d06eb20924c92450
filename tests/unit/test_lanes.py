"""Blobs that are kept and streams at a client's pace wait in lanes of their own."""

from __future__ import annotations

import pytest

from mirror.download import PACED, Lanes
from mirror.metrics import Metrics
from mirror.oci.errors import UpstreamUnavailable
from mirror.routing import UpstreamName

HERE, THERE = UpstreamName("here.test", "*.test"), UpstreamName("there.test", "*.test")


async def test_neither_lane_fills_the_other() -> None:
    """All places of one are taken, and the other has all of its own."""
    lanes = Lanes(2, lambda _: None, Metrics())
    for _ in range(2):
        await lanes.fill(HERE, 0)
    with pytest.raises(UpstreamUnavailable, match="downloads"):
        await lanes.fill(THERE, 0)
    for _ in range(PACED * 3 // 4):
        await lanes.pace(HERE, 0)
    with pytest.raises(UpstreamUnavailable, match="streams"):
        await lanes.pace(HERE, 0)
    await lanes.pace(THERE, 0)


async def test_hosts_of_one_pattern_have_a_limit_each() -> None:
    """`max_downloads` of an entry is for each registry that it stands for."""
    lanes = Lanes(10, lambda _: 2, Metrics())
    for name in (HERE, THERE):
        for _ in range(2):
            await lanes.fill(name, 0)
        with pytest.raises(UpstreamUnavailable):
            await lanes.fill(name, 0)

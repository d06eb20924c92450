"""How many workers there are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mirror.config import Settings
from mirror.supervisor import slots_of

CPUS = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("max 100000\n", CPUS),
        ("100000 100000\n", 1),
        ("50000 100000\n", 1),
        ("150000 100000\n", min(2, CPUS)),
        ("99900000 100000\n", CPUS),
        ("what is this", CPUS),
    ],
)
def test_there_is_one_for_each_cpu_that_we_may_use(tmp_path: Path, said: str, expected: int) -> None:
    """A container that may use a share of the machine's CPUs has no more workers than that; at least one."""
    quota = tmp_path / "cpu.max"
    quota.write_text(said)
    assert slots_of(Settings(workers=0), quota) == expected
    assert slots_of(Settings(workers=3), quota) == 3
    assert slots_of(Settings(workers=0), tmp_path / "none") == CPUS

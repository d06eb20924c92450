"""Endurance: what a crowd of slow clients costs in memory; the long run itself is `make soak`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

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

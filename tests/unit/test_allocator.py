"""What is done with freed memory, in a process of its own: the settings cannot be taken back."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_BURST = """
import os
from mirror import allocator

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20

allocator.set_up()
before = resident()
burst = [bytes([1]) * 65_536 for _ in range(1600)]
kept = burst[::40]
del burst
left = resident()
allocator.give_back()
print(before, left, resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library is left as it is")
def test_what_a_burst_has_left_is_given_back() -> None:
    """100 MiB of buffers, of which every fortieth stays: the memory of the others is kept for a while, and then not."""
    done = subprocess.run([sys.executable, "-c", _BURST], capture_output=True, text=True, check=True)
    before, left, after = map(int, done.stdout.split())

    assert left - before > 80
    assert after - before < 20

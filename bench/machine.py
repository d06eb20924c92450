"""The machine under the bench: cores to pin to, CPU time of process groups, and which class of machine it is."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_GROUP_FIELD = 2  # of /proc/PID/stat, counted after the name in brackets: state, parent, group


@dataclass(frozen=True, slots=True)
class Cores:
    """Who runs where: the load with everything else, and alone the server that is measured."""

    load: int
    server: int


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """Keeps this process, and whatever it starts meanwhile, on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def choose_cores() -> Cores:
    """The first and the last that we may use; the same one where there is no other."""
    usable = sorted(os.sched_getaffinity(0))
    return Cores(usable[0], usable[-1])


def cpu_seconds(group: int) -> float:
    """CPU time that the processes of a group have used so far, to the nanosecond; threads that have ended count."""
    return sum(_cpu_clock(pid) for pid in _members(group))


def resident_bytes(pid: int) -> int:
    """The memory that a process has resident."""
    pages = int((_PROC / str(pid) / "statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def describe() -> dict[str, str]:
    """The class of machine, without its name."""
    text = (_PROC / "cpuinfo").read_text() if (_PROC / "cpuinfo").exists() else ""
    models = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": f"{os.cpu_count()} x {models[0] if models else platform.machine()}",
        "memory": f"{memory / (1 << 30):.0f} GiB",
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": platform.python_version(),
    }


def _members(group: int) -> list[int]:
    found = []
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            try:
                after_name = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it ended meanwhile
                continue
            if int(after_name[_GROUP_FIELD]) == group:
                found.append(int(entry.name))
    return found


def _cpu_clock(pid: int) -> float:
    # Linux makes a process's CPU clock out of its id like this (clock_getcpuclockid); /proc has it in 10 ms only.
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0

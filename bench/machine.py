"""The machine under the bench: cores to pin to, CPU time of process groups, and which class of machine it is."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bench import watch

_PROC = Path("/proc")
_GROUP_FIELDS = slice(2, 4)  # of /proc/PID/stat, counted after the name in brackets: state, parent, group, session


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
    """CPU time of the processes of a group or session so far, to the nanosecond; threads that have ended count."""
    return sum(_cpu_clock(pid) for pid in _members(group))


def memory_bytes(group: int) -> int:
    """The memory that the processes of a group have resident; what they share counts once."""
    return sum(map(_share, _members(group)))


def peak_bytes(group: int) -> int:
    """The most memory that each process of a group has ever had resident, together; what they share counts again."""
    return sum(map(_peak, _members(group)))


def unpin(group: int) -> None:
    """Lets the processes of a group, with all their threads, run on every core."""
    for pid in _members(group):
        for thread in (_PROC / str(pid) / "task").iterdir():
            with suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread.name), range(os.cpu_count() or 1))


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
            if str(group) in after_name[_GROUP_FIELDS]:
                found.append(int(entry.name))
    return found


def _share(pid: int) -> int:
    try:
        lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:  # it ended meanwhile
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))


def _peak(pid: int) -> int:
    try:
        return watch.memory(pid).peak
    except (OSError, KeyError):  # it ended meanwhile
        return 0


def _cpu_clock(pid: int) -> float:
    # Linux makes a process's CPU clock out of its id like this (clock_getcpuclockid); /proc has it in 10 ms only.
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0

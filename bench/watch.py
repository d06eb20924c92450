"""What a running process takes, as the kernel sees it: memory, files, threads, and what it stores."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_KIB = 1 << 10


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes: resident now, of those its own (not of mapped files), and the most that ever were resident."""

    resident: int
    own: int
    peak: int


def memory(pid: int) -> Memory:
    """The memory of a process. Raises OSError where it is gone."""
    fields = _status(pid)
    return Memory(*(int(fields[name].split()[0]) * _KIB for name in ("VmRSS", "RssAnon", "VmHWM")))


def threads(pid: int) -> int:
    """How many threads a process has."""
    return int(_status(pid)["Threads"])


def open_files(pid: int) -> int:
    """How many descriptors a process has open, sockets included."""
    return sum(1 for _ in (_PROC / str(pid) / "fd").iterdir())


def stored_bytes(top: Path) -> int:
    """The bytes of all files in a directory that somebody is writing in; one that moves meanwhile counts once."""
    found: dict[int, int] = {}
    for directory, _, names in os.walk(top):
        for name in names:
            try:
                status = (Path(directory) / name).lstat()
            except FileNotFoundError:
                continue  # it was moved or removed while we looked
            found[status.st_ino] = status.st_size
    return sum(found.values())


def _status(pid: int) -> dict[str, str]:
    lines = (_PROC / str(pid) / "status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

"""A control group that makes the disk slow for one process; as root, with the blkio (v1) or the io controller (v2)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.image import BenchFailed
from tests.e2e.processes import eventually

_UNBOUND = 0


class Throttle:
    """The group of a process; `limit` says how many bytes a second it may read, and write, on one disk."""

    def __init__(self, group: Path, device: str, *, unified: bool) -> None:
        self._group = group
        self._device = device
        self._unified = unified

    def limit(self, rate: int) -> None:
        """From now on `rate` bytes a second."""
        if self._unified:
            self._write("io.max", f"{self._device} rbps={rate} wbps={rate}")
        else:
            self._write("blkio.throttle.read_bps_device", f"{self._device} {rate}")
            self._write("blkio.throttle.write_bps_device", f"{self._device} {rate}")

    def free(self) -> None:
        """As fast as the disk is."""
        if self._unified:
            self._write("io.max", f"{self._device} rbps=max wbps=max")
        else:
            self.limit(_UNBOUND)

    def _write(self, name: str, text: str) -> None:
        (self._group / name).write_text(text)


@contextmanager
def throttled(pid: int, top: Path) -> Iterator[Throttle]:
    """Puts the process into a group of its own, for the disk that `top` is on. End the process before leaving.

    Raises BenchFailed where there is no such controller, or no such disk.
    """
    parent, unified = _hierarchy()
    group = parent / f"mirror-bench-{pid}"
    try:
        group.mkdir()
        (group / "cgroup.procs").write_text(str(pid))
    except OSError as error:
        raise BenchFailed(f"no control group can be made: {error}") from error
    try:
        yield Throttle(group, _disk_of(top), unified=unified)
    finally:
        eventually(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


def _hierarchy() -> tuple[Path, bool]:
    """Where groups are made, and whether by the second version."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, kind, options, *_ = line.split()
        if kind == "cgroup" and "blkio" in options.split(","):
            return Path(where), False
        if kind == "cgroup2" and "io" in (Path(where) / "cgroup.subtree_control").read_text().split():
            return Path(where), True
    raise BenchFailed("there is no controller for the disk's rate")


def _disk_of(top: Path) -> str:
    """The numbers of the whole disk; a partition has no limit of its own."""
    status = top.stat()
    numbers = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    device = Path("/sys/dev/block") / numbers
    if not device.exists():
        raise BenchFailed(f"{top} is on no disk that can be made slow")
    if (device / "partition").exists():
        return (device.resolve().parent / "dev").read_text().strip()
    return numbers

"""The one control group under which all containers of these tests run, so that its end takes everything along."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

from tests.e2e.processes import eventually

PARENT = f"/mirror-e2e-{os.getpid()}"
"""Its path from the top of every hierarchy, as the clients' options want it. Daemons make it when they need it."""


def remove() -> None:
    """Removes the group in every hierarchy, and what a failed test left running in it.

    Raises OSError where that does not end.
    """
    for group in _groups():
        for process in (group / "cgroup.procs").read_text().split():
            with suppress(ProcessLookupError):  # the first of a container takes the others along
                os.kill(int(process), signal.SIGKILL)
    if not eventually(_is_gone):
        raise OSError(f"{PARENT} is still in use in {', '.join(map(str, _groups()))}")


def _is_gone() -> bool:
    for group in reversed(_groups()):
        try:
            group.rmdir()
        except OSError:
            continue  # what ran here has ended, but the kernel may not be done with it
    return not _groups()


def _groups() -> list[Path]:
    """The group and those in it, in all hierarchies, each before its own."""
    mounts = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    tops = [Path(point) / PARENT.removeprefix("/") for _, point, kind, *_ in mounts if kind in ("cgroup", "cgroup2")]
    return [group for top in tops if top.is_dir() for group in (top, *sorted(p for p in top.rglob("*") if p.is_dir()))]

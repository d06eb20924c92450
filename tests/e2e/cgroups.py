"""The one control group under which all containers of these tests run, so that its end takes everything along."""

from __future__ import annotations

import os
from pathlib import Path

PARENT = f"/mirror-e2e-{os.getpid()}"
"""Its path from the top of every hierarchy, as the clients' options want it. Daemons make it when they need it."""


def remove() -> None:
    """Removes the group in every hierarchy. A group that still holds a process stays, and the caller hears of it."""
    for hierarchy in _hierarchies():
        top = hierarchy / PARENT.removeprefix("/")
        if top.is_dir():
            for group in sorted((path for path in top.rglob("*") if path.is_dir()), reverse=True):
                group.rmdir()
            top.rmdir()


def _hierarchies() -> list[Path]:
    mounts = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    return [Path(point) for _, point, kind, *_ in mounts if kind in ("cgroup", "cgroup2")]

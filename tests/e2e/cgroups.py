"""The one control group under which all containers of these tests run, so that its end takes everything along."""

from __future__ import annotations

import os
import re
import signal
from contextlib import suppress
from pathlib import Path

from tests.e2e.processes import eventually, is_there

PARENT = f"/mirror-e2e-{os.getpid()}"
"""Its path from the top of every hierarchy, as the clients' options want it. Daemons make it when they need it."""

_OWNED = re.compile(r"/mirror-e2e-(\d+)\b")


def remove(parent: str | None = None) -> None:
    """Removes the group, PARENT if none is given, in every hierarchy, and what a failed test left running in it.

    Raises OSError where that does not end.
    """
    parent = parent or PARENT
    for group in _groups(parent):
        for process in (group / "cgroup.procs").read_text().split():
            with suppress(ProcessLookupError):  # the first of a container takes the others along
                os.kill(int(process), signal.SIGKILL)
    if not eventually(lambda: _is_gone(parent)):
        raise OSError(f"{parent} is still in use in {', '.join(map(str, _groups(parent)))}")


def remove_abandoned() -> None:
    """Removes the groups of test runs that were killed, as far as nothing runs in them."""
    found = {f"/{group.name}" for top in _hierarchies() for group in top.glob("mirror-e2e-*")}
    for parent in found:
        owner = owner_of(parent)
        if owner is not None and not is_there(owner):
            _is_gone(parent)


def owner_of(group: str) -> int | None:
    """The process whose tests a group, or one in it, is there for; None for any other group."""
    named = _OWNED.search(group)
    return int(named[1]) if named else None


def _is_gone(parent: str) -> bool:
    for group in reversed(_groups(parent)):
        try:
            group.rmdir()
        except OSError:
            continue  # what ran here has ended, but the kernel may not be done with it
    return not _groups(parent)


def _groups(parent: str) -> list[Path]:
    """The group and those in it, in all hierarchies, each before its own."""
    tops = [top / parent.removeprefix("/") for top in _hierarchies()]
    return [group for top in tops if top.is_dir() for group in (top, *sorted(p for p in top.rglob("*") if p.is_dir()))]


def _hierarchies() -> list[Path]:
    mounts = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    return [Path(point) for _, point, kind, *_ in mounts if kind in ("cgroup", "cgroup2")]

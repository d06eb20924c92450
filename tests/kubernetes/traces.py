"""What a cluster could leave behind or change on the machine that it ran on."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from tests.e2e.cgroups import owner_of
from tests.e2e.processes import is_there
from tests.e2e.programs import run

Traces = dict[str, frozenset[str]]

_PLACES = ("/etc/cni", "/etc/containerd", "/run/containerd", "/var/lib/cni", "/var/lib/kubelet", "/var/log/containers",
           "/var/log/pods")  # fmt: skip
_SET = re.compile(r"net\.(bridge|ipv4\.(conf\.(all|default|lo)\.|ip_forward)|netfilter)|vm\.|kernel\.(panic|keys)")
_MOVING = re.compile(r"nf_conntrack_count|vm\.stat_refresh|vm\.drop_caches|vm\.compact_memory")


def traces(home: Path) -> Traces:
    """All of it, by kind; of mounts, processes and control groups those that have to do with a cluster."""
    sysctls = run("sysctl", "--all", "--ignore", home=home, seconds=60).splitlines()
    return {
        "interfaces": _lines(run("ip", "-oneline", "address", home=home)),
        "routes": _lines(run("ip", "route", "show", "table", "all", home=home)),
        "rules": _lines(run("nft", "--stateless", "list", "ruleset", home=home)),
        "sysctls": frozenset(line for line in sysctls if _SET.match(line) and not _MOVING.search(line)),
        "mounts": frozenset(line for line in _lines(Path("/proc/mounts").read_text()) if str(home) in line),
        "files": frozenset(path for place in _PLACES for path in _below(place)),
        "groups": frozenset(path for path in _below("/sys/fs/cgroup") if "kube" in path and not _is_anothers(path)),
        "processes": frozenset(_processes(home)),
    }


def _lines(text: str) -> frozenset[str]:
    # How long an address is still valid changes by itself.
    return frozenset(re.sub(r"valid_lft \S+ preferred_lft \S+|expires \S+", "", line) for line in text.splitlines())


def _below(top: str) -> Iterator[str]:
    """Every path there; what goes in the meantime is passed over."""
    for directory, directories, files in os.walk(top):
        yield from (f"{directory}/{name}" for name in (*directories, *files))


def _is_anothers(group: str) -> bool:
    """Whether a control group is one of another run of the tests that goes on."""
    owner = owner_of(group)
    return owner not in (None, os.getpid()) and is_there(owner)


def _processes(home: Path) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if any(str(home).encode() in word for word in words):
            found.append(b" ".join(words).decode(errors="replace"))
    return found

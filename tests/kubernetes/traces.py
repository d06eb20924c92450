"""What a cluster could leave behind or change on the machine that it ran on."""

from __future__ import annotations

import re
from pathlib import Path

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
        "files": frozenset(str(path) for place in _PLACES for path in Path(place).rglob("*")),
        "groups": frozenset(str(path) for path in Path("/sys/fs/cgroup").rglob("*kube*") if path.is_dir()),
        "processes": frozenset(_processes(home)),
    }


def _lines(text: str) -> frozenset[str]:
    # How long an address is still valid changes by itself.
    return frozenset(re.sub(r"valid_lft \S+ preferred_lft \S+|expires \S+", "", line) for line in text.splitlines())


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

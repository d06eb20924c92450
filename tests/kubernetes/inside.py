"""Becomes the first process of a node's namespaces: makes them a machine of their own, says so, and waits for its end.

    python -m tests.kubernetes.inside STATE ADDRESS/PREFIX...

STATE is the directory that takes what the node writes. Everything here ends with this process: no other process of
the namespaces outlives it, and mounts, interfaces, addresses and rules go with the last of them.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

READY = "ready"  # what is printed when the machine is there

_OVERLAID = ("/etc", "/var")
_MOVED = ("/var/lib/containerd", "/var/lib/kubelet")  # no overlay lies on another one
_KERNEL_WIDE = (
    # A kubelet sets these, for the whole machine; it shall set and find its own.
    "kernel/keys/root_maxbytes",
    "kernel/keys/root_maxkeys",
    "kernel/panic",
    "kernel/panic_on_oops",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
)


def main(state: Path, addresses: list[str]) -> None:
    """Prepares the machine and reaps what loses its parent, until it is killed."""
    _run("mount", "--make-rshared", "/")  # as on every node; nothing reaches the namespaces outside
    for top in _OVERLAID:
        upper, work = (_made(state / "overlay" / top.lstrip("/") / part) for part in ("upper", "work"))
        _run("mount", "-t", "overlay", "-o", f"lowerdir={top},upperdir={upper},workdir={work}", "overlay", top)
    for directory in _MOVED:
        _bind(_made(state / directory.lstrip("/")), _made(Path(directory)))
    _run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    for key in _KERNEL_WIDE:
        copy = state / "sysctl" / key
        _made(copy.parent)
        copy.write_text(Path("/proc/sys", key).read_text())
        _bind(copy, Path("/proc/sys", key))
    _run("ip", "link", "set", "lo", "up")
    for address in addresses:
        _run("ip", "address", "add", address, "dev", "lo")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # by which the kernel reaps
    print(READY, flush=True)
    while True:
        signal.pause()


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _bind(source: Path, target: Path) -> None:
    _run("mount", "--bind", source, target)


def _run(*argv: str | Path) -> None:
    subprocess.run(argv, check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

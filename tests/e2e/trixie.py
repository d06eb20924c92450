"""Programs of Debian 13 on whatever this machine runs: with a root directory of their own, in a mount namespace."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.programs import missing, need
from tests.e2e.recipes import CACHE

ROOT = CACHE / "trixie"
"""A Debian 13 with docker 26, containerd 1.7, podman 5.4, skopeo 1.18, cosign 2.5 and crun."""

# What a program writes outside of `visible` goes to an overlay in memory: the root stays as it was made, and neither
# two programs nor two tests meet in its /run or /var. All mounts end with the last process in the namespace.
_ENTER = """
set -e
root=$1 visible=$2
shift 2
mount -t tmpfs tmpfs "$root/run"
mkdir "$root/run/upper" "$root/run/work"
mount -t overlay overlay -o "lowerdir=$root,upperdir=$root/run/upper,workdir=$root/run/work" "$root/mnt"
new=$root/mnt
for kernel in proc sys dev; do mount --rbind "/$kernel" "$new/$kernel"; done
cat /etc/hosts >"$new/etc/hosts"
mkdir -p "$new$visible" "$new/.old"
mount --rbind "$visible" "$new$visible"
cd "$new"
pivot_root . .old
umount --lazy /.old
cd "$visible"
exec "$@"
"""


def inside(*argv: str | Path, visible: Path) -> list[str | Path]:
    """The command that runs `argv` with the Debian 13 root as `/`.

    Of this machine's files it sees `visible` alone, at the same path, and starts there; what it writes elsewhere is
    gone when it ends, and no other such command sees it. Network, processes and devices are this machine's. The
    process that this starts becomes the program, so that a signal to it reaches the program.
    """
    enter = ("unshare", "--mount", "--propagation", "private", "sh", "-c", _ENTER, "inside")
    return [*enter, ROOT, visible.resolve(), *argv]


def need_trixie() -> None:
    """Skips the test where the Debian 13 root or the right to use it is missing; with CI set it fails instead."""
    need(root=True)
    if not (ROOT / "usr/bin/podman").exists():
        missing("needs a Debian 13 root (make e2e-programs)")

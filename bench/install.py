"""`python -m bench.install`: brings the rivals and the load generator where they are missing.

What Debian has comes from its package manager, as root; Distribution 3.1 is built by the recipe of the end-to-end
tests. What cannot be brought is said, and its rows in the tables then say so too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from bench.load import WRK
from bench.servers import installed
from tests.e2e import build_programs
from tests.e2e.recipes import RECIPES

PACKAGES = {
    "nginx": "nginx-light",
    "docker-registry": "docker-registry",
    WRK: "wrk",
    "curl": "curl",
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
}
"""Programs that Debian has, and the package that brings each."""
_BUILT = "registry3"
_POLICY = Path("/usr/sbin/policy-rc.d")


def main() -> int:
    """Brings what is missing; the exit code is 0 all the same where something cannot be brought, with a word on it."""
    packages = sorted({package for program, package in PACKAGES.items() if not installed(program)})
    if packages and (why := _install(packages)) is not None:
        print(f"not installed: {', '.join(packages)}: {why}", file=sys.stderr)
    if not installed(_BUILT):
        if not installed("go"):
            _install(["golang-go"])
        build_programs.main([recipe for recipe in RECIPES if recipe.name == _BUILT])
    return 0


def _install(packages: list[str]) -> str | None:
    """Installs packages; why that did not work, if so."""
    if os.geteuid() != 0:
        return "needs root"
    if shutil.which("apt-get") is None:
        return "there is no apt-get"
    print(f"installing {' '.join(packages)}", flush=True)
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    # The bench starts what it needs by itself; without this answer the packages would start their services.
    ours = not _POLICY.exists()
    if ours:
        _POLICY.write_text("#!/bin/sh\nexit 101\n")
        _POLICY.chmod(0o755)
    try:
        subprocess.run(["apt-get", "-qq", "update"], env=env, check=False)
        command = ["apt-get", "-qq", "install", "--yes", "--no-install-recommends", *packages]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    finally:
        if ours:
            _POLICY.unlink()
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["apt-get failed"])[-1]


if __name__ == "__main__":
    sys.exit(main())

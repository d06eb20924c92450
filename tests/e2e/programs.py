"""Which programs the end-to-end tests need, and what happens where one is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import pytest

PACKAGES: Mapping[str, str] = {
    "busybox": "busybox-static",
    "containerd": "containerd",
    "ctr": "containerd",
    "docker": "docker.io",
    "docker-registry": "docker-registry",
    "dockerd": "docker.io",
    "htpasswd": "apache2-utils",
    "iptables": "iptables",  # dockerd wants to find it even where it is told not to use it
    "openssl": "openssl",
    "runc": "runc",
    "skopeo": "skopeo",
}
"""Each program that may be needed, and the Debian package that brings it."""

PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
"""Daemons live where an ordinary user's PATH does not look."""


def need(*programs: str, root: bool = False) -> None:
    """Skips the test where a program or the right to run it is missing; with CI set it fails instead."""
    lacking = [f"{name} (Debian: {PACKAGES[name]})" for name in programs if shutil.which(name, path=PATH) is None]
    if root and os.geteuid() != 0:
        lacking.append("root")
    if lacking:
        missing(f"needs {', '.join(lacking)}")


def missing(reason: str) -> NoReturn:
    """Skips the test for `reason`; with CI set it fails instead."""
    if os.environ.get("CI"):
        pytest.fail(f"{reason}; nothing is skipped with CI set", pytrace=False)
    pytest.skip(reason)


def environment(home: Path) -> dict[str, str]:
    """The environment for a program that must not see this user's settings, proxies or credentials."""
    return {"PATH": PATH, "HOME": str(home), "LC_ALL": "C"}


def run(*argv: str | Path, home: Path, seconds: float = 15) -> str:
    """Runs a program to its end and returns what it printed; fails the test, showing that, where it does not exit 0."""
    done = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment(home),
        timeout=seconds,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.fail(f"{' '.join(map(str, argv))} exited {done.returncode}:\n{done.stdout}")
    return done.stdout

"""Which programs the end-to-end tests need, and what happens where one is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import pytest

from tests.e2e.recipes import CACHE, RECIPES

PACKAGES: Mapping[str, str] = {
    "buildah": "buildah",
    "busybox": "busybox-static",
    "containerd": "containerd",
    "ctr": "containerd",
    "curl": "curl",
    "docker": "docker.io",
    "docker-registry": "docker-registry",
    "dockerd": "docker.io",
    "etcd": "etcd-server",
    "htpasswd": "apache2-utils",
    "ip": "iproute2",
    "iptables": "iptables",  # dockerd wants to find it even where it is told not to use it
    "nft": "nftables",  # kube-proxy and the clean-up after it
    "nginx": "nginx-light",
    "openssl": "openssl",
    "podman": "podman",
    "portmap": "containernetworking-plugins",
    "runc": "runc",
    "skopeo": "skopeo",
    "sysctl": "procps",
}
"""Programs that Debian has, and the package that brings each."""

BUILT: frozenset[str] = frozenset(
    {Path(output).name for recipe in RECIPES for output in recipe.outputs if output.startswith("bin/")}
    | {"containerd2"}
)
"""Programs that Debian lacks, or has in another version; `make e2e-programs` brings them."""

CONTAINERD2 = CACHE / "containerd2"
"""containerd, ctr and the shim of version 2, apart since Debian's have the same names: put it in front of PATH."""

CNI = Path("/usr/lib/cni")
"""Where Debian puts the plugins that give pods their network."""

PATH = os.pathsep.join((str(CACHE / "bin"), os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
"""What was built comes first, in the version that the tests were written for; daemons live where a user's PATH does
not look."""


def need(*programs: str, root: bool = False) -> None:
    """Skips the test where a program or the right to run it is missing; with CI set it fails instead."""
    lacking = [f"{name} ({source(name)})" for name in programs if not _is_there(name)]
    if root and os.geteuid() != 0:
        lacking.append("root")
    if lacking:
        missing(f"needs {', '.join(lacking)}")


def source(program: str) -> str:
    """How to get a program. Raises KeyError for one that no list knows."""
    return "make e2e-programs" if program in BUILT else f"Debian: {PACKAGES[program]}"


def _is_there(program: str) -> bool:
    if program == "containerd2":
        return shutil.which("containerd", path=CONTAINERD2) is not None
    return shutil.which(program, path=os.pathsep.join((PATH, str(CNI)))) is not None


def missing(reason: str) -> NoReturn:
    """Skips the test for `reason`; with CI set it fails instead."""
    if os.environ.get("CI"):
        pytest.fail(f"{reason}; nothing is skipped with CI set", pytrace=False)
    pytest.skip(reason)


def environment(home: Path) -> dict[str, str]:
    """The environment for a program that must not see this user's settings, proxies or credentials."""
    return {"PATH": PATH, "HOME": str(home), "LC_ALL": "C"}


def run(*argv: str | Path, home: Path, seconds: float = 15, env: Mapping[str, str] | None = None) -> str:
    """Runs a program to its end and returns what it printed; fails the test, showing that, where it does not exit 0.

    `env` comes on top of `environment(home)`.
    """
    done = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**environment(home), **(env or {})},
        timeout=seconds,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.fail(f"{' '.join(map(str, argv))} exited {done.returncode}:\n{done.stdout}")
    return done.stdout

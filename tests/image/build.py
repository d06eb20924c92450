"""Builds the Dockerfile by BuildKit, on a Debian root with Python in place of the base image that it names."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e import cgroups
from tests.e2e.buildkit import BuildKit
from tests.e2e.clients.client import need_overlay
from tests.e2e.images import build_on
from tests.e2e.processes import remove_tree
from tests.e2e.programs import missing, need
from tests.e2e.recipes import CACHE

NAME = "localhost/mirror:image"
"""What the image is called where it is loaded."""
LABELS = {"VERSION": "9.9.9", "REVISION": "0123456789abcdef", "SOURCE": "https://git.example/mirror"}
"""The build's arguments, which become labels."""

_TOP = Path(__file__).resolve().parents[2]
_ROOT = CACHE / "python"
_BASE = "base"
_GROUP = f"{cgroups.PARENT}-build"
_BUILD = 600.0  # seconds; most of it is the fetching of packages, on a slow network
_EMPTIED = ("./dev", "./proc", "./sys", "./run", "./tmp")
_OF_PIP = {"index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "retries"}


def build_image(factory: pytest.TempPathFactory) -> Path:
    """The mirror's image as an OCI layout, built once for all tests of a run; nobody may write there.

    Skips the test where a program is missing; with CI set it fails instead.
    """
    layout = factory.getbasetemp() / "mirror-image"
    if layout.exists():
        return layout
    need("buildkitd", "buildctl", "runc", root=True)
    if not (_ROOT / "usr/bin/python3").exists():
        missing("needs a Debian root with Python (make e2e-programs)")
    home = factory.mktemp("build")
    need_overlay(home)
    archive = home / "root.tar"
    emptied = [f"--exclude={directory}/*" for directory in _EMPTIED]
    subprocess.run(["tar", "--create", f"--file={archive}", *emptied, f"--directory={_ROOT}", "."], check=True)
    digest = build_on(home / "base", archive)
    builder = BuildKit(home, snapshotter="overlayfs", group=_GROUP)
    try:
        builder.build_layout(
            _TOP,
            home / "image",
            base=(_BASE, home / "base", digest),
            arguments={"BASE": _BASE, **LABELS},
            secrets=_pip(home),
            seconds=_BUILD,
        )
    finally:
        builder.stop()
        cgroups.remove(_GROUP)
    (home / "image").rename(layout)
    remove_tree(home)
    return layout


def _pip(home: Path) -> dict[str, Path]:
    """How pip finds packages on this machine, as the build takes it: no layer and no label knows."""
    said = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    found = {"disable-pip-version-check": "1"}
    secrets: dict[str, Path] = {}
    for line in said.splitlines():  # those of the environment come first and count
        key, _, value = line.partition("=")
        found.setdefault(key.rpartition(".")[2], str(ast.literal_eval(value)))
    settings = {key: value for key, value in found.items() if key in _OF_PIP}
    if authority := found.get("cert") or os.environ.get("SSL_CERT_FILE"):
        secrets["pip.crt"] = Path(authority)
        settings["cert"] = "/etc/pip.crt"
    secrets["pip.conf"] = home / "pip.conf"
    lines = (f"{key} = {' '.join(value.split())}\n" for key, value in settings.items())
    secrets["pip.conf"].write_text("".join(("[global]\n", *lines)))
    return secrets

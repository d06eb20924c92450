"""What every client can do, and the examples that configure it."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path
from typing import Protocol

from tests.e2e.images import Image
from tests.e2e.programs import missing

_SNIPPETS = Path(__file__).parents[3] / "examples" / "clients"
DEFAULT_ADDRESS = "127.0.0.1:5000"
"""Where the examples say that the mirror is: where it listens unless it is told otherwise."""


class Client(Protocol):
    """Something that pulls from the registry which an image's name says, through the mirror."""

    log: Path
    config: Path
    """The file that names the mirror, made of an example."""

    def pull(self, reference: str) -> None:
        """Pulls `reference`, a full name such as docker.io/library/busybox:1; fails the test if it cannot."""

    def use(self, reference: str, image: Image) -> None:
        """Proves that what was pulled is `image`: runs it, or compares its bytes."""

    def empty(self) -> None:
        """Forgets everything that was pulled."""

    def stop(self) -> None:
        """Ends what runs and removes all but the log."""


def snippet(name: str, mirror: str, target: Path) -> Path:
    """Writes the example `name` to `target`, with the address of `mirror` (host:port) in the place of the default."""
    text = (_SNIPPETS / name).read_text()
    assert DEFAULT_ADDRESS in text, f"{name} does not name the default address"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text.replace(DEFAULT_ADDRESS, mirror))
    return target


def need_overlay(directory: Path) -> None:
    """Skips the test where nothing can be overlaid under `directory`, as in a container whose root is an overlay."""
    layers = {name: directory / f"overlay-{name}" for name in ("lowerdir", "upperdir", "workdir", "merged")}
    for layer in layers.values():
        layer.mkdir()
    merged = layers.pop("merged")
    options = ",".join(f"{name}={layer}" for name, layer in layers.items())
    mount = subprocess.run(
        ["mount", "-t", "overlay", "overlay", "-o", options, merged], capture_output=True, text=True, check=False
    )
    if mount.returncode != 0:
        missing(f"needs a file system that can be overlaid: {mount.stderr.strip()}")
    subprocess.run(["umount", merged], check=True)
    for layer in (*layers.values(), merged):
        shutil.rmtree(layer)


def is_socket(path: Path) -> bool:
    """Whether a daemon has made the socket that it listens on."""
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except FileNotFoundError:
        return False

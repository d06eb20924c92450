"""Small file systems in memory, for tests of a disk that is really full or read-only; only root may mount them."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.programs import missing


@contextmanager
def volume(top: Path, size: str) -> Iterator[Path]:
    """A tmpfs of `size` (as in 24m) at `top`, which is made. Skips the test without root; with CI set it fails."""
    if os.geteuid() != 0:
        missing("needs root, to mount a small file system")
    top.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", top], check=True)
    try:
        yield top
    finally:
        subprocess.run(["umount", "--lazy", top], check=True)


def remount(top: Path, how: str) -> None:
    """Makes a volume `ro` or `rw`."""
    subprocess.run(["mount", "-o", f"remount,{how}", top], check=True)


def fill(path: Path) -> None:
    """Writes a file until its file system has no room left."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        while True:
            os.write(fd, bytes(4096))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
    finally:
        os.close(fd)

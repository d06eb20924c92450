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
def volume(top: Path, size: str, *, inodes: int = 0) -> Iterator[Path]:
    """A tmpfs of `size` (as in 24m) at `top`, which is made, for so many files (0: any number).

    Skips the test without root; with CI set it fails.
    """
    if os.geteuid() != 0:
        missing("needs root, to mount a small file system")
    top.mkdir()
    mount(top, size, inodes=inodes)
    try:
        yield top
    finally:
        while os.path.ismount(top):
            unmount(top)


def mount(top: Path, size: str, *, inodes: int = 0) -> None:
    """An empty tmpfs at `top`."""
    options = f"size={size},nr_inodes={inodes},mode=0700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", top], check=True)


def unmount(top: Path) -> None:
    """Takes a volume away, whoever uses it: what is open stays so, what is at `top` by name is gone."""
    subprocess.run(["umount", "--lazy", top], check=True)


def remount(top: Path, how: str) -> None:
    """Makes a volume `ro` or `rw`."""
    subprocess.run(["mount", "-o", f"remount,{how}", top], check=True)


def cover(top: Path) -> None:
    """Lays the same volume over itself, read-only, whatever is open for writing below; `unmount` takes it off."""
    subprocess.run(["mount", "--bind", top, top], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", top], check=True)


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

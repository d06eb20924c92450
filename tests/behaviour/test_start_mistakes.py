"""A data directory that cannot be used: one clear line on stderr, exit code 1, no traceback; as a real process."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mirror.store.lock import DataLock
from tests.volumes import remount, volume

SOMEBODY = 65534
"""Whom the mirror runs as where the tests run as root, whom no permission stops."""

SERVE = """
import os, sys
import mirror.server
from mirror.auth.realm import suffixes
from mirror.cli import main
suffixes()  # all that is imported late: our files may be nobody else's to read
if os.geteuid() == 0 and sys.argv[1] != "root":
    os.setgroups([])
    os.setgid({user})
    os.setuid({user})
main(["serve"])
"""


@pytest.fixture
def top() -> Iterator[Path]:
    """A directory of our user that others may look into, unlike pytest's."""
    with tempfile.TemporaryDirectory(prefix="mirror-mistakes-", dir="/tmp") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path
        for directory, _, _ in os.walk(path):  # from the top, so that it opens what it then enters
            os.chmod(directory, 0o700)  # noqa: PTH101 - as os.walk names it


def serve(data: Path, user: str = "somebody") -> tuple[int, list[str]]:
    """Runs `mirror serve` over `data`; returns its exit code and what it wrote, without the log of a start."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MIRROR_")}
    env |= {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "MIRROR_STORAGE__PATH": str(data),
        "MIRROR_LISTEN": "127.0.0.1:0",
        "MIRROR_ADMIN_LISTEN": "127.0.0.1:0",
    }
    done = subprocess.run(
        [sys.executable, "-c", SERVE.format(user=SOMEBODY), user],
        env=env, cwd="/", capture_output=True, text=True, timeout=15, check=False,
    )  # fmt: skip
    said = [*done.stdout.splitlines(), *done.stderr.splitlines()]
    return done.returncode, [line for line in said if not line.startswith("{") or '"level":"error"' in line]


def check_one_line(data: Path, culprit: Path, *words: str, user: str = "somebody") -> None:
    """It says what is wrong with which path, and what to do, and ends with 1."""
    code, lines = serve(data, user)
    assert (code, len(lines)) == (1, 1), lines
    assert lines[0].startswith("mirror: ")
    assert str(culprit) in lines[0]
    for word in words:
        assert word in lines[0]


def ours(data: Path) -> Path:
    """A data directory as an earlier run of the same user has left it."""
    for part in ("blobs/sha256", "blobs/sha512", "spool", "records"):
        (data / part).mkdir(parents=True)
    for part in ("lock", "unsettled", "records/cache.db"):
        (data / part).touch()
    if os.geteuid() == 0:
        for path in (data, *data.rglob("*")):
            os.chown(path, SOMEBODY, SOMEBODY)
    return data


def closed(path: Path) -> None:
    """Nobody but root may do anything with it."""
    path.chmod(0)


def unwritable(path: Path) -> None:
    """Its owner may look, and no more."""
    path.chmod(0o500)


PARTS = ("", "lock", "unsettled", "blobs", "blobs/sha256", "spool", "records/cache.db")


@pytest.mark.parametrize(
    ("mistake", "part"), [*((closed, part) for part in PARTS), *((unwritable, part) for part in ("", "records"))]
)
def test_what_is_not_for_us_is_named(top: Path, mistake: Callable[[Path], None], part: str) -> None:
    """Whichever part of the data directory: its owner, its mode, who we are, and how to let us in."""
    data = ours(top / "data")
    mistake(data / part)

    mode = "mode 0" if mistake is closed else "mode 500"
    check_one_line(data, data / part, "permission denied", "we are user", mode, "chmod -R u+rwX", "storage.path")


def test_somebody_elses_directory_is_named(top: Path) -> None:
    """As after a start as root, or an image that runs as another user than before."""
    if os.geteuid() != 0:
        pytest.skip("only root can make directories of somebody else")
    (top / "data").mkdir(mode=0o700)

    check_one_line(top / "data", top / "data", "belongs to user 0", f"chown -R {SOMEBODY} {top / 'data'}")


def test_a_place_where_nothing_may_be_made_is_named(top: Path) -> None:
    """The directory is missing, and so is its parent, in a place that is not ours."""
    top.chmod(0o555)

    check_one_line(top / "parent" / "data", top, "permission denied", "belongs to user", "storage.path")


@pytest.mark.parametrize("part", ["", "blobs", "records"])
def test_a_file_in_the_place_of_a_directory_is_named(top: Path, part: str) -> None:
    """And nobody is told to delete it: it may be his."""
    data = ours(top / "data") if part else top / "data"
    if part:
        (data / part).rename(top / "moved")
    (data / part).write_text("in the way")

    check_one_line(data, data / part, "not a directory", "move away")


def test_a_file_above_the_directory_is_named(top: Path) -> None:
    """`storage.path` leads through something that is no directory."""
    (top / "file").write_text("in the way")

    check_one_line(top / "file" / "data", top / "file", "not a directory")


@pytest.mark.parametrize("part", ["lock", "records/cache.db"])
def test_a_directory_in_the_place_of_a_file_is_named(top: Path, part: str) -> None:
    """Whatever made it."""
    data = ours(top / "data")
    (data / part).unlink()
    (data / part).mkdir()

    check_one_line(data, data / part, "not a file")


def test_a_read_only_volume_is_named(top: Path) -> None:
    """Nothing can be kept there; that is a mistake at the start, and trouble to live with later."""
    with volume(top / "volume", "1m") as data:
        remount(data, "ro")

        check_one_line(data, data / "lock", "read-only file system", "storage.path", user="root")


def test_a_directory_in_use_is_named(top: Path) -> None:
    """With the process that uses it."""
    data = ours(top / "data")
    lock = DataLock.take(data)

    check_one_line(data, data, f"in use by process {os.getpid()}")
    lock.release()

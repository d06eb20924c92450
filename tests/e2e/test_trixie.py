"""Programs of Debian 13: what they see of this machine, and what of them is left."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.e2e.processes import Process
from tests.e2e.programs import environment, run
from tests.e2e.trixie import ROOT, inside, need_trixie

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(60)]  # the last test of all ends every daemon


@pytest.fixture(autouse=True)
def trixie() -> None:
    """None of this can be tried without it."""
    need_trixie()


def test_only_what_is_made_visible_is_there(tmp_path: Path) -> None:
    """Inside, / is Debian 13; of this machine's files the program has the visible directory, at its own path."""
    visible, hidden = tmp_path / "visible", tmp_path / "hidden"
    visible.mkdir()
    hidden.mkdir()
    (visible / "given").write_text("from outside")

    said = run(
        *inside("sh", "-c", f"cat /etc/debian_version given; echo inside >made; test ! -e {hidden}", visible=visible),
        home=tmp_path,
    )

    assert said.startswith("13.")
    assert said.endswith("from outside")
    assert (visible / "made").read_text() == "inside\n"


def test_root_directory_stays_as_it_was_made(tmp_path: Path) -> None:
    """What a program writes elsewhere is there for itself alone, and gone with it; nothing stays mounted."""
    script = "touch /run/mine /var/lib/mine /mine && ls /run/mine /var/lib/mine /mine"
    assert "/var/lib/mine" in run(*inside("sh", "-c", script, visible=tmp_path), home=tmp_path)

    again = run(*inside("ls", "/", "/run", "/var/lib", visible=tmp_path), home=tmp_path)

    assert "mine" not in again.split()
    assert [path for path in ("mine", "run/mine", "var/lib/mine") if (ROOT / path).exists()] == []
    assert str(ROOT) not in Path("/proc/mounts").read_text()


def test_signal_reaches_the_program(tmp_path: Path) -> None:
    """A program of Debian 13 is stopped as any other."""
    script = "trap 'echo asked to end; exit 7' TERM; echo ready; while :; do sleep 0.05; done"
    process = Process(inside("sh", "-c", script, visible=tmp_path), log=tmp_path / "log", env=environment(tmp_path))
    process.wait_until(lambda: "ready" in (tmp_path / "log").read_text())

    assert process.stop() == 7

    assert "asked to end" in (tmp_path / "log").read_text()


def test_program_that_is_not_there_fails(tmp_path: Path) -> None:
    """A misspelt name is an error, not this machine's program of that name."""
    (tmp_path / "only-here").write_text("#!/bin/sh\n")
    (tmp_path / "only-here").chmod(0o755)
    visible = tmp_path / "visible"
    visible.mkdir()

    done = subprocess.run(
        inside(tmp_path / "only-here", visible=visible), capture_output=True, text=True, check=False, timeout=15
    )

    assert done.returncode == 127
    assert "not found" in done.stderr

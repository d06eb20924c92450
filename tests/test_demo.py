"""`make demo`: what it tells is true, it fails where something fails, and it leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.e2e.processes import listens

TOP = Path(__file__).parents[1]
SMALL = ("--layer-size=300KB", "--rate=50MB/s", "--latency=0", "--clients=3")


def demo(*arguments: str) -> subprocess.Popen[str]:
    """The demonstration as a process, with a terminal's width but none of its colours."""
    return subprocess.Popen(
        [sys.executable, "-m", "examples.demo", *arguments],
        cwd=TOP,
        env={**os.environ, "COLUMNS": "120", "NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def rows(text: str, name: str) -> list[list[str]]:
    """The cells of each table row that begins with `name`."""
    found = [line.split(name, 1)[1] for line in text.splitlines() if line.strip().startswith(f"{name} ")]
    return [re.split(r"  +", line.strip()) for line in found]


def mirror_port(text: str) -> int:
    """Where the mirror served."""
    found = re.search(r"Mirror: 127\.0\.0\.1:(\d+)", text)
    assert found is not None, text
    return int(found[1])


def test_demo_shows_what_a_mirror_saves() -> None:
    """A second pull and one without an upstream cost it no content request; a herd costs it one client's bytes."""
    with demo(*SMALL) as process:
        text, errors = process.communicate()

    assert process.returncode == 0, errors
    (_, first), (_, second), (_, herd), (_, outage) = (
        rows(text, name) for name in ("first pull", "second pull", "3 at once", "upstream gone")
    )
    time_, requests, asked, got, sent, saved = range(6)
    assert (first[requests], first[asked], first[saved]) == ("5", "5", "0 %")
    assert first[got] == first[sent]
    for act in (second, outage):
        assert (act[requests], act[asked], act[sent], act[saved]) == ("5", "0", "0 bytes", "100 %")
        assert act[time_]
    assert herd[requests] == "15"
    assert herd[saved] == "67 %"
    assert "newly held): 1.000" in text


def test_demo_stops_what_it_started() -> None:
    """SIGTERM in the middle of a pull ends it at once, with both programs stopped."""
    with demo("--layer-size=64MB", "--rate=1MB/s") as process:
        assert process.stdout is not None
        port = mirror_port(process.stdout.readline())
        assert "first pull" in process.stdout.readline()
        assert listens(port)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate()

    assert process.returncode == 128 + signal.SIGTERM, errors
    assert not listens(port)


def test_demo_fails_loudly() -> None:
    """Where a program does not start, the demonstration says why and does not exit 0."""
    with demo("--layer-size=plenty") as process:
        _, errors = process.communicate()

    assert process.returncode == 1
    assert "demo failed" in errors
    assert "'plenty' is not a size" in errors

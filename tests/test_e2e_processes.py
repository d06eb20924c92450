"""The ports and control groups of the end-to-end tests: nobody else's, and gone when they end."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e import cgroups
from tests.e2e.processes import free_port, held_port, listens, remove_state
from tests.e2e.programs import need


@pytest.fixture
def same_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ports are looked for in one order, by every call."""

    def first(population: Sequence[int], count: int) -> list[int]:
        return list(population[:count])

    monkeypatch.setattr(random, "sample", first)


@pytest.mark.usefixtures("same_order")
def test_a_port_is_given_once() -> None:
    """What has been given a port and is not running just then keeps it."""
    assert free_port() != free_port()


def test_a_held_port_is_nobody_elses() -> None:
    """Another process finds it taken, a client is refused, and the server that it is held for can listen there."""
    look = "import socket, sys; socket.socket().bind(('127.0.0.1', int(sys.argv[1])))"
    with held_port() as port:
        found = subprocess.run([sys.executable, "-c", look, str(port)], capture_output=True, text=True, check=False)
        assert "Address already in use" in found.stderr
        for _ in range(2):
            assert not listens(port)
            with socket.create_server(("127.0.0.1", port)):
                assert listens(port)
    assert subprocess.run([sys.executable, "-c", look, str(port)], check=False).returncode == 0


def test_what_a_daemon_leaves_goes_with_its_directory(tmp_path: Path) -> None:
    """A process that was told a path in there is ended, the daemon of a directory with a similar name is not."""
    top = tmp_path / "state"
    top.mkdir()
    with ExitStack() as ends:
        shim, other = (
            ends.enter_context(
                subprocess.Popen(["sh", "-c", "read line", "shim", "-address", address], stdin=subprocess.PIPE)
            )
            for address in (f"{top}/containerd.sock", f"{top}2/containerd.sock")
        )

        remove_state(top)

        assert shim.wait(5) == -signal.SIGKILL
        assert not top.exists()
        assert other.poll() is None
        other.kill()


@pytest.mark.e2e
def test_a_control_group_goes_with_all_that_runs_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a container, whose other processes the kernel ends with the first, perhaps before it is their turn."""
    need("unshare", root=True)
    monkeypatch.setattr(cgroups, "PARENT", f"{cgroups.PARENT}-test")
    mounts = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    tops = [Path(top) for _, top, kind, options, *_ in mounts if kind.startswith("cgroup") and "cpuset" not in options]
    group = tops[0] / cgroups.PARENT.removeprefix("/")
    group.mkdir()
    container = f"{'sleep 60 & ' * 30}echo; wait"
    enter = f'echo $$ >{group}/cgroup.procs; exec unshare --pid --fork sh -c "{container}"'
    with subprocess.Popen(["sh", "-c", enter], stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        running.stdout.readline()

        cgroups.remove()

    assert not group.exists()

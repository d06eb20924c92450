"""`mirror node-config apply` and `restore`: what they print, how they exit, and staying until a signal comes."""

from __future__ import annotations

import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mirror.cli import main
from tests.e2e.processes import eventually, free_port
from tests.nodes.conftest import Node

HOSTS = "/etc/containerd/certs.d/_default/hosts.toml"
MIRROR = "http://mirror.test:5000"


def run(node: Node, *arguments: str) -> Result:
    """One command on the node."""
    return CliRunner().invoke(main, ["node-config", *arguments, "--root", str(node.top)])


def test_it_says_what_it_did(node: Node) -> None:
    """And what is left to do, elsewhere than on standard output."""
    applied, again = run(node, "apply", "--mirror", MIRROR), run(node, "apply", "--mirror", MIRROR)
    restored = run(node, "restore")

    assert (applied.exit_code, applied.stdout) == (0, f"written: {HOSTS}\n")
    assert "config_path" in applied.stderr
    assert (again.exit_code, again.stdout) == (0, "nothing to do\n")
    assert (restored.exit_code, restored.stdout) == (0, f"put back: {HOSTS}\n")


def test_what_cannot_be_worked_with(node: Node) -> None:
    """Exit code 2, the file, what is wrong with it; nothing touched."""
    node.put(HOSTS, "[[")
    before = node.tree()
    result = run(node, "apply", "--mirror", MIRROR)

    assert result.exit_code == 2
    assert HOSTS in result.stderr
    assert node.tree() == before


def test_a_change_by_somebody_else(node: Node) -> None:
    """Exit code 1 from both."""
    run(node, "apply", "--mirror", MIRROR)
    node.put(HOSTS, "# theirs\n")

    for result in (run(node, "apply", "--mirror", MIRROR), run(node, "restore")):
        assert result.exit_code == 1
        assert HOSTS in result.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["apply"], "--mirror"),
        (["apply", "--mirror", "mirror.test:5000"], "the mirror's URL"),
        (["apply", "--mirror", "https://mirror.test/path"], "the mirror's URL"),
        (["apply", "--mirror", "ftp://mirror.test"], "the mirror's URL"),
        (["apply", "--mirror", MIRROR, "--registry", "not a name"], "host or host:port"),
        (["apply", "--mirror", MIRROR, "--runtime", "rkt"], "containerd"),
        (["apply", "--mirror", MIRROR, "--metrics-listen", "x"], "host:port"),
        (["apply", "--mirror", MIRROR, "--metrics-listen", "127.0.0.1:1"], "--hold"),
        (["apply", "--mirror", MIRROR, "--ca", "/nowhere"], "/nowhere"),
        (["apply", "--mirror", MIRROR, "--ca", __file__], "no certificate"),
        (["restore", "--runtime", "rkt"], "containerd"),
    ],
)
def test_bad_usage(node: Node, arguments: list[str], expected: str) -> None:
    """Exit code 2, and what was expected."""
    result = run(node, *arguments)

    assert result.exit_code == 2
    assert expected in result.stderr


class Holding:
    """`apply --hold` as a process of its own."""

    def __init__(self, node: Node, log: Path, *options: str) -> None:
        self.port = free_port()
        self._log = log
        command = [sys.executable, "-m", "mirror", "node-config", "apply", "--mirror", MIRROR, "--root", str(node.top)]
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [*command, "--hold", "--metrics-listen", f"127.0.0.1:{self.port}", *options], stderr=file
            )

    def ready(self) -> int:
        """The status of /readyz; 0 where nobody listens yet."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def metrics(self) -> str:
        """What /metrics says."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer:
            return str(answer.read().decode())

    def log(self) -> str:
        """What it has logged."""
        return self._log.read_text()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Its exit code."""
        self.process.send_signal(number)
        return self.process.wait(30)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where a process logs to."""
    return tmp_path / "log"


@pytest.fixture
def holding(node: Node, log: Path) -> Iterator[Holding]:
    """On a node with settings of its own."""
    node.put(HOSTS, '[host."https://other.test"]\n')
    holding = Holding(node, log)
    yield holding
    holding.process.kill()
    holding.process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stays_and_restores_at_the_end(node: Node, holding: Holding, number: signal.Signals) -> None:
    """As a DaemonSet has it; meanwhile it tells how it went."""
    assert eventually(lambda: holding.ready() == 200, seconds=30)
    assert MIRROR in node.text(HOSTS)
    assert 'mirror_node_configured{runtime="containerd"} 1.0' in holding.metrics()
    assert 'mirror_node_advice{runtime="containerd"} 1.0' in holding.metrics()

    assert holding.stop(number) == 0
    assert node.text(HOSTS) == '[host."https://other.test"]\n'
    assert "node configured" in holding.log()
    assert "node restored" in holding.log()


def test_it_stays_where_it_cannot_apply(node: Node, log: Path) -> None:
    """Not ready, with the reason in its log: a pod that ends would be started again and again."""
    node.put(HOSTS, "[[")
    holding = Holding(node, log)
    try:
        assert eventually(lambda: holding.ready() == 503, seconds=30)
        assert eventually(lambda: HOSTS in holding.log(), seconds=30)
        assert 'mirror_node_configured{runtime="containerd"} 0.0' in holding.metrics()
        assert holding.stop() == 0
    finally:
        holding.process.kill()
        holding.process.wait()
    assert node.text(HOSTS) == "[["


def test_it_tells_of_what_it_could_not_put_back(node: Node, holding: Holding) -> None:
    """Exit code 1, and the file in the log."""
    assert eventually(lambda: holding.ready() == 200, seconds=30)
    node.put(HOSTS, "# theirs\n")

    assert holding.stop() == 1
    assert HOSTS in holding.log()
    assert node.text(HOSTS) == "# theirs\n"

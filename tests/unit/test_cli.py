"""The command line: what is printed where, and with which exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from click.testing import CliRunner, Result

import mirror
from mirror.cli import main
from mirror.config import Settings
from mirror.oci.errors import StorageError

Serve = Callable[[Settings], int]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of whoever runs the tests sets nothing."""
    import os

    for name in list(os.environ):
        if name.startswith("MIRROR_"):
            monkeypatch.delenv(name)


@pytest.fixture(name="set_serve")
def make_set_serve(monkeypatch: pytest.MonkeyPatch) -> Callable[[Serve], None]:
    """Puts a function in the place of the server's."""

    def set_serve(serve: Serve) -> None:
        module = ModuleType("mirror.server")
        module.serve = serve  # type: ignore[attr-defined]  # a module made by hand
        monkeypatch.setitem(sys.modules, "mirror.server", module)
        monkeypatch.setattr(mirror, "server", module, raising=False)

    return set_serve


def run(*arguments: str) -> Result:
    """Runs `mirror` with `arguments`."""
    return CliRunner().invoke(main, list(arguments))


def test_the_version_is_printed() -> None:
    """`mirror --version` is for people and for bug reports."""
    result = run("--version")

    assert (result.exit_code, result.stdout) == (0, f"mirror, version {mirror.__version__}\n")


def test_a_sound_configuration_is_printed_with_masked_secrets(tmp_path: Path) -> None:
    """check-config shows what will be in effect, as YAML, and exits 0."""
    file = tmp_path / "mirror.yaml"
    file.write_text("tag_ttl: 10m\nupstreams: {docker.io: {username: ci, password: planted}}")
    result = run("check-config", str(file))

    assert result.exit_code == 0
    assert result.stderr == ""
    assert "planted" not in result.stdout
    assert yaml.safe_load(result.stdout)["tag_ttl"] == "10m"


def test_check_config_counts_the_environment_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is printed is what serve would use in the same environment."""
    file = tmp_path / "mirror.yaml"
    file.write_text("tag_ttl: 10m")
    monkeypatch.setenv("MIRROR_TAG_TTL", "20m")

    assert yaml.safe_load(run("check-config", str(file)).stdout)["tag_ttl"] == "20m"


@pytest.mark.parametrize("command", [["check-config"], ["serve", "--config"]])
def test_mistakes_are_one_line_each_on_standard_error(tmp_path: Path, command: list[str]) -> None:
    """A configuration that cannot be used exits with 2, names all mistakes and shows no traceback."""
    file = tmp_path / "mirror.yaml"
    file.write_text("tag_ttl: 5\nlisten: here\n")
    result = run(*command, str(file))

    assert (result.exit_code, result.stdout) == (2, "")
    lines = result.stderr.splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"mirror: {file}:") for line in lines)


@pytest.mark.parametrize("arguments", [["serve", "--nope"], ["check-config"], ["nope"], ["serve", "extra"], []])
def test_bad_usage_exits_with_2(arguments: list[str]) -> None:
    """Unknown commands and options are told apart from failures."""
    result = run(*arguments)

    assert result.exit_code == 2
    assert "Usage: " in result.stderr


def test_serve_hands_the_settings_over_and_returns_the_exit_code(
    tmp_path: Path, set_serve: Callable[[Serve], None]
) -> None:
    """The server's result is the command's."""
    seen: list[Settings] = []
    set_serve(lambda settings: seen.append(settings) or 7)  # type: ignore[func-returns-value]  # append and answer
    file = tmp_path / "mirror.yaml"
    file.write_text("tag_ttl: 10m")

    assert run("serve", "--config", str(file)).exit_code == 7
    assert run("serve").exit_code == 7
    assert [settings.tag_ttl for settings in seen] == [600, 300]


@pytest.mark.parametrize(
    "error", [StorageError("./data is in use by process 7"), OSError(98, "Address already in use")]
)
def test_a_failure_that_an_operator_can_mend_is_one_line(error: Exception, set_serve: Callable[[Serve], None]) -> None:
    """A port in use or a locked data directory exits with 1 and a sentence, without a traceback."""

    def serve(settings: Settings) -> int:
        raise error

    set_serve(serve)
    result = run("serve")

    assert (result.exit_code, result.stdout, result.stderr) == (1, "", f"mirror: {error}\n")

"""The command line: what is printed where, and with which exit code."""

from __future__ import annotations

import errno
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
from mirror.oci.digest import Digest
from mirror.oci.errors import StorageError
from tests.faulty import FaultyFiles
from tests.storing import path_of

Read = Callable[[], Settings]
Serve = Callable[..., int]


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


@pytest.mark.parametrize("command", [["check-config"], ["serve", "--config"], ["verify", "--config"]])
def test_mistakes_are_one_line_each_on_standard_error(tmp_path: Path, command: list[str]) -> None:
    """A configuration that cannot be used exits with 2, names all mistakes and shows no traceback."""
    file = tmp_path / "mirror.yaml"
    file.write_text("tag_ttl: 5\nlisten: here\n")
    result = run(*command, str(file))

    assert (result.exit_code, result.stdout) == (2, "")
    lines = result.stderr.splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"mirror: {file}:") for line in lines)


@pytest.mark.parametrize(
    "arguments",
    [
        ["serve", "--nope"],
        ["check-config"],
        ["nope"],
        ["serve", "extra"],
        ["verify", "extra"],
        ["verify", "--jobs", "0"],
        [],
    ],
)
def test_bad_usage_exits_with_2(arguments: list[str]) -> None:
    """Unknown commands and options are told apart from failures."""
    result = run(*arguments)

    assert result.exit_code == 2
    assert "Usage: " in result.stderr


def test_serve_hands_the_settings_over_and_returns_the_exit_code(
    tmp_path: Path, set_serve: Callable[[Serve], None]
) -> None:
    """The server's result is the command's; it can read the configuration again, and watch its file if asked to."""
    seen: list[Settings] = []
    watches: list[Path | None] = []

    def serve(settings: Settings, read: Read, *, watched: Path | None) -> int:
        seen.extend((settings, read()))
        watches.append(watched)
        return 7

    set_serve(serve)
    file = tmp_path / "mirror.yaml"
    file.write_text("tag_ttl: 10m")

    assert run("serve", "--config", str(file)).exit_code == 7
    assert run("serve").exit_code == 7
    assert [settings.tag_ttl for settings in seen] == [600, 600, 300, 300]
    assert run("serve", "--config", str(file), "--watch").exit_code == 7
    assert watches == [None, None, file]
    assert run("serve", "--watch").exit_code == 2


@pytest.mark.parametrize(
    "error", [StorageError("./data is in use by process 7"), OSError(98, "Address already in use")]
)
def test_a_failure_that_an_operator_can_mend_is_one_line(error: Exception, set_serve: Callable[[Serve], None]) -> None:
    """A port in use or a locked data directory exits with 1 and a sentence, without a traceback."""

    def serve(settings: Settings, read: Read, *, watched: Path | None) -> int:
        raise error

    set_serve(serve)
    result = run("serve")

    assert (result.exit_code, result.stdout, result.stderr) == (1, "", f"mirror: {error}\n")


def blob(top: Path, data: bytes, found: bytes | None = None) -> Digest:
    """Puts a blob into a data directory, with `found` in place of its bytes."""
    digest = Digest.of(data)
    path = path_of(top, digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if found is None else found)
    return digest


def test_verify_says_that_all_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line with figures, exit code 0, and how far it is beside it."""
    monkeypatch.setenv("MIRROR_STORAGE__PATH", str(tmp_path))
    for number in range(3):
        blob(tmp_path, bytes([number]) * 1000)

    result = run("verify", "--jobs", "2")

    assert (result.exit_code, result.stdout) == (0, "3 blobs, 3,000 bytes: all right\n")
    assert result.stderr.startswith("verifying 3 blobs, 3,000 bytes\n")
    assert result.stderr.endswith("100% verified\n")


def test_verify_tells_what_was_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line for each blob, exit code 1, the blob is gone; a second look finds nothing."""
    monkeypatch.setenv("MIRROR_STORAGE__PATH", str(tmp_path))
    blob(tmp_path, b"right")
    wrong = blob(tmp_path, b"wrong", b"wrung")
    stranger = path_of(tmp_path, wrong).with_name("notes")
    stranger.write_text("keep")

    result = run("verify")

    assert result.exit_code == 1
    assert result.stdout == f"{wrong} 5 bytes: wrong bytes, removed\n2 blobs, 10 bytes: 1 not right\n"
    assert f"{stranger} 4 bytes: not a blob, left alone\n" in result.stderr
    assert not path_of(tmp_path, wrong).exists()
    assert run("verify").exit_code == 0


def test_verify_needs_something_to_verify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong path must not look like a sound cache: exit code 2. An empty cache is sound."""
    monkeypatch.setenv("MIRROR_STORAGE__PATH", str(tmp_path))
    result = run("verify")

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"mirror: there is nothing to verify: {tmp_path} has no blobs; is storage.path right?\n"

    (tmp_path / "blobs").mkdir()
    assert run("verify").exit_code == 0


def test_verify_may_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user other than the server's: one line, exit code 1."""
    monkeypatch.setenv("MIRROR_STORAGE__PATH", str(tmp_path))
    blob(tmp_path, b"right")
    disk = FaultyFiles()
    disk.fail(errno.EACCES, "open")
    monkeypatch.setattr("mirror.store.verification.Files", lambda: disk)

    result = run("verify")

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"mirror: cannot read {tmp_path / 'blobs'}: Permission denied\n"

"""What the project's own files promise: the commands, the pins, the gate, the snippets, the habits."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import mirror
from mirror.config import Settings
from tests.e2e import programs
from tests.e2e.clients import DEFAULT_ADDRESS, snippet

TOP = Path(__file__).parents[1]
PIN = re.compile(
    r"(?P<name>[a-z0-9][a-z0-9._-]*)==(?P<version>[0-9][A-Za-z0-9.+!]*)(?P<hashes>(?: --hash=sha256:[0-9a-f]{64})+)"
)
PINNED = {name: f"requirements/{name}.txt" for name in ("runtime", "nodes", "dev", "build", "tools")}
TARGET = re.compile(r"^(?P<name>[a-z][a-z0-9-]*):", re.MULTILINE)
SUPPRESSION = re.compile(
    r"#\s*(?:type:\s*ignore|noqa)\b(?P<codes>\[[a-z, -]+\]|:\s*[A-Z]+\d+(?:,\s*[A-Z]+\d+)*)?(?P<rest>.*)"
)


def pyproject() -> dict[str, Any]:
    return tomllib.loads((TOP / "pyproject.toml").read_text())


def lines_of(name: str) -> list[str]:
    """The lines of a file of pins, continued ones joined, without comments."""
    text = (TOP / PINNED[name]).read_text().replace(" \\\n   ", "")
    return [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]


def pins(name: str) -> dict[str, str]:
    found = (PIN.fullmatch(line) for line in lines_of(name))
    return {canonicalize_name(pin["name"]): pin["version"] for pin in found if pin}


def requirements(name: str) -> list[Requirement]:
    """What pyproject.toml asks for in the environment that a file of pins is for."""
    declared = pyproject()
    project = declared["project"]
    extras = project["optional-dependencies"]
    texts = {
        "build": declared["build-system"]["requires"],
        "runtime": project["dependencies"],
        "nodes": [*project["dependencies"], *extras["nodes"]],
        "dev": [*project["dependencies"], *extras["nodes"], *extras["dev"]],
    }
    return [Requirement(text) for text in texts[name]]


def closure(wanted: list[Requirement]) -> set[str]:
    """The names of everything that the requirements lead to on this machine."""
    seen: set[str] = set()
    while wanted:
        requirement = wanted.pop()
        name = canonicalize_name(requirement.name)
        if name in seen:
            continue
        seen.add(name)
        for further in map(Requirement, metadata.requires(name) or ()):
            extras = ("", *requirement.extras)
            if further.marker is None or any(further.marker.evaluate({"extra": extra}) for extra in extras):
                wanted.append(further)
    return seen


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((TOP / folder).rglob("*.py"))


def make(*arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    if shutil.which("make") is None:
        programs.missing("needs make")
    return subprocess.run(
        ["make", "--no-print-directory", "-C", TOP, *arguments],
        capture_output=True,
        text=True,
        check=False,
        # Without what an outer make would hand down.
        env={"PATH": path or os.environ["PATH"]},
    )


# Commands


def test_make_help_names_every_target() -> None:
    """Whatever `make` can be asked for is in `make help`, with a word on what it does."""
    targets = {found["name"] for found in TARGET.finditer((TOP / "Makefile").read_text())}
    described = {line.split()[1] for line in make("help").stdout.splitlines() if len(line.split()) > 2}

    assert {"help", "serve", "test", "check", "demo", "bench"} <= targets
    assert described == targets


def test_make_alone_gives_help() -> None:
    """`make` without a target installs nothing and starts nothing."""
    assert make().stdout == make("help").stdout


def test_make_check_runs_lint_types_floors_and_tests() -> None:
    """`make check` is the whole gate, in this order."""
    planned = make("--dry-run", "--always-make", "check").stdout

    steps = ["ruff check", "ruff format --check", "mypy", "lint-imports", "pytest"]
    assert sorted(steps, key=planned.rindex) == steps


def test_python_that_cannot_run_is_passed_over(tmp_path: Path) -> None:
    """A command without a Python behind it, or with one that is too old, is never chosen."""
    for name, script in {"python3.13": "exit 127", "python3.12": "exit 1", "python3.11": 'echo "chosen $0 $2"'}.items():
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)

    said = make(f"VENV={tmp_path}/venv", f"{tmp_path}/venv/bin/python", path=f"{tmp_path}:{os.environ['PATH']}")

    assert f"chosen {tmp_path}/python3.11 venv" in said.stdout


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("exit 1", "No Python >= 3.11 found"),
        ('case "$2" in *ensurepip*) exit 1;; esac', "install its venv module"),
    ],
    ids=["too old", "no venv module"],
)
def test_machine_without_a_usable_python_is_told_so(tmp_path: Path, script: str, expected: str) -> None:
    """Where no Python will do, make says what is missing and fails."""
    for name in ("python3.13", "python3.12", "python3.11", "python3"):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)

    said = make(f"VENV={tmp_path}/venv", f"{tmp_path}/venv/bin/python", path=f"{tmp_path}:{os.environ['PATH']}")

    assert said.returncode != 0
    assert expected in said.stderr
    assert not (tmp_path / "venv").exists()


# Versions


@pytest.mark.parametrize("name", PINNED)
def test_every_pin_has_hashes_and_no_address(name: str) -> None:
    """Each line is name==version with hashes: no address, option or path, so any package index will do."""
    lines = lines_of(name)

    assert [line for line in lines if PIN.fullmatch(line) is None] == []
    assert len(pins(name)) == len(lines) > 0, "a name stands there twice"


@pytest.mark.parametrize("name", ["build", "runtime", "nodes", "dev"])
def test_pins_satisfy_the_requirements(name: str) -> None:
    """No pinned version is one that pyproject.toml refuses, and nothing that it asks for is missing."""
    pinned = pins(name)

    wrong = [str(r) for r in requirements(name) if not r.specifier.contains(pinned.get(canonicalize_name(r.name), "0"))]

    assert wrong == []


@pytest.mark.parametrize("name", ["runtime", "nodes", "dev"])
def test_pins_are_exactly_what_gets_installed(name: str) -> None:
    """Whatever our requirements lead to, however far away, is pinned, and nothing else; the versions here are those."""
    pinned = pins(name)

    assert closure(requirements(name)) == pinned.keys()
    assert {package: metadata.version(package) for package in pinned} == pinned


def test_development_runs_what_is_shipped() -> None:
    """What is tested with is what is served with, byte for byte, and some more."""
    assert set(lines_of("runtime")) < set(lines_of("nodes")) < set(lines_of("dev"))


def test_make_installs_by_hash_alone() -> None:
    """Nothing reaches an environment that is not pinned; the package itself is built with what is there already."""
    for target in (".venv/installed", ".venv/installed-dev", "build/tools/installed"):
        planned = make("--dry-run", "--always-make", target).stdout
        installs = [line for line in planned.splitlines() if " pip " in line and " install " in line]

        assert installs, target
        for line in installs:
            assert "--require-hashes" in line or "--no-deps --no-build-isolation --editable ." in line


def test_accepted_advisories_are_explained() -> None:
    """`make audit` looks past those that SECURITY.md gives a reason for, and past no other."""
    passed_over = re.findall(r"--ignore-vuln (\S+)", make("--dry-run", "audit").stdout)
    explained = re.findall(r"^\| ((?:CVE|GHSA|PYSEC)-\S+) \|", (TOP / "SECURITY.md").read_text(), re.MULTILINE)

    assert passed_over == explained


def test_version_is_told_once() -> None:
    """The package and pyproject.toml agree on the version."""
    assert mirror.__version__ == pyproject()["project"]["version"]


def test_makefile_and_package_want_the_same_python() -> None:
    """The floor that make checks is the one that the package declares, and the tools work for it."""
    declared = pyproject()["project"]["requires-python"]
    floor = re.search(r"sys\.version_info < \((\d+), (\d+)\)", (TOP / "Makefile").read_text())

    assert floor is not None
    assert SpecifierSet(declared) == SpecifierSet(f">={floor[1]}.{floor[2]}")
    assert pyproject()["tool"]["ruff"]["target-version"] == f"py{floor[1]}{floor[2]}"


def test_command_is_part_of_the_package() -> None:
    """Installing the package gives the command `mirror`, the same as `python -m mirror`."""
    (command,) = metadata.entry_points(group="console_scripts", name="mirror")

    assert command.value == pyproject()["project"]["scripts"]["mirror"]
    assert callable(command.load())


# Papers


def test_changelog_has_an_unreleased_section() -> None:
    """There is a place for the next change, above every release."""
    sections = re.findall(r"^## \[?([^\]\s]+)", (TOP / "CHANGELOG.md").read_text(), re.MULTILINE)

    assert sections[0] == "Unreleased"
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", section) for section in sections[1:])


def test_licence_is_the_declared_one() -> None:
    """The licence text is there, and it is Apache-2.0."""
    assert pyproject()["project"]["license"] == "Apache-2.0"
    assert (TOP / "LICENSE").read_text().split()[:5] == ["Apache", "License", "Version", "2.0,", "January"]


def test_package_is_typed_for_its_users() -> None:
    """The marker by which type checkers believe our annotations is part of the package."""
    assert (Path(mirror.__file__).parent / "py.typed").is_file()
    assert "py.typed" in pyproject()["tool"]["setuptools"]["package-data"]["mirror"]


def test_papers_name_only_targets_that_exist() -> None:
    """A `make` command in a paper is one that works."""
    targets = {found["name"] for found in TARGET.finditer((TOP / "Makefile").read_text())}
    papers = [*TOP.glob("*.md"), *(TOP / "docs").glob("**/*.md")]
    named = {
        (paper.name, target)
        for paper in papers
        for target in re.findall(r"(?:^ *|`)make ([a-z][a-z0-9-]*)", paper.read_text(), re.MULTILINE)
    }

    assert {target for _, target in named} - targets == set()


# The gate


def test_gate_installs_what_the_end_to_end_tests_need() -> None:
    """On a bare machine no program is missing that a test would ask for."""
    listed = dict(re.findall(r"^    ([a-z-]+):([a-z0-9.-]+)$", (TOP / ".ci" / "run").read_text(), re.MULTILINE))

    assert programs.PACKAGES.items() <= listed.items()
    assert {"go", "mmdebstrap"} <= listed.keys(), "what makes the programs that no package brings"


def test_gate_stops_at_the_first_failure() -> None:
    """.ci/run can be executed, is strict, and ends with the programs and the checks, whose last line is pytest's."""
    script = TOP / ".ci" / "run"
    lines = [line for line in script.read_text().splitlines() if line and not line.startswith("#")]

    assert os.access(script, os.X_OK)
    assert lines[0] == "set -euo pipefail"
    assert "export CI=true" in lines
    assert lines[-2] == "make --no-print-directory e2e-programs"
    assert lines[-1] == "make --no-print-directory check"
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0


def test_missing_program_skips_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a laptop the end-to-end tests are skipped, saying what is missing and which package brings it."""
    monkeypatch.setattr(programs, "PATH", "")
    monkeypatch.delenv("CI", raising=False)

    with pytest.raises(pytest.skip.Exception, match=r"needs dockerd \(Debian: docker\.io\), skopeo"):
        programs.need("dockerd", "skopeo")


def test_missing_built_program_names_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A program that no package brings is skipped for with the make target that builds it."""
    monkeypatch.setattr(programs, "PATH", "")
    monkeypatch.setattr(programs, "CONTAINERD2", tmp_path)
    monkeypatch.delenv("CI", raising=False)

    with pytest.raises(pytest.skip.Exception, match=r"needs crane \(make e2e-programs\), containerd2 \(make e2e-"):
        programs.need("crane", "containerd2")


def test_missing_program_fails_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """With CI set nothing is skipped."""
    monkeypatch.setattr(programs, "PATH", "")
    monkeypatch.setenv("CI", "true")

    with pytest.raises(pytest.fail.Exception, match="needs skopeo"):
        programs.need("skopeo")


# Snippets


def test_snippets_are_valid_and_name_our_address(tmp_path: Path) -> None:
    """Each client's example parses in its own format and can be pointed at another address."""
    readers: dict[str, Callable[[str], Any]] = {
        "buildkit/buildkitd.toml": tomllib.loads,
        "docker/daemon-containerd-store.json": json.loads,
        "docker/daemon-tls.json": json.loads,
        "docker/daemon.json": json.loads,
        "containerd/_default/hosts-strict.toml": tomllib.loads,
        "containerd/_default/hosts.toml": tomllib.loads,
        "containerd/hosts-tls.toml": tomllib.loads,
        "containerd/hosts.toml": tomllib.loads,
        "containers/registries-strict.conf": tomllib.loads,
        "containers/registries-tls.conf": tomllib.loads,
        "containers/registries.conf": tomllib.loads,
        "crio/registries.conf": tomllib.loads,
        "k3s/registries.yaml": yaml.safe_load,
    }
    for name, read in readers.items():
        text = snippet(name, "mirror.example:8080", tmp_path / name).read_text()
        assert "mirror.example:8080" in json.dumps(read(text))
        assert "127.0.0.1" not in text
    assert str(Settings().listen) == DEFAULT_ADDRESS
    shown = {
        str(path.relative_to(TOP / "examples" / "clients")) for path in (TOP / "examples" / "clients").rglob("*.*")
    }
    assert shown == readers.keys(), "an example that no test reads"


# Habits


def test_every_module_says_what_it_is_for() -> None:
    """Each module begins with a docstring."""
    texts = {path: path.read_text() for path in sources("mirror", "tests", "bench", "examples")}

    assert [path for path, text in texts.items() if text and not ast.get_docstring(ast.parse(text))] == []


def test_every_test_states_its_promise() -> None:
    """Each test has a docstring that says which behaviour it holds."""
    silent = [
        f"{path.relative_to(TOP)}: {node.name}"
        for path in sources("tests")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if node.name.startswith("test_") and not ast.get_docstring(node)
    ]

    assert silent == []


def test_every_suppression_gives_its_reason() -> None:
    """A check is switched off by its code alone, with the reason behind it or in a comment above."""
    bare = []
    for path in sources("mirror", "tests", "bench", "examples"):
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines):
            found = SUPPRESSION.search(line)
            if found is None or path == Path(__file__):
                continue
            explained = found["rest"].strip(" #-—:") or lines[number - 1].lstrip().startswith("#")
            if not (found["codes"] and explained):
                bare.append(f"{path.relative_to(TOP)}:{number + 1}: {line.strip()}")

    assert bare == []

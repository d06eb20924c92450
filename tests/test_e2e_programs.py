"""How the end-to-end tests' own programs are made: once per recipe, whole or not at all, and named where they fail."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.e2e import build_programs
from tests.e2e.conformance import read_report
from tests.e2e.recipes import RECIPES, DebianRoot, GoProgram, Patch, cache

TOOL = GoProgram("tool", "example.org/tool", "v1.0.0", (("bin/tool", "cmd/tool"), ("bin/toolctl", "cmd/ctl")))
OTHER = GoProgram("other", "example.org/other", "v2.0.0", (("bin/other", ""),))

# Stands for Go: builds by writing the name of the package, fails for a package of $REFUSED, and notes every call.
GO = """#!/bin/sh
echo "$@" >>"$CALLS"
case "$1 $2" in
version*) echo "go version ${GO_VERSION:-go1.30.0} linux/amd64"; exit ;;
"env GOPROXY") echo "proxy,direct"; exit ;;
"list -m") echo "$SOURCES"; exit ;;
"mod download") [ -z "$MODULE" ] || echo "{\\"GoMod\\": \\"$MODULE\\"}"; exit ;;
"mod "*) exit ;;
esac
for package; do :; done
[ "$package" != "$REFUSED" ] || { echo "no such package" >&2; exit 3; }
while [ "$1" != -o ]; do shift; done
mkdir -p "$(dirname "$2")"
echo "$package${BUILT_FROM:+ $(cat ../patched/*)}" >"$2"
"""


class Fake:
    """A cache directory, and a stand-in for Go."""

    def __init__(self, tmp_path: Path) -> None:
        self.cache = tmp_path / "cache"
        self._calls = tmp_path / "calls"

    def make(self, *recipes: GoProgram | DebianRoot) -> int:
        return build_programs.main(recipes, self.cache)

    @property
    def builds(self) -> int:
        """How many programs have been compiled so far."""
        calls = self._calls.read_text().splitlines() if self._calls.exists() else []
        return sum(call.startswith(("build ", "test ")) for call in calls)

    @property
    def edits(self) -> list[str]:
        """How the modules that programs are compiled in have been written."""
        return [call for call in self._calls.read_text().splitlines() if call.startswith("mod edit ")]

    def content(self) -> dict[str, str]:
        """What a test would find."""
        return {path.name: path.read_text() for path in (self.cache / "bin").glob("*")}

    def leftovers(self) -> list[Path]:
        return list(self.cache.glob(".making-*"))


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """No Go but the stand-in, and nothing made yet."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "go").write_text(GO)
    (programs / "go").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return Fake(tmp_path)


def test_what_is_there_is_not_made_again(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    """The first run makes every program of every recipe and says so; the second one makes none."""
    assert fake.make(TOOL, OTHER) == 0
    first = capsys.readouterr().out

    assert fake.make(TOOL, OTHER) == 0

    assert fake.content() == {
        "tool": "example.org/tool/cmd/tool\n",
        "toolctl": "example.org/tool/cmd/ctl\n",
        "other": "example.org/other\n",
    }
    assert fake.builds == 3
    assert "built tool v1.0.0 in 0 s" in first
    assert capsys.readouterr().out.splitlines() == ["have  tool v1.0.0", "have  other v2.0.0"]
    assert fake.leftovers() == []


def test_changed_pin_is_made_anew(fake: Fake) -> None:
    """Another version, or another way to build the same one, replaces what is there; other programs stay."""
    fake.make(TOOL, OTHER)

    fake.make(replace(TOOL, version="v1.0.1"), OTHER)
    fake.make(replace(TOOL, version="v1.0.1", ldflags="-X main.version=1"), OTHER)

    assert fake.builds == 3 + 2 + 2


def test_program_that_was_removed_is_made_anew(fake: Fake) -> None:
    """A stamp alone is not taken for the program."""
    fake.make(TOOL)
    (fake.cache / "bin" / "toolctl").unlink()

    assert fake.make(TOOL) == 0

    assert fake.content().keys() == {"tool", "toolctl"}


def test_killed_run_leaves_no_half_program(fake: Fake) -> None:
    """What a run that was killed left behind is never found by a test, and the next run clears it away."""
    half = fake.cache / ".making-tool-1" / "made" / "bin"
    half.mkdir(parents=True)
    (half / "tool").write_text("half")

    assert fake.make(TOOL) == 0

    assert fake.content()["tool"] == "example.org/tool/cmd/tool\n"
    assert fake.leftovers() == []


def test_failure_is_named_and_others_are_made(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A program that cannot be built fails the run with its name and Go's own words; the others are made all the same.

    Of a module with several programs none is put into place unless all are.
    """
    monkeypatch.setenv("REFUSED", "example.org/tool/cmd/ctl")

    assert fake.make(TOOL, OTHER) == 1

    said = capsys.readouterr()
    assert "FAILED tool v1.0.0" in said.out
    assert "no such package" in said.out
    assert said.err == "Not made: tool\n"
    assert fake.content().keys() == {"other"}
    assert fake.leftovers() == []


@pytest.mark.parametrize(
    ("version", "expected"),
    [("go1.19.8", "the go on PATH says 'go version go1.19.8"), (None, "there is no go on PATH")],
)
def test_missing_go_is_told_in_one_sentence(
    fake: Fake,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    version: str | None,
    expected: str,
) -> None:
    """Without a Go, or with one that is too old to fetch a newer one, the run says what it needs, once, and fails."""
    if version is None:
        monkeypatch.setenv("PATH", "")
    else:
        monkeypatch.setenv("GO_VERSION", version)

    assert fake.make(TOOL, OTHER) == 1

    assert f"FAILED tool, other: needs Go >= 1.21{';' if version else ', and'} {expected}" in capsys.readouterr().out
    assert fake.builds == 0


def test_root_directory_needs_root(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An ordinary user gets every program, and is told that another release's root directory takes root."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    assert fake.make(DebianRoot("trixie", "trixie", ("skopeo",)), OTHER) == 1

    assert "FAILED trixie trixie after 0 s: needs root" in capsys.readouterr().out
    assert fake.content().keys() == {"other"}


def test_patch_is_built_in(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A patched program is compiled from a changed copy, and the module that was fetched stays as it is."""
    sources = tmp_path / "sources"
    sources.mkdir(mode=0o755)
    (sources / "main.go").write_text("one\ntwo\n")
    (sources / "main.go").chmod(0o444)
    monkeypatch.setenv("SOURCES", str(sources))
    monkeypatch.setenv("BUILT_FROM", "copy")

    assert fake.make(replace(OTHER, patch=Patch("main.go", "two\n", "three\n"))) == 0

    assert fake.content()["other"] == "example.org/other one\nthree\n"
    assert (sources / "main.go").read_text() == "one\ntwo\n"


def test_patch_that_does_not_fit_fails(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the line to replace is gone the program is not built without the patch."""
    (tmp_path / "main.go").write_text("one\n")
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "main.go").write_text("one\n")
    monkeypatch.setenv("SOURCES", str(sources))

    assert fake.make(replace(OTHER, patch=Patch("main.go", "two\n", "three\n"))) == 1

    assert "main.go does not hold, exactly once, the line that our patch replaces" in capsys.readouterr().out
    assert fake.builds == 0


def test_parts_of_a_repository_are_taken_as_published(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module that replaces others with its own directories is built with what was published of them."""
    module = tmp_path / "example.mod"
    module.write_text(
        "module example.org/other\n\nrequire example.org/far v1.0.0\n\n"
        "replace example.org/alone => ./staging/alone\n\n"
        "replace (\n\texample.org/part => ./staging/part\n\texample.org/far => example.org/fork v1.1.0\n)\n"
    )
    monkeypatch.setenv("MODULE", str(module))

    assert fake.make(replace(OTHER, parts="v0.2.0")) == 0

    assert [edit.split()[2:] for edit in fake.edits] == [
        [f"-replace=example.org/{part}=example.org/{part}@v0.2.0" for part in ("alone", "part")],
        ["-require=example.org/other@v2.0.0"],
    ]


def test_pins_are_exact() -> None:
    """Each program is named once and has one version, so that two machines test the same."""
    outputs = [output for recipe in RECIPES for output in recipe.outputs]

    assert len(outputs) == len(set(outputs))
    assert all(recipe.version.startswith("v") for recipe in RECIPES if isinstance(recipe, GoProgram))


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"HOME": "/home/somebody"}, "/home/somebody/.cache/mirror-e2e"),
        ({"HOME": "/home/somebody", "XDG_CACHE_HOME": "/var/cache/somebody"}, "/var/cache/somebody/mirror-e2e"),
        ({"HOME": "/home/somebody", "E2E_PROGRAMS": "/opt/programs"}, "/opt/programs"),
    ],
)
def test_cache_lies_where_caches_lie(environ: dict[str, str], expected: str) -> None:
    """Programs are kept in the user's cache directory, or where E2E_PROGRAMS says."""
    assert cache(environ) == Path(expected)


def test_report_of_a_suite_is_read(tmp_path: Path) -> None:
    """A check has passed where the report says so; one not tried is neither; all others have failed."""
    report = tmp_path / "junit.xml"
    report.write_text(
        """<testsuites><testsuite>
        <testcase name="OCI Conformance Test/ping" status="passed"><system-err>GET /v2/</system-err></testcase>
        <testcase name="OCI Conformance Test/image/pull" status="passed"/>
        <testcase name="OCI Conformance Test/image/pull" status="passed"/>
        <testcase name="OCI Conformance Test/image/delete" status="skipped"/>
        <testcase name="OCI Conformance Test/tag-list" status="failure"><system-out>missing tag</system-out></testcase>
        <testcase name="OCI Conformance Test/head" status="error"/>
        <testcase name="[It] OCI Distribution Conformance Tests Pull" status="panicked"><error>out</error></testcase>
        <testcase name="[It] OCI Distribution Conformance Tests Push blob" status="skipped"><skipped/></testcase>
        <testcase name="[ReportAfterSuite] html custom reporter" status="passed"/>
        </testsuite></testsuites>"""
    )

    outcome = read_report(report)

    assert outcome.passed == {"ping": 1, "image/pull": 2}
    assert outcome.failed == {"tag-list": "missing tag", "head": "", "Pull": "out"}
    assert outcome.skipped == {"image/delete", "Push blob"}
    assert "tag-list:\nmissing tag" in outcome.complaints

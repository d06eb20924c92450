"""What the documentation says is what the code has."""

from __future__ import annotations

import re

import pytest

from docs.render import DOCUMENTS, ROOT, render
from mirror.metrics import Metrics
from mirror.nodes.hold import NodeMetrics


@pytest.mark.parametrize("name", DOCUMENTS)
def test_generated_parts_are_current(name: str) -> None:
    """The settings table and the quoted files are those of the code; `make docs` renews them."""
    text = (ROOT / name).read_text()

    assert render(text) == text


def test_every_metric_that_a_document_names_exists() -> None:
    """Nobody builds an alert on a metric that is only written about."""
    registries = (Metrics().registry, NodeMetrics("any", verifies=True).registry)
    families = [family for registry in registries for family in registry.collect()]
    known = {sample for family in families for sample in _samples(family.name, family.type)}

    for document in [ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        named = set(re.findall(r"\bmirror_[a-z_]+\b", document.read_text()))
        assert named <= known, f"{document.name} names {sorted(named - known)}"


def _samples(name: str, kind: str) -> list[str]:
    suffixes = {"counter": ["_total"], "histogram": ["", "_bucket", "_sum", "_count"]}.get(kind, [""])
    return [f"{name}{suffix}" for suffix in suffixes]


def test_every_link_of_a_document_leads_somewhere() -> None:
    """Relative links name files that are there."""
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_every_promise_to_clients_is_held_by_tests_that_exist() -> None:
    """Each line of the table in docs/clients.md names its tests, and each of them is there under that name."""
    rows = re.findall(r"^\| (\d+) \| .+ \| (.+) \|$", (ROOT / "docs" / "clients.md").read_text(), re.MULTILINE)

    assert [int(number) for number, _ in rows] == list(range(1, 31))
    for number, holders in rows:
        held = False
        for name, listed in re.findall(r"`([a-z0-9_/]+\.py)`: ((?:test_\w+(?:, )?)+)", holders):
            there = set(re.findall(r"^ *(?:async )?def (test_\w+)", (ROOT / "tests" / name).read_text(), re.MULTILINE))
            missing = set(listed.removesuffix(", ").split(", ")) - there
            assert not missing, f"line {number} names {sorted(missing)}, which {name} has not"
            held = True
        assert held, f"no test holds line {number}"


def test_every_test_that_stands_for_reliability_exists() -> None:
    """What docs/reliability.md claims of a fault is held by the tests that it names."""
    there = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^ *(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "reliability.md").read_text()))

    assert named <= there, f"there is no {sorted(named - there)}"

"""What the documentation says is what the code has."""

from __future__ import annotations

import re

import pytest

from docs.render import DOCUMENTS, ROOT, render
from mirror.metrics import Metrics


@pytest.mark.parametrize("name", DOCUMENTS)
def test_generated_parts_are_current(name: str) -> None:
    """The settings table and the quoted files are those of the code; `make docs` renews them."""
    text = (ROOT / name).read_text()

    assert render(text) == text


def test_every_metric_that_a_document_names_exists() -> None:
    """Nobody builds an alert on a metric that is only written about."""
    known = {sample for family in Metrics().registry.collect() for sample in _samples(family.name, family.type)}

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

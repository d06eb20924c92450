"""Names of registries and patterns of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.config.names import best_pattern, find_entry, matches, parse_entry, parse_host, without_port


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("quay.io", "quay.io"),
        ("Quay.IO", "quay.io"),
        ("registry.corp:5000", "registry.corp:5000"),
        ("localhost", "localhost"),
        ("my_registry:80", "my_registry:80"),
        ("10.0.0.1:5000", "10.0.0.1:5000"),
        ("[::1]:5000", "[::1]:5000"),
        ("docker.io", "docker.io"),
        ("index.docker.io", "docker.io"),
        ("Registry-1.docker.io", "docker.io"),
    ],
)
def test_a_host_has_one_canonical_form(text: str, host: str) -> None:
    """Case does not tell registries apart, and Docker Hub's three names are one registry."""
    assert parse_host(text) == host


@pytest.mark.parametrize(
    "text",
    ["", "a b", "a/b", "u:p@host", "https://quay.io", "quay.io.", ".io", "a..b", "-a", "a-", "host:", "host:0",
     "host:05", "host:65536", "host:x", "[::1", "[g]", "[:::]", "::1", "*.io", "a" * 64, "a." * 127 + "aa", "é.io",
     "a\n", "\u212a8s.io", "registry.\u212a8s.io"],
)  # fmt: skip
def test_what_is_no_host_is_refused(text: str) -> None:
    """URLs, credentials, paths, bad ports and labels outside DNS are no registry's name."""
    with pytest.raises(ValueError, match="host or host:port"):
        parse_host(text)


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("a.b", "a.b"),
        ("a.b:5000", "a.b"),
        ("[::1]", "[::1]"),
        ("[::1]:5000", "[::1]"),
        ("docker.io", "docker.io"),
        ("index.docker.io:1", "docker.io"),
    ],
)
def test_a_host_has_a_name_without_its_port(host: str, name: str) -> None:
    """Canonical, as hosts are."""
    assert without_port(host) == name


@given(st.text(max_size=300))
def test_any_text_is_a_host_or_a_value_error(text: str) -> None:
    """Whatever a client sends as a host is either refused or comes out lower case and stable."""
    try:
        host = parse_host(text)
    except ValueError:
        return
    assert parse_host(host) == host == host.lower()


@pytest.mark.parametrize("text", ["*.gcr.io", "*.dkr.ecr.*.amazonaws.com", "*.corp:5000", "quay.io"])
def test_entries_are_hosts_or_patterns_of_whole_labels(text: str) -> None:
    """A key of upstreams stands for one registry, or for those that differ in whole labels."""
    assert parse_entry(text) == text


@pytest.mark.parametrize(
    "text", ["*", "*.*", "a*.io", "**.io", "*.", "*.io:0", "*.io:99999", "Quay.io", "*.GCR.io", "*/x"]
)
def test_other_patterns_are_refused(text: str) -> None:
    """A pattern that could stand for any host at all, or for parts of a label, is a mistake."""
    with pytest.raises(ValueError, match=r"registry's name|pattern"):
        parse_entry(text)


@pytest.mark.parametrize(
    ("pattern", "host", "expected"),
    [
        ("*.gcr.io", "eu.gcr.io", True),
        ("*.gcr.io", "gcr.io", False),
        ("*.gcr.io", "a.b.gcr.io", False),
        ("*.gcr.io", "eu.gcr.io:443", False),
        ("*.corp:5000", "a.corp:5000", True),
        ("*.corp:5000", "a.corp", False),
        ("*.dkr.ecr.*.amazonaws.com", "1.dkr.ecr.eu-west-1.amazonaws.com", True),
        ("*.dkr.ecr.*.amazonaws.com", "1.dkr.ecr.eu.west.amazonaws.com", False),
    ],
)
def test_a_star_is_exactly_one_label(pattern: str, host: str, expected: bool) -> None:
    """`*` never spans a dot and never means nothing, and the port has to be the same."""
    assert matches(pattern, host) is expected


def test_the_most_specific_pattern_wins_in_any_order() -> None:
    """More literal labels win; of equals, the one that is literal nearer to the top-level domain."""
    patterns = ["*.*.corp", "a.*.corp", "*.b.corp"]
    for rotation in range(3):
        assert best_pattern(patterns[rotation:] + patterns[:rotation], "a.b.corp") == "*.b.corp"
    assert best_pattern(["*.*.corp", "a.*.corp"], "a.b.corp") == "a.*.corp"
    assert best_pattern(patterns, "a.b.other") is None


def test_exact_names_win_over_patterns_and_configured_ones_over_well_known_ones() -> None:
    """A configured pattern cannot capture a well-known registry, but comes before a well-known pattern."""
    configured, well_known = {"*.io": 0, "eu.gcr.io": 0, "*.dev": 0}, {"quay.io": 0, "*.gcr.io": 0, "*.dev": 0}
    assert find_entry("quay.io", configured, well_known) == "quay.io"
    assert find_entry("other.io", configured, well_known) == "*.io"
    assert find_entry("eu.gcr.io", configured, well_known) == "eu.gcr.io"
    assert find_entry("us.gcr.io", configured, well_known) == "*.gcr.io"
    assert find_entry("evil.com", configured, well_known) is None

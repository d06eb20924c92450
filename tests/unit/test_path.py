"""Request targets: what is asked for, whatever its encoding."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.oci.path import ParsedPath, parse_path


@pytest.mark.parametrize(
    ("path", "parsed"),
    [
        ("/v2/library/nginx/manifests/latest", ParsedPath("manifest", "library/nginx", "latest")),
        ("/v2/nginx/blobs/sha256:abc", ParsedPath("blob", "nginx", "sha256:abc")),
        ("/v2/nginx/tags/list", ParsedPath("tags", "nginx", "")),
        ("/v2/a/b/referrers/sha256:abc", ParsedPath("referrers", "a/b", "sha256:abc")),
        ("/v2/registry.corp:5000/app/manifests/1", ParsedPath("manifest", "registry.corp:5000/app", "1")),
        ("/v2/a/manifests/b/manifests/c", ParsedPath("manifest", "a/manifests/b", "c")),
        ("/v2/a/manifests/tags/list", ParsedPath("tags", "a/manifests", "")),
        ("/v2/a/tags/list/manifests/b", ParsedPath("manifest", "a/tags/list", "b")),
        ("/v2/a/tags/manifests/list", ParsedPath("manifest", "a/tags", "list")),
    ],
)
def test_the_last_part_of_a_path_says_what_is_asked(path: str, parsed: ParsedPath) -> None:
    """Names may hold the words manifests, blobs and tags; the last one counts."""
    assert parse_path(path) == parsed


@pytest.mark.parametrize(
    "path",
    ["", "/", "/v2", "/v2/", "/v2/_catalog", "/v2/tags/list", "/v2/manifests/x", "/v2/a/manifests/", "/v2/a/manifests",
     "/v2/a/tags/other", "/v2/a/blobs/uploads/1", "/v1/a/manifests/x", "v2/a/manifests/x", "/v2//manifests/x"],
)  # fmt: skip
def test_other_paths_are_no_pulls(path: str) -> None:
    """What is not a pull endpoint is left to the caller."""
    assert parse_path(path) is None


@given(st.text(max_size=80))
def test_any_path_is_parsed_or_not(path: str) -> None:
    """Parsing a path raises nothing, and loses nothing of what it accepts."""
    parsed = parse_path("/v2/" + path)
    if parsed is not None:
        assert parsed.name
        assert path.startswith(parsed.name + "/")
        assert path.endswith(parsed.reference or "list")

"""Request targets: what is asked for, whatever its encoding."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.oci.path import ParsedPath, parse_path, read_target


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


@pytest.mark.parametrize(
    ("raw", "before", "api"),
    [
        ("/v2/", "", "/v2/"),
        ("/v2", "", "/v2"),
        ("/v2?ns=x", "", "/v2"),
        ("/v2/a/v2/manifests/1", "", "/v2/a/v2/manifests/1"),
        ("/quay.io/v2/a/v2/manifests/1", "/quay.io", "/v2/a/v2/manifests/1"),
        ("/quay.io/v2", "/quay.io", "/v2"),
        ("/registry.corp%3A5000/v2/a/manifests/1", "/registry.corp:5000", "/v2/a/manifests/1"),
        ("/quay.io%2Fv2%2fa/manifests/1", "/quay.io", "/v2/a/manifests/1"),
        ("/%76%32/a", "", "/v2/a"),
        ("//v2/a", "/", "/v2/a"),
        ("/a/b/v2/", "/a/b", "/v2/"),
        ("/v1/a", "/v1/a", None),
        ("/v2x/a", "/v2x/a", None),
        ("/", "/", None),
        ("", "", None),
        ("*", "*", None),
        ("example.org:443", "example.org:443", None),
        ("http://mirror/v2/a", "", "/v2/a"),
        ("HTTP://mirror:5000?ns=x", "", None),
    ],
)
def test_a_target_is_what_stands_before_v2_and_the_rest(raw: str, before: str, api: str | None) -> None:
    """The first /v2 that is a whole part of the path begins the API; what comes before it is kept apart."""
    read = read_target(raw)

    assert (read.before, read.api) == (before, api)


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ("/v2/a%2Fb", "/v2/a/b"),
        ("/v2/a%252Fb", "/v2/a%2Fb"),
        ("/v2/a+b", "/v2/a+b"),
        ("/v2/a/./../b", "/v2/a/./../b"),
        ("/v2//a", "/v2//a"),
        ("/v2/%", "/v2/%"),
        ("/v2/%zz%4", "/v2/%zz%4"),
        ("/v2/%ff%c0%af", "/v2/\ufffd\ufffd\ufffd"),
        ("/v2/\udcff", "/v2/\udcff"),
        ("/v2/a#b", "/v2/a#b"),
        ("/v2/a%3Fns=b", "/v2/a?ns=b"),
        ("/v2/%00%0a", "/v2/\0\n"),
    ],
)
def test_a_path_is_decoded_once_and_never_tidied(raw: str, path: str) -> None:
    """Dots, double slashes, signs and broken escapes stay, for the grammar of names to refuse."""
    assert read_target(raw).path == path


@pytest.mark.parametrize(
    ("query", "namespaces"),
    [
        ("", ()),
        ("n=1&last=b", ()),
        ("ns=a", ("a",)),
        ("ns=a&n=1&ns=b", ("a", "b")),
        ("ns", ("",)),
        ("ns=", ("",)),
        ("ns=registry.corp%3A5000", ("registry.corp:5000",)),
        ("%6es=a", ("a",)),
        ("NS=a", ()),
        ("ns=a+b", ("a b",)),
        ("ns=a%2Bb", ("a+b",)),
        ("ns=a;ns=b", ("a;ns=b",)),
        ("ns=a?ns=b", ("a?ns=b",)),
        ("ns=%ff", ("\ufffd",)),
        ("&&=&ns=a&", ("a",)),
    ],
)
def test_namespaces_are_read_in_order(query: str, namespaces: tuple[str, ...]) -> None:
    """Every ns= counts, so that two that differ can be told from one."""
    assert read_target(f"/v2/?{query}").namespaces == namespaces


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ("user:word@mirror:443", "mirror:443"),
        ("user:word@mirror/v2/", "mirror/v2/"),
        ("http://user:word@mirror/v2/a", "/v2/a"),
        ("http://user:word@[::1/v2/a", "/v2/a"),
        ("*", "*"),
    ],
)
def test_a_password_in_a_target_is_not_part_of_its_path(raw: str, path: str) -> None:
    """The path is shown in messages and lines."""
    assert read_target(raw).path == path


@pytest.mark.parametrize(
    ("raw", "authority"),
    [
        ("/v2/", None),
        ("http://mirror/v2/", "mirror"),
        ("https://mirror:5000/v2/", "mirror:5000"),
        ("http://user:word@mirror:5000/v2/", "mirror:5000"),
        ("http://[::1]:5000?ns=a", "[::1]:5000"),
        ("http:///v2/", ""),
        ("http://mirror/v2/\n", "mirror"),
        ("mirror:443", None),
        ("*", None),
    ],
)
def test_an_absolute_target_names_the_host(raw: str, authority: str | None) -> None:
    """Its authority, without what may be a password, stands for the Host header."""
    assert read_target(raw).authority == authority


@pytest.mark.parametrize(
    ("raw", "before"),
    [
        ("/mirror/v2/", ""),
        ("/mirror/quay.io/v2/", "/quay.io"),
        ("/m%69rror/quay.io/v2/", "/quay.io"),
        ("/mirrors/v2/", "/mirrors"),
        ("/v2/", ""),
        ("/a/mirror/v2/", "/a/mirror"),
        ("/outer/v2/", ""),
        ("/outer/mirror/v2/", "/mirror"),
    ],
)
def test_a_path_of_ours_is_taken_off(raw: str, before: str) -> None:
    """Once, as a whole, and only where it begins the path."""
    assert read_target(raw, ("/outer", "", "/mirror")).before == before


@given(st.text(max_size=80) | st.binary(max_size=80).map(lambda data: data.decode("utf-8", "surrogateescape")))
def test_any_target_can_be_read(raw: str) -> None:
    """Whatever stands in a request line, reading it raises nothing, and its parts are the whole."""
    read = read_target(raw)

    assert read.before + (read.api or "") == read.path


@given(st.text("/v2a.:%?#é ", max_size=30), st.data())
def test_every_encoding_of_a_path_is_one_path(path: str, data: st.DataObject) -> None:
    """Which characters a client escapes, and in which case of the digits, changes nothing."""

    def escaped(character: str) -> str:
        forced = character in "%?é"
        form = data.draw(st.sampled_from(["%{:02x}", "%{:02X}"] if forced else ["%{:02x}", "%{:02X}", ""]))
        return "".join(map(form.format, character.encode())) if form else character

    raw = "/" + "".join(map(escaped, path))

    assert read_target(raw).path == "/" + path

"""What stands in front of us: paths that links can begin with, and networks."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.config.front import parse_base_path, parse_network


@pytest.mark.parametrize(
    ("text", "path"),
    [("", ""), ("/", ""), ("/mirror", "/mirror"), ("/mirror/", "/mirror"), ("/a/b.c:5000/~d", "/a/b.c:5000/~d")],
)
def test_a_base_path_has_no_final_slash(text: str, path: str) -> None:
    """It is put in front of /v2/ as it is."""
    assert parse_base_path(text) == path


@pytest.mark.parametrize(
    "text",
    ["mirror", "//evil.test", "/a//b", "/a/../b", "/.", "/v2", "/a/v2/b", "/a b", "/a%20b", "/a?b", "/a#b", "/a\n",
     "/\u00e9", "/<b>", '/"', "/a;b", "http://evil.test/", "/" + "a" * 255, "//"],
)  # fmt: skip
def test_a_path_that_could_mean_something_else_is_no_base(text: str) -> None:
    """Neither another host, nor a place above, nor a path into the API itself, nor what would have to be escaped."""
    with pytest.raises(ValueError, match="a plain path"):
        parse_base_path(text)


@given(st.text("/.v2a:%", max_size=12))
def test_a_base_path_is_a_path_of_this_host(text: str) -> None:
    """Whatever is accepted is empty or starts with one slash, and is accepted again."""
    try:
        path = parse_base_path(text)
    except ValueError:
        return
    assert path == "" or (path[0] == "/" and path[1] != "/")
    assert parse_base_path(path) == path


@pytest.mark.parametrize(
    ("text", "network"),
    [("10.0.0.0/8", "10.0.0.0/8"), ("10.1.2.3", "10.1.2.3/32"), ("fd00::/8", "fd00::/8"), ("::1", "::1/128"),
     ("0.0.0.0/0", "0.0.0.0/0"), ("192.168.0.0/255.255.0.0", "192.168.0.0/16")],
)  # fmt: skip
def test_a_network_is_an_address_and_a_length(text: str, network: str) -> None:
    """Or one address alone."""
    assert parse_network(text) == ip_network(network)
    assert parse_network(ip_network(network)) == ip_network(network)


@pytest.mark.parametrize("value", ["", "ten", "10.0.0.0/33", "10.0.0", "proxy.corp", "10.0.0.0/8/8", 10, None, True])
def test_what_is_no_network_is_refused(value: object) -> None:
    """Names are not looked up: who answers for them could decide whom we believe."""
    with pytest.raises(ValueError, match=r"an IP network such as 10\.0\.0\.0/8, or an address$"):
        parse_network(value)


def test_an_address_with_a_length_is_told_its_network() -> None:
    """It may be a slip: nobody is trusted by it."""
    with pytest.raises(ValueError, match=r"the network of that address is 10\.0\.0\.0/8"):
        parse_network("10.1.2.3/8")

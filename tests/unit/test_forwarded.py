"""What proxies say of a client, and whom of them we believe."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from mirror.api.forwarded import Forwarded, Proxies

PROXIES = Proxies([ip_network("10.0.0.0/8"), ip_network("fd00::/8")])
PROXY = "10.0.0.1"


def read(peer: str | None, *headers: tuple[str, str]) -> Forwarded:
    """What PROXIES makes of a request from this address with these headers."""
    return PROXIES.read(peer, CIMultiDict(headers))


@pytest.mark.parametrize(
    "peer", ["192.0.2.7", "11.0.0.1", "::1", "fe80::1%eth0", "", None, "/run/mirror.sock", "@", "x"]
)
def test_nobody_else_is_believed(peer: str | None) -> None:
    """Headers of a client, of a Unix socket, of whoever has no address, are not looked at."""
    found = read(peer, ("X-Forwarded-For", "192.0.2.9"), ("X-Forwarded-Host", "h"), ("X-Forwarded-Prefix", "/p"))

    assert found == Forwarded(peer or None, None, "")


def test_nobody_is_believed_without_configuration() -> None:
    """Not even a peer on loopback."""
    found = Proxies([]).read("127.0.0.1", CIMultiDict({"X-Forwarded-For": "192.0.2.9", "X-Forwarded-Prefix": "/p"}))

    assert found == Forwarded("127.0.0.1")


@pytest.mark.parametrize(
    ("values", "client"),
    [
        ([], PROXY),
        ([""], PROXY),
        (["192.0.2.9"], "192.0.2.9"),
        (["192.0.2.9, 10.0.0.7"], "192.0.2.9"),
        (["192.0.2.9,10.0.0.7 ,  10.9.9.9"], "192.0.2.9"),
        (["198.51.100.1, 192.0.2.9"], "192.0.2.9"),
        (["198.51.100.1", "192.0.2.9"], "192.0.2.9"),
        (["10.0.0.8, 192.0.2.9, fd00::7"], "192.0.2.9"),
        (["10.0.0.8, 10.0.0.9"], "10.0.0.8"),
        (["unknown"], PROXY),
        (["192.0.2.9, unknown"], PROXY),
        (["192.0.2.9, unknown, 10.0.0.7"], "10.0.0.7"),
        (["192.0.2.9, , 10.0.0.7"], "10.0.0.7"),
        (["192.0.2.9:4711"], "192.0.2.9"),
        (["[2001:db8::9]:4711"], "2001:db8::9"),
        (["[2001:db8::9]"], "2001:db8::9"),
        (["2001:DB8:0::9"], "2001:db8::9"),
        (["::ffff:192.0.2.9"], "192.0.2.9"),
        (["192.0.2.9, ::ffff:10.0.0.7"], "192.0.2.9"),
        (["192.0.2.9" + " " * 100 + "x"], PROXY),
        (["a" * 8000], PROXY),
        (["fe80::1%eth0"], "fe80::1%eth0"),
        (["fe80::1%" + "a" * 100], PROXY),
        (["192.0.2.9" + ", 10.0.0.7" * 31], "192.0.2.9"),
        (["192.0.2.9" + ", 10.0.0.7" * 900], "10.0.0.7"),
    ],
)
def test_the_client_is_the_rightmost_address_that_is_no_proxy(values: list[str], client: str) -> None:
    """What stands left of it, or of what is no address, anybody may have written."""
    assert read(PROXY, *(("X-Forwarded-For", value) for value in values)).client == client


def test_a_peer_of_a_socket_for_both_families_is_the_ipv4_address_that_it_is() -> None:
    """It is trusted by its IPv4 network."""
    assert read("::ffff:10.0.0.1", ("X-Forwarded-For", "192.0.2.9")).client == "192.0.2.9"


@pytest.mark.parametrize(
    ("values", "host"),
    [
        ([], None),
        ([""], None),
        (["quay.corp"], "quay.corp"),
        (["evil, quay.corp:5000 "], "quay.corp:5000"),
        (["evil", "quay.corp"], "quay.corp"),
        (["a" * 300], None),
    ],
)
def test_the_host_is_what_the_nearest_proxy_heard(values: list[str], host: str | None) -> None:
    """The last one, where there are more; never an endless one."""
    assert read(PROXY, *(("X-Forwarded-Host", value) for value in values)).host == host


@pytest.mark.parametrize(
    ("values", "prefix"),
    [
        ([], ""),
        (["/mirror"], "/mirror"),
        (["/mirror/"], "/mirror"),
        (["/"], ""),
        (["/evil, /mirror"], "/mirror"),
        (["/evil", "/mirror"], "/mirror"),
        (["//evil.test"], ""),
        (["https://evil.test"], ""),
        (["/a/../b"], ""),
        (["/<script>"], ""),
        (["/a>; rel=next"], ""),
        (["/%2e%2e"], ""),
        (["/" + "a" * 300], ""),
    ],
)
def test_the_prefix_is_a_plain_path_or_nothing(values: list[str], prefix: str) -> None:
    """It is written into links: nothing in it may lead elsewhere or end the link."""
    assert read(PROXY, *(("X-Forwarded-Prefix", value) for value in values)).prefix == prefix


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["X-Forwarded-For", "x-forwarded-host", "X-Forwarded-Prefix"]),
            st.text(max_size=40) | st.text("0123456789.:,[]/ %f", max_size=40),
        ),
        max_size=5,
    )
)
def test_whatever_the_headers_hold_there_is_a_client(headers: list[tuple[str, str]]) -> None:
    """No header is worth an error."""
    found = read(PROXY, *headers)

    assert found.client is not None
    assert len(found.client) <= 64
    assert found.prefix == "" or found.prefix.startswith("/")

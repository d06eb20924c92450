"""Which addresses are public, however they are written, and a resolver that gives no others."""

from __future__ import annotations

import socket

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from mirror.transport.addresses import GuardedResolver, PrivateAddress, is_global, is_localhost, literal_of


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"])
def test_public_addresses_are_global(address: str) -> None:
    """Addresses of the internet, also in IPv6 forms that carry an IPv4 one."""
    assert is_global(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1",
        "fe80::1%eth0",
        "fd00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "2002:a9fe:a9fe::1",
        "64:ff9b:1::7f00:1",
        "::7f00:1",
        "fec0::1",
        "5f00::1",
        "3fff::1",
        "2001:db8::1",
        "2001:0:7f00:1::",
        "2001:20::1",
        "192.0.0.192",
        "192.88.99.1",
        "168.63.129.16",
        "100.100.100.200",
        "fd00:ec2::254",
        "198.18.0.1",
        "240.0.0.1",
    ],
)
def test_all_others_are_not(address: str) -> None:
    """Loopback, private, link-local, shared, multicast and unspecified ones, wrapped in IPv6 or not; clouds' own."""
    assert not is_global(address)


def test_literals_are_told_from_names() -> None:
    """Brackets do not matter; a name is no literal."""
    assert literal_of("[::1]") == "::1"
    assert literal_of("10.0.0.1") == "10.0.0.1"
    assert literal_of("10.0.0.1.example.com") is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [("localhost", True), ("LocalHost.", True), ("a.localhost", True), ("localhost.example.com", False)],
)
def test_names_of_this_machine_are_known(name: str, expected: bool) -> None:
    """RFC 6761 reserves localhost and everything below it."""
    assert is_localhost(name) is expected


class FixedResolver(AbstractResolver):
    """Gives the same addresses for every name."""

    def __init__(self, *addresses: str) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """As AbstractResolver."""
        return [
            ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=0)
            for address in self._addresses
        ]

    async def close(self) -> None:
        """Nothing to close."""


async def test_a_guarded_name_with_public_addresses_resolves() -> None:
    """The guard changes nothing for those."""
    found = await GuardedResolver(FixedResolver("1.1.1.1", "2606:4700::1"), is_global).resolve("a.example", 443)

    assert [result["host"] for result in found] == ["1.1.1.1", "2606:4700::1"]


@pytest.mark.parametrize("addresses", [("10.0.0.1",), ("1.1.1.1", "10.0.0.1"), ("::1",)])
async def test_a_guarded_name_with_any_other_address_is_refused(addresses: tuple[str, ...]) -> None:
    """One address of a private network is enough: which one is used is not ours to gamble on."""
    with pytest.raises(PrivateAddress):
        await GuardedResolver(FixedResolver(*addresses), is_global).resolve("a.example", 443)


async def test_localhost_is_refused_whatever_it_resolves_to() -> None:
    """Its meaning does not depend on a resolver."""
    with pytest.raises(PrivateAddress):
        await GuardedResolver(FixedResolver("1.1.1.1"), is_global).resolve("localhost", 443)

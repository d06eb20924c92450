"""Which addresses are whose: what is global, and a resolver that gives no other."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable

from aiohttp.abc import AbstractResolver, ResolveResult

IsGlobal = Callable[[str], bool]

LONGEST_HOST = 255
"""Characters; no name that could be resolved has more."""
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_UNICAST = ipaddress.IPv6Network("2000::/3")
_NOBODYS = tuple(
    ipaddress.ip_network(network)
    for network in (
        # Python's own list has parts of them for public, others in each version.
        "192.0.0.0/24",  # protocol assignments; Oracle's cloud has its metadata there
        "192.88.99.0/24",  # relays of 6to4, which are no more
        "168.63.129.16/32",  # Azure's own services, credentials of machines among them
        "2001::/23",  # protocol assignments, Teredo among them
        "3fff::/20",  # documentation
    )
)


class PrivateAddress(OSError):
    """A public upstream led us to an address that is not global. An OSError, since a resolver raises it in aiohttp."""


def is_global(address: str) -> bool:
    """Whether an IP address is one of the public internet; also looks into IPv6 forms that carry an IPv4 address."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is None and ip not in _UNICAST:
            return False  # Python takes everything for public that has not been given another meaning yet
        ip = inner or ip
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _NOBODYS)


def literal_of(host: str) -> str | None:
    """The IP address that a URL's host spells out, None where it is a name."""
    try:
        return str(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        return None


def is_localhost(host: str) -> bool:
    """Whether a name is reserved for this machine (RFC 6761 §6.3)."""
    name = host.rstrip(".").lower()
    return name == "localhost" or name.endswith(".localhost")


class GuardedResolver(AbstractResolver):
    """Resolves through another resolver and refuses names with any address that is not global.

    The connector connects to what this returned, so the address checked is the address connected to.
    """

    def __init__(self, inner: AbstractResolver, allowed: IsGlobal) -> None:
        self._inner = inner
        self._allowed = allowed

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """As AbstractResolver; raises PrivateAddress."""
        found = await self._inner.resolve(host, port, family)
        if is_localhost(host) or not all(self._allowed(result["host"]) for result in found):
            raise PrivateAddress(f"{host} has an address that is not public, and a public upstream led us there")
        return found

    async def close(self) -> None:
        """The inner resolver belongs to whoever made it."""

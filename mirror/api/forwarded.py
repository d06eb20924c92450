"""What proxies in front of us say of a client: its address, what it calls us, and under which path it sees us.

X-Forwarded-For, X-Forwarded-Host and X-Forwarded-Prefix count from trusted peers alone, and of each only what they
wrote: the rest may be the client's invention. X-Forwarded-Proto is not read, since no answer depends on it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address

from multidict import MultiMapping

from mirror.config.front import Network, parse_base_path

_REMEMBERED = 4096
_HOPS = 32
"""Proxies in a row that are believed."""
_LONGEST_HOP = 64
_LONGEST_HOST = 263
"""A DNS name, a final dot, a colon and a port."""


@dataclass(frozen=True, slots=True)
class Forwarded:
    """A client as it looks from the nearest proxy that is not trusted, or from here."""

    client: str | None
    """Its IP address; None where there is none, as on a Unix socket."""
    host: str | None = None
    """What it calls us, where a proxy says so; not checked."""
    prefix: str = ""
    """The path that a proxy has taken off, without a final slash."""


class Proxies:
    """Knows the networks of trusted proxies."""

    def __init__(self, networks: Iterable[Network]) -> None:
        self._networks = tuple(networks)
        self._trusts = lru_cache(_REMEMBERED)(self._is_trusted)

    def adopt(self, networks: Iterable[Network]) -> None:
        """Other ones from now on."""
        self._networks = tuple(networks)
        self._trusts.cache_clear()

    def trusts(self, address: str) -> bool:
        """Whether an address is that of a trusted proxy."""
        return self._trusts(address)

    def read(self, peer: str | None, headers: MultiMapping[str]) -> Forwarded:
        """What is known of a client that connects from `peer`. Raises nothing, whatever the headers hold."""
        if not peer or not self._networks or not self.trusts(peer):
            return _by_itself(peer)
        return Forwarded(self._client(peer, headers), _host(headers), _prefix(headers))

    def _client(self, peer: str, headers: MultiMapping[str]) -> str:
        """The rightmost address that is not a trusted proxy's; what stands left of it, or is no address, is hearsay."""
        client = peer
        hops = ",".join(headers.getall("X-Forwarded-For", ())).rsplit(",", _HOPS)  # the first may be many, unread
        for hop in reversed(hops):
            hop = hop.strip()
            address = _hop(hop) if len(hop) <= _LONGEST_HOP else None
            if address is None:
                break
            client = address
            if not self.trusts(client):
                break
        return client

    def _is_trusted(self, address: str) -> bool:
        known = _address(address)
        return known is not None and any(known in network for network in self._networks)


@lru_cache(_REMEMBERED)
def _by_itself(peer: str | None) -> Forwarded:
    return Forwarded(peer or None)


@lru_cache(_REMEMBERED)
def _hop(text: str) -> str | None:
    """The address of one element of X-Forwarded-For; some proxies add a port."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    address = _address(text)
    return None if address is None else str(address)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    # A socket for both families shows IPv4 peers in this form.
    return (isinstance(address, IPv6Address) and address.ipv4_mapped) or address


def _host(headers: MultiMapping[str]) -> str | None:
    host = _last(headers, "X-Forwarded-Host")
    return host if 0 < len(host) <= _LONGEST_HOST else None


def _prefix(headers: MultiMapping[str]) -> str:
    try:
        return parse_base_path(_last(headers, "X-Forwarded-Prefix"))
    except ValueError:
        return ""


def _last(headers: MultiMapping[str], name: str) -> str:
    values = headers.getall(name, ("",))
    return values[-1].rpartition(",")[2].strip()

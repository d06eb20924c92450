"""What stands in front of us: the paths under which clients see us, and the networks of proxies that we believe."""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network, ip_network

Network = IPv4Network | IPv6Network

_BASE = re.compile(r"(?:/[a-zA-Z0-9._~:@-]+)+", re.ASCII)
_BASE_LIMIT = 255


def parse_base_path(text: str) -> str:
    """Returns the path under which the API stands, without a final slash: empty, or begins with a slash.

    It can be put in front of `/v2/` as it is. Raises ValueError, whose message is what was expected.
    """
    path = text.removesuffix("/")
    if not path:
        return ""
    if len(path) > _BASE_LIMIT or _BASE.fullmatch(path) is None or {".", "..", "v2"} & set(path.split("/")):
        raise ValueError("a plain path such as /mirror, without escapes, dot segments and /v2")
    return path


def parse_network(value: object) -> Network:
    """Reads `10.0.0.0/8`, `fd00::/8`, or one address. Raises ValueError with what was expected."""
    if isinstance(value, IPv4Network | IPv6Network):
        return value
    expected = "an IP network such as 10.0.0.0/8, or an address"
    text = value if isinstance(value, str) else ""
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        raise ValueError(expected) from None
    try:
        return ip_network(text)
    except ValueError:  # an address with a length: a slip, or a network that is meant to be wider than it looks
        raise ValueError(f"{expected}; the network of that address is {network}") from None

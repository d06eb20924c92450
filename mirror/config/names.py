"""Names of registries: `host[:port]`, the patterns that stand for many of them, and Docker Hub's three names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv6Address

HUB = "docker.io"
_HUB_NAMES = frozenset({HUB, "index.docker.io", "registry-1.docker.io"})
_LABEL = r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[([0-9a-f:.]{{2,45}})\])(?::([1-9]\d{{0,4}}))?", re.ASCII)
_PATTERN = re.compile(rf"(?:{_LABEL}|\*)(?:\.(?:{_LABEL}|\*))*(?::([1-9]\d{{0,4}}))?", re.ASCII)
HOST_LIMIT = 255
"""Characters; the longest DNS name."""


def parse_host(text: str) -> str:
    """Returns the canonical form of a registry's `host[:port]`: lower case, Docker Hub as `docker.io`.

    Raises ValueError, whose message is what was expected.
    """
    # Lower case turns some letters of other scripts into ASCII ones.
    host = text.lower() if text.isascii() else ""
    match = _HOST.fullmatch(host) if len(host) <= HOST_LIMIT else None
    if match is None or (match[2] and int(match[2]) > 65535) or (match[1] and not _is_ipv6(match[1])):
        raise ValueError("a registry's name as host or host:port")
    return HUB if host in _HUB_NAMES else host


def without_port(host: str) -> str:
    """The canonical name of a canonical `host[:port]`, whatever its port."""
    name, colon, _ = host.rpartition(":")
    name = name if colon and not host.endswith("]") else host
    return HUB if name in _HUB_NAMES else name


def parse_entry(text: str) -> str:
    """Returns a key of `upstreams`: a canonical host, or a pattern in which `*` is one DNS label.

    Raises ValueError, whose message is what was expected.
    """
    if text != text.lower():
        raise ValueError("a registry's name in lower case")
    if "*" not in text:
        return parse_host(text)
    match = _PATTERN.fullmatch(text) if len(text) <= HOST_LIMIT else None
    if match is None or (match[1] and int(match[1]) > 65535):
        raise ValueError("a pattern such as *.pkg.dev, in which each * is one whole DNS label")
    if all(label == "*" for label in text.partition(":")[0].split(".")):
        raise ValueError("a pattern with at least one label that is not *")
    return text


def matches(pattern: str, host: str) -> bool:
    """Whether `pattern` stands for `host`: the same port, and label by label equal or `*`."""
    name, _, port = pattern.partition(":")
    host_name, _, host_port = host.partition(":")
    labels, host_labels = name.split("."), host_name.split(".")
    return (
        port == host_port
        and len(labels) == len(host_labels)
        and all(label in ("*", other) for label, other in zip(labels, host_labels, strict=True))
    )


def best_pattern(entries: Iterable[str], host: str) -> str | None:
    """The most specific pattern among `entries` that stands for `host`.

    That is the one with the most literal labels, and of equals the one that is literal nearer to the top-level domain:
    no two patterns are equal in both, so the order of `entries` does not matter.
    """
    return max((entry for entry in entries if "*" in entry and matches(entry, host)), key=_specificity, default=None)


def find_entry(host: str, configured: Mapping[str, object], well_known: Mapping[str, object]) -> str | None:
    """The entry that `host` (canonical) falls under: exact before pattern, configured before well known."""
    if host in configured or host in well_known:
        return host
    return best_pattern(configured, host) or best_pattern(well_known, host)


def _specificity(pattern: str) -> tuple[int, tuple[bool, ...]]:
    literal = tuple(label != "*" for label in reversed(pattern.partition(":")[0].split(".")))
    return sum(literal), literal


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except ValueError:
        return False
    return True

"""What one place (a file, the environment) gave: plain data, and where each of its keys was written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """Plain data, where each key stands ("mirror.yaml:12"), and what is wrong with its form."""

    data: dict[str, object] = field(default_factory=dict)
    origins: Mapping[KeyPath, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    unreadable: bool = False
    """Whether nothing could be read from it, so that what it would say is unknown."""


def origin_of(path: KeyPath, origins: Mapping[KeyPath, str], default: str) -> str:
    """Where `path` or the nearest key above it was written."""
    for length in range(len(path), 0, -1):
        if path[:length] in origins:
            return origins[path[:length]]
    return default

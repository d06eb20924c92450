"""What is to be written on a node, computed from what is there without us; nothing here touches a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from mirror.nodes.errors import Unusable

Before = Callable[[str], bytes | None]
"""The content of a file as it is without us; None where there is none. Raises NodeError."""


@dataclass
class Plan:
    """`files` are whole contents by path; `advice` is what the runtime needs besides."""

    files: dict[str, bytes] = field(default_factory=dict)
    advice: list[str] = field(default_factory=list)


def text_before(before: Before, path: str) -> str | None:
    """The same as text. Raises Unusable for what is none."""
    content = before(path)
    try:
        return None if content is None else content.decode()
    except UnicodeDecodeError:
        raise Unusable(f"{path} is no UTF-8 text") from None

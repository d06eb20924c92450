"""Which changes of a configuration count only after a restart."""

from __future__ import annotations

from typing import Any

from mirror.config.mistakes import dotted
from mirror.config.models import Settings

_AT_THE_START: tuple[tuple[str, ...], ...] = (
    ("listen",),
    ("admin_listen",),
    ("workers",),
    ("storage", "path"),
    ("storage", "scrub_rate"),
    ("log_level",),
)


def take_over(begun: Settings, wanted: Settings) -> tuple[Settings, list[str]]:
    """What of `wanted` a process can go on under that has begun under the other; and the keys that it cannot take."""
    kept: dict[str, Any] = {}
    keys = []
    for path in _AT_THE_START:
        if _value(begun, path) == _value(wanted, path):
            continue
        keys.append(dotted(path))
        top, *below = path
        if below:
            section = kept.get(top, getattr(wanted, top))
            kept[top] = section.model_copy(update={below[0]: _value(begun, path)})
        else:
            kept[top] = _value(begun, path)
    return wanted.model_copy(update=kept), keys


def _value(settings: Settings, path: tuple[str, ...]) -> object:
    value: object = settings
    for key in path:
        value = getattr(value, key)
    return value

"""Which changes of a configuration count only after a restart."""

from __future__ import annotations

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


def need_restart(begun: Settings, wanted: Settings) -> list[str]:
    """The keys that a process begun with the one configuration cannot take from the other."""
    return [dotted(path) for path in _AT_THE_START if _value(begun, path) != _value(wanted, path)]


def _value(settings: Settings, path: tuple[str, ...]) -> object:
    value: object = settings
    for key in path:
        value = getattr(value, key)
    return value

"""The configuration in words: what can be set, and what is set."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

import yaml
from pydantic import BaseModel

from mirror.config.environment import variable
from mirror.config.keys import is_collection, keys_of, section_of
from mirror.config.models import Settings, UpstreamSettings
from mirror.config.wellknown import WELL_KNOWN, upstream_settings


def settings_table() -> str:
    """A Markdown table of every key: the variable that also sets it, its default, and what it means."""
    rows = ["| key | environment | default | meaning |", "| --- | --- | --- | --- |"]
    rows += _rows(Settings, (), in_environment=True)
    rows += _rows(UpstreamSettings, ("upstreams", "<name>"), in_environment=False)
    return "\n".join(rows) + "\n"


def effective(settings: Settings) -> str:
    """`settings` as YAML that can be loaded again, with units, and with secrets masked."""
    upstreams = {
        entry: upstream if "*" in entry else upstream_settings(entry, upstream)
        for entry, upstream in settings.upstreams.items()
    }
    shown = settings.model_copy(update={"upstreams": upstreams})
    data = shown.model_dump(mode="json", by_alias=True, exclude_none=True)
    names = textwrap.wrap(
        ", ".join(WELL_KNOWN), 100, initial_indent="#   ", subsequent_indent="#   ", break_on_hyphens=False
    )
    head = ["# Effective configuration, secrets masked. Registries that need no entry:", *names]
    return "\n".join(head) + "\n" + yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=1000)


def _rows(model: type[BaseModel], above: tuple[str, ...], *, in_environment: bool) -> Iterator[str]:
    defaults = model().model_dump(mode="json", by_alias=True)
    for key, field in keys_of(model).items():
        path = (*above, key)
        section = section_of(field)
        if section is not None:
            yield from _rows(section, path, in_environment=in_environment)
            continue
        name = f"`{variable(path)}`{' (JSON)' if is_collection(field) else ''}" if in_environment else ""
        meaning = " ".join((field.description or "").split())
        yield f"| `{'.'.join(path)}` | {name} | {_default(defaults[key])} | {meaning} |"


def _default(value: object) -> str:
    if value in (None, {}, []):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"

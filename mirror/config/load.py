"""From file and environment to settings, or to a list of all that is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mirror.config.checks import check
from mirror.config.document import read_document
from mirror.config.environment import read_environment
from mirror.config.fields import WRITTEN
from mirror.config.mistakes import ConfigError, describe, dotted
from mirror.config.models import Settings
from mirror.config.source import Source, origin_of


def load(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """The settings of the file at `path`, if any, and of `environ`, which wins, over the defaults.

    Within `upstreams` the two are merged key by key: the environment can add a password to an entry of the file.
    Raises ConfigError with one line per mistake.
    """
    document = read_document(path) if path is not None else Source()
    environment = read_environment(environ)
    problems = [*document.problems, *environment.problems]
    if document.unreadable:
        raise ConfigError(problems)
    origins = {**document.origins, **environment.origins}
    # A section that both name is the file's: errors about it as a whole point there.
    origins |= {key: origin for key, origin in document.origins.items() if _is_section(environment.data, key)}
    nowhere = str(path) if path is not None else "configuration"
    try:
        settings = Settings.model_validate(
            _merge(document.data, environment.data), context=WRITTEN, by_alias=True, by_name=False
        )
    except ValidationError as exc:
        problems += describe(exc, origins, nowhere)
    else:
        problems += [
            f"{origin_of(key, origins, nowhere)}: {dotted(key)} {predicate}" for key, predicate in check(settings)
        ]
        if not problems:
            return settings
    raise ConfigError(problems) from None


def _merge(base: dict[str, object], over: dict[str, object]) -> dict[str, object]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if below is None or not isinstance(value, dict):
            merged[key] = value
        elif isinstance(below, dict):
            merged[key] = _merge(below, value)
        # What should be a mapping and is none stays, to be reported.
    return merged


def _is_section(data: Any, path: tuple[str | int, ...]) -> bool:
    for key in path:
        data = data.get(key) if isinstance(data, dict) else None
    return isinstance(data, dict)

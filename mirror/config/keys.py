"""The tree of keys that can be set, read off the models."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mirror.config.models import Settings, UpstreamSettings


def keys_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The keys of one section, as they are written."""
    return {str(field.validation_alias or name): field for name, field in model.model_fields.items()}


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The section that stands under a key, if one does."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def is_collection(field: FieldInfo) -> bool:
    """Whether a key holds a list or a map."""
    kinds = [field.annotation]
    if get_origin(field.annotation) in (Union, types.UnionType):
        kinds = list(get_args(field.annotation))
    return any(_holds_many(kind) for kind in kinds)


def leaves(
    model: type[BaseModel] = Settings, above: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    """Every key that holds a value, a list or a map, with its path; what is inside a map is not walked."""
    for key, field in keys_of(model).items():
        section = section_of(field)
        if section is None:
            yield (*above, key), field
        else:
            yield from leaves(section, (*above, key))


def keys_at(path: tuple[str | int, ...]) -> dict[str, FieldInfo]:
    """The keys of the section at `path`; none where there is no section."""
    if path[:1] == ("upstreams",):
        return keys_of(UpstreamSettings) if len(path) == 2 else {}
    model: type[BaseModel] | None = Settings
    for part in path:
        field = keys_of(model).get(str(part)) if model else None
        model = section_of(field) if field else None
    return keys_of(model) if model else {}


def closest(word: str, known: Iterable[str]) -> str | None:
    """Which of the `known` words was probably meant."""
    return next(iter(get_close_matches(word, list(known), 1)), None)


def _holds_many(kind: Any) -> bool:
    origin = get_origin(kind)
    return isinstance(origin, type) and issubclass(origin, Mapping | tuple | list)

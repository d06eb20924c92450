"""What is wrong with a configuration, one line per mistake, and never a secret in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from mirror.config.keys import closest, keys_at
from mirror.config.models import INCONSISTENT
from mirror.config.source import KeyPath, origin_of

SECRET_KEYS = frozenset({"password"})
_SHOWN_LIMIT = 80
_PLAIN_KEY = re.compile(r"[\w*-]+", re.ASCII)
_EXPECTED = {
    "string_type": "text; put quotes around it",
    "string_too_short": "text that is not empty",
    "too_short": "text that is not empty",
    "bool_type": "true or false",
    "tuple_type": "a list",
}
_EXPECTED_MAPPING = frozenset({"mapping_type", "dict_type", "model_type", "model_attributes_type"})


class ConfigError(Exception):
    """The configuration cannot be used; `problems` has one line per mistake: where, key, value, what was expected."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


def describe(error: ValidationError, origins: Mapping[KeyPath, str], default_origin: str) -> list[str]:
    """The lines for what validation found."""
    return [
        f"{origin_of(details['loc'], origins, default_origin)}: {_statement(details)}"
        for details in error.errors(include_url=False)
    ]


def dotted(path: KeyPath) -> str:
    """`upstreams."registry.corp:5000".tag_ttl`: parts with other than word characters are quoted."""
    return ".".join(
        part if isinstance(part, str) and _PLAIN_KEY.fullmatch(part) else json.dumps(_masked(str(part)))
        for part in path
    )


def shown(value: object) -> str:
    """`value` as a message may show it: no structure (it may hold secrets), no credentials of a URL, not too long."""
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    return repr(_masked(str(value)[:_SHOWN_LIMIT]))


def _statement(details: ErrorDetails) -> str:
    path, value, kind = details["loc"], details["input"], details["type"]
    if kind == INCONSISTENT:
        return f"{dotted(path)} {details['msg']}"
    if kind == "extra_forbidden":
        return f"{dotted(path)} is not a key; {_instead(path)}"
    if path[-1:] == ("[key]",):
        return f"{dotted(path[:-1])} is not a valid name; expected {_expected(details)}"
    if kind in _EXPECTED_MAPPING:
        # A lone value here may well be a secret.
        return (
            f"{dotted(path)} is {'a list' if isinstance(value, list) else 'a single value'}; expected a mapping of keys"
        )
    if path[-1] == "username" and isinstance(value, str):
        value = re.sub(r":.*", ":***", value, flags=re.DOTALL)  # user:password, as curl takes it
    what = "******" if SECRET_KEYS.intersection(map(str, path)) else shown(value)
    return f"{dotted(path)} is {what}; expected {_expected(details)}"


def _instead(path: KeyPath) -> str:
    known = list(keys_at(path[:-1]))
    found = closest(str(path[-1]), known)
    return f"did you mean {found}?" if found else f"expected one of {', '.join(known)}"


def _expected(details: ErrorDetails) -> str:
    context = details.get("ctx", {})
    if details["type"] == "value_error":
        return str(context["error"])
    if details["type"] == "literal_error":
        return str(context["expected"])
    return _EXPECTED.get(details["type"], f"something else ({details['msg']})")


def _masked(text: str) -> str:
    """`text` without what may be credentials: all before an @, and a query."""
    text = re.sub(r"^.*(@|%40)", r"***\1", text, flags=re.DOTALL)
    return re.sub(r"\?.*", "?***", text, flags=re.DOTALL)

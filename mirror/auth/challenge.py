"""WWW-Authenticate: what a registry wants to see (RFC 9110 §11.6.1), as leniently as registries write it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

_SEPARATORS = re.compile(r"[ \t,]*")
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_EQUALS = re.compile(r"[ \t]*=[ \t]*")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"?', re.DOTALL)
_BARE = re.compile(r"[^ \t,]*")
_TOKEN68 = re.compile(r"[ \t]+[A-Za-z0-9\-._~+/]+=*(?=[ \t]*(?:,|$))")
_NONSENSE = re.compile(r"[^ \t,]+")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_HEADER_LIMIT = 16 << 10
_WITH_PARAMETERS = ("bearer", "basic")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One challenge; scheme and parameter names are lower case, values as they were, without quotes and escapes."""

    scheme: str
    parameters: Mapping[str, str]

    @property
    def realm(self) -> str:
        """For Bearer, the token endpoint, perhaps relative; empty where the challenge has none."""
        return self.parameters.get("realm", "")

    @property
    def service(self) -> str | None:
        """The token endpoint's name for the registry; None where it is absent, empty where it is empty."""
        return self.parameters.get("service")

    @property
    def scope(self) -> str:
        """What a token should be asked for; several scopes are separated by spaces."""
        return self.parameters.get("scope", "")


def parse_challenges(headers: Sequence[str]) -> list[Challenge]:
    """Every challenge of every WWW-Authenticate header, in order. Raises nothing; what makes no sense is skipped."""
    return [challenge for header in headers for challenge in _parse(header[:_HEADER_LIMIT])]


def choose(challenges: Sequence[Challenge]) -> Challenge | None:
    """The challenge to answer: the first Bearer with a realm, else the first Basic, else none."""
    for challenge in challenges:
        if challenge.scheme == "bearer" and challenge.realm:
            return challenge
    return next((challenge for challenge in challenges if challenge.scheme == "basic"), None)


def own_scope(challenge: Challenge) -> str:
    """The scope that a token must be asked with, whatever the repository (ECR Public's is `aws`); usually empty.

    Scopes of type repository do not count: a challenge of `/v2/` names another one (GHCR: a placeholder). Nor does
    the catalog's.
    """
    scopes = challenge.scope.split()
    types = {scope.partition(":")[0].lower() for scope in scopes}
    return "" if types & {"repository", "registry"} else " ".join(scopes)


def _parse(header: str) -> list[Challenge]:
    """Names followed by `=` are parameters of the challenge before them, other names are schemes."""
    found: list[tuple[str, dict[str, str]]] = []
    at = 0
    while (at := _end(_SEPARATORS, header, at)) < len(header):
        name = _NAME.match(header, at)
        if name is None:
            at = _end(_NONSENSE, header, at)
            continue
        equals = _EQUALS.match(header, name.end())
        if equals is None:
            scheme = name[0].lower()
            found.append((scheme, {}))
            # Other schemes (Negotiate) may carry base64 where ours have parameters.
            at = name.end() if scheme in _WITH_PARAMETERS else _end(_TOKEN68, header, name.end())
            continue
        value, at = _value(header, equals.end())
        if found:
            found[-1][1].setdefault(name[0].lower(), value)
    return [Challenge(scheme, MappingProxyType(parameters)) for scheme, parameters in found]


def _value(header: str, at: int) -> tuple[str, int]:
    """A parameter's value without quotes and escapes, and where it ends; without a closing quote, at the very end."""
    quoted = _QUOTED.match(header, at)
    if quoted is not None:
        return _ESCAPE.sub(r"\1", quoted[1]), quoted.end()
    bare = _BARE.match(header, at)
    assert bare is not None
    return bare[0], bare.end()


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return match.end() if match else at

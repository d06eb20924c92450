"""Request targets of the pull API: what is asked for, under which path, and the registries that `ns=` names; pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import parse_qsl, unquote

Kind = Literal["manifest", "blob", "tags", "referrers"]

_KINDS: Final[dict[str, Kind]] = {"manifests": "manifest", "blobs": "blob", "referrers": "referrers"}
_API = "/v2/"
_ABSOLUTE = re.compile(r"[a-z][a-z0-9+.-]*://([^/?#]*)(.*)", re.ASCII | re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class RequestTarget:
    """The target of a request line, percent-decoded once: whatever its encoding, a path has one meaning.

    What does not decode to UTF-8 becomes U+FFFD, which no name, tag, digest or host has.
    """

    path: str
    """All of it, as messages show it: without a user's name and password."""
    before: str
    """What stands before `/v2`: empty, or begins with a slash. All of the path where `api` is None."""
    api: str | None
    """The path from `/v2` on; None for other paths."""
    namespaces: tuple[str, ...]
    """The values of `ns=`, in order."""
    authority: str | None
    """The host that an absolute-form target names; it stands for the Host header (RFC 9112 §3.2.2)."""


@dataclass(frozen=True, slots=True)
class ParsedPath:
    """A pull request's path: `name` as the client wrote it, prefix included; `reference` is empty for tags."""

    kind: Kind
    name: str
    reference: str


def read_target(raw: str, bases: tuple[str, ...] = ()) -> RequestTarget:
    """Reads a request target of any form; the first of `bases` that the path begins with is taken off `before`."""
    authority, raw = _split_authority(raw)
    raw_path, _, query = raw.partition("?")
    path = unquote(raw_path)
    base = next((base for base in bases if base and path.startswith(f"{base}/")), "")
    rest = path[len(base) :]
    start = f"{rest}/".find(_API)
    before, api = (rest, None) if start < 0 else (rest[:start], rest[start:])
    return RequestTarget(path, before, api, _namespaces(query), authority)


def parse_path(path: str) -> ParsedPath | None:
    """Reads `/v2/<name>/(manifests|blobs|referrers)/<reference>` or `/v2/<name>/tags/list`, percent-decoded before.

    The last such part of the path counts, since names may contain `/manifests/` themselves. None for other paths.
    """
    if not path.startswith(_API):
        return None
    rest, _, reference = path[len(_API) :].rpartition("/")
    name, _, part = rest.rpartition("/")
    if not name or not reference:
        return None
    if part == "tags" and reference == "list":
        return ParsedPath("tags", name, "")
    kind = _KINDS.get(part)
    return ParsedPath(kind, name, reference) if kind else None


def _split_authority(raw: str) -> tuple[str | None, str]:
    if raw.startswith("/"):
        return None, raw
    match = _ABSOLUTE.fullmatch(raw)
    if match is None:  # `*`, or the host:port of a CONNECT
        first, slash, rest = raw.partition("/")
        return None, first.rpartition("@")[2] + slash + rest
    return match[1].rpartition("@")[2], match[2]


def _namespaces(query: str) -> tuple[str, ...]:
    if not query:
        return ()
    return tuple(value for key, value in parse_qsl(query, keep_blank_values=True) if key == "ns")

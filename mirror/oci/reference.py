"""Repository names, tags and references, in the distribution specification's grammar."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mirror.oci.digest import Digest
from mirror.oci.errors import ManifestUnknown, NameInvalid

_NAME = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_NAME_LIMIT = 255


@dataclass(frozen=True, slots=True)
class Tag:
    """A tag: a name that the upstream may move."""

    name: str

    def __str__(self) -> str:
        return self.name


Reference = Tag | Digest


def parse_repository(name: str) -> str:
    """Returns `name` if it is a repository name (at most 255 characters). Raises NameInvalid."""
    if len(name) > _NAME_LIMIT or _NAME.fullmatch(name) is None:
        raise NameInvalid(f"not a repository name: {name[:160]!r}")
    return name


def is_tag(text: str) -> bool:
    """Whether `text` could be a tag."""
    return _TAG.fullmatch(text) is not None


def parse_reference(text: str) -> Reference:
    """Reads a tag or a digest.

    Raises DigestInvalid for what has a colon and is no digest, and ManifestUnknown for an impossible tag: the
    conformance suite wants 404 there, since no such tag can exist.
    """
    if ":" in text:
        return Digest.parse(text)
    if not is_tag(text):
        raise ManifestUnknown(f"not a tag: {text[:160]!r}")
    return Tag(text)

"""Referrers: what is attached to a manifest, as an index; and the tags that say it where there is no API for that."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from typing import Annotated

import msgspec

from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_INDEX

PAGE_LIMIT = 4 << 20
"""Bytes of one page; clients read an index as they read manifests."""

_ATTACHED = re.compile(r"(?:sha256-[0-9a-f]{64}|sha512-[0-9a-f]{64,128})(?:\.(?:sig|att|sbom))?")
_HEAD = b'{"schemaVersion":2,"mediaType":"%s","manifests":[' % OCI_INDEX.encode()
_TAIL = b"]}"
_SHORTEST = len('{"digest":"sha256:"}') + 64
"""Characters of what can name a digest; to find out by reading takes longer."""
_MOST_STRANGE = 10_000
"""Entries that name no digest and may be in an index all the same; each of them is looked at."""
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class _Index(msgspec.Struct):
    manifests: list[msgspec.Raw] | None


class _Named(msgspec.Struct):
    digest: Annotated[str, msgspec.Meta(pattern=r"\A(?:sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})\Z")]


class _Typed(msgspec.Struct, rename="camel"):
    artifact_type: str | None = None


_decode_index = msgspec.json.Decoder(_Index).decode
_decode_named = msgspec.json.Decoder(_Named).decode
_decode_typed = msgspec.json.Decoder(_Typed).decode


def fallback_tag(digest: Digest) -> str:
    """The tag of the index of referrers where there is no API: with at most 64 digits (the referrers tag schema)."""
    return f"{digest.algorithm}-{digest.hex[:64]}"


def is_attached_tag(tag: str) -> bool:
    """Whether a tag is named for a digest: that index, or a signature, attestation or SBOM as cosign stores them."""
    return _ATTACHED.fullmatch(tag) is not None


def parse_index(body: bytes) -> list[str] | None:
    """The descriptors of an index, each as its exact JSON; None where the bytes are no index.

    What names no digest that we verify is left out: nobody could get it here, and an index has room for many of it.
    """
    try:
        entries = _decode_index(body).manifests or []
        if len(entries) > len(body) // _SHORTEST + _MOST_STRANGE:
            return None
        texts = [bytes(entry).decode() for entry in entries]
    except _UNREADABLE:
        return None
    return [text for text in texts if len(text) >= _SHORTEST and _names_a_digest(text)]


def of_types(descriptors: Sequence[str], artifact_types: Collection[str]) -> list[str]:
    """Those of one of the artifact types."""
    return [text for text in descriptors if _type_of(text) in artifact_types]


def page_of(descriptors: Sequence[str], last: str | None) -> tuple[Sequence[str], str | None]:
    """As many descriptors as an index of PAGE_LIMIT bytes holds, at least one; and where to go on, if some follow.

    Those after the place `last`; from the first on where another one stands there now: rather twice than not at all.
    """
    start = _position_of(last, descriptors) if last is not None else 0
    end, size = start, len(_HEAD) + len(_TAIL)
    while end < len(descriptors):
        size += len(descriptors[end].encode()) + 1
        if size > PAGE_LIMIT and end > start:
            break
        end += 1
    return descriptors[start:end], _place(end, descriptors) if end < len(descriptors) else None


def render_index(descriptors: Sequence[str]) -> bytes:
    """The index of these descriptors, which stay as they are."""
    return _HEAD + ",".join(descriptors).encode() + _TAIL


def _names_a_digest(descriptor: str) -> bool:
    try:
        _decode_named(descriptor)
    except _UNREADABLE:
        return False
    return True


def _type_of(descriptor: str) -> str | None:
    try:
        return _decode_typed(descriptor).artifact_type
    except _UNREADABLE:
        return None


def _place(position: int, descriptors: Sequence[str]) -> str:
    """A short name for a place: how many stand up to there, and which is the last of them; two may be the same."""
    return f"{position}-{hashlib.sha256(descriptors[position - 1].encode()).hexdigest()[:32]}"


def _position_of(place: str, descriptors: Sequence[str]) -> int:
    """How many descriptors stand up to a place that was named by `_place`; 0 where they have changed."""
    digits = place.partition("-")[0]
    position = int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 10 else 0
    return position if 0 < position <= len(descriptors) and _place(position, descriptors) == place else 0

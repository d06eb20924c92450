"""Manifests and indexes: what they name, and which media type their bytes have. Never converted, never re-encoded."""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from mirror.oci.digest import Digest
from mirror.oci.errors import DigestInvalid

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"

ACCEPT = ", ".join((OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST, "*/*;q=0.1"))
"""What every upstream is asked with, whatever the client sent: one digest per tag. Schema 1 is never asked for."""

MANIFEST_LIMIT = 4 << 20
"""Bytes; the specification lets a registry refuse larger ones, and clients do."""

_LARGEST = 2**63 - 1
_WELL_KNOWN = {kind.lower(): kind for kind in (OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST)}
_SAY_NOTHING = frozenset({"", "application/json", "text/plain", "application/octet-stream", "text/html"})
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}")


class Descriptor(msgspec.Struct, frozen=True, kw_only=True):
    """A descriptor as it stands in a manifest; `digest` is unchecked text."""

    digest: str
    size: int
    media_type: str = msgspec.field(name="mediaType", default="")


class Manifest(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The fields of manifests and indexes that matter to a cache; all others are left alone in the bytes.

    A list may be null: programs in Go write empty ones so.
    """

    schema_version: int | None = None
    media_type: str = ""
    config: Descriptor | None = None
    layers: list[Descriptor] | None = None
    blobs: list[Descriptor] | None = None
    manifests: list[Descriptor] | None = None
    subject: Descriptor | None = None

    def outline(self) -> Manifest:
        """The same without its descriptors: enough to tell its media type."""
        return Manifest(
            schema_version=self.schema_version,
            media_type=self.media_type,
            manifests=None if self.manifests is None else [],
        )

    def named_blobs(self) -> Iterator[tuple[Digest, int | None]]:
        """Digest and size in bytes of config, layers and blobs, without those whose digest we cannot verify.

        The size is None where the manifest gives one that no blob can have.
        """
        return _named([*([self.config] if self.config else []), *(self.layers or ()), *(self.blobs or ())])

    def named_manifests(self) -> Iterator[tuple[Digest, int | None]]:
        """The same of an index's children."""
        return _named(self.manifests or [])


_decode = msgspec.json.Decoder(Manifest).decode


def parse_manifest(data: bytes) -> Manifest | None:
    """Reads a manifest or index; None where the bytes are no JSON object of that shape. Raises nothing."""
    try:
        return _decode(data)
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError, UnicodeDecodeError):
        return None


def says_a_type(header: str | None) -> bool:
    """Whether a Content-Type tells one manifest from another; those that fit everything do not."""
    return _media_type(header).lower() not in _SAY_NOTHING


def media_type_of(manifest: Manifest | None, header: str | None) -> str:
    """The media type to serve the bytes with: the body's own, else the upstream's header, else the structure's.

    `header` is a Content-Type value. Parameters are stripped, and what is no media type counts as nothing: both may be
    anybody's words. Registries have mislabelled manifests, bodies are signed by their digest.
    """
    declared = _media_type(header)
    declared = _WELL_KNOWN.get(declared.lower(), declared)
    if manifest is None:
        return declared or "application/octet-stream"
    if own := _media_type(manifest.media_type):
        return own
    if says_a_type(declared):
        return declared
    return OCI_MANIFEST if manifest.manifests is None else OCI_INDEX


def _media_type(text: str | None) -> str:
    """The type and subtype alone (RFC 6838 §4.2); empty where there is none."""
    essence = (text or "").partition(";")[0].strip()
    return essence if _MEDIA_TYPE.fullmatch(essence) else ""


def _named(descriptors: list[Descriptor]) -> Iterator[tuple[Digest, int | None]]:
    for descriptor in descriptors:
        try:
            digest = Digest.parse(descriptor.digest)
        except DigestInvalid:
            continue
        yield digest, descriptor.size if 0 <= descriptor.size <= _LARGEST else None

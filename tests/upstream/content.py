"""What a registry holds, made deterministically and cheaply: blobs, manifests, indexes and images as values."""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import json
import random
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from mirror.oci.digest import Digest
from mirror.oci.manifest import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST

OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"

_BLOCK = 64 << 10
_EPOCH = "2026-01-01T00:00:00Z"


class Content(Protocol):
    """Bytes that can be read anywhere without being held in memory."""

    @property
    def size(self) -> int:
        """Length in bytes."""

    def read(self, start: int, length: int) -> bytes:
        """At most `length` bytes from offset `start`; fewer only at the end."""


@dataclass(frozen=True, slots=True)
class Data:
    """Content that is held in memory."""

    data: bytes = field(repr=False)

    @property
    def size(self) -> int:
        """Length in bytes."""
        return len(self.data)

    def read(self, start: int, length: int) -> bytes:
        """The bytes `start` to `start + length`."""
        return self.data[start : start + length]


@dataclass(frozen=True, slots=True)
class Pattern:
    """Incompressible content of any size from a seed; every 64 KiB block differs, so that a shifted byte shows."""

    seed: str
    size: int

    def read(self, start: int, length: int) -> bytes:
        """The bytes `start` to `start + length`, made on the spot."""
        end = min(start + length, self.size)
        if start >= end:
            return b""
        base = _noise(self.seed)
        first = start // _BLOCK
        blocks = b"".join(index.to_bytes(8, "big") + base for index in range(first, (end - 1) // _BLOCK + 1))
        return blocks[start - first * _BLOCK : end - first * _BLOCK]


@dataclass(frozen=True, slots=True)
class Sliced:
    """`length` bytes of other content from offset `start`."""

    inner: Content
    start: int
    size: int

    def read(self, start: int, length: int) -> bytes:
        """The bytes `start` to `start + length` of the slice."""
        return self.inner.read(self.start + start, min(length, max(0, self.size - start)))


@dataclass(frozen=True)
class Stored:
    """Something with a digest; `media_type` is what a registry serves it with, `size` is in bytes."""

    digest: Digest
    size: int
    media_type: str
    source: Content = field(repr=False, compare=False)

    @property
    def content(self) -> bytes:
        """All of its bytes; for the large ones prefer `read`."""
        return self.source.read(0, self.size)

    def read(self, start: int, length: int) -> bytes:
        """At most `length` bytes from offset `start`."""
        return self.source.read(start, length)

    @property
    def descriptor(self) -> dict[str, Any]:
        """How a manifest names it."""
        return {"mediaType": self.media_type, "digest": str(self.digest), "size": self.size}


class Blob(Stored):
    """A layer, a config, or any other blob."""


class Manifest(Stored):
    """A manifest or an index."""


@dataclass(frozen=True)
class Image:
    """An image as it was added: one manifest with its config and layers."""

    repository: str
    tag: str | None
    manifest: Manifest
    config: Blob
    layers: tuple[Blob, ...]

    @property
    def digest(self) -> Digest:
        """The manifest's digest."""
        return self.manifest.digest

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """Config and layers."""
        return (self.config, *self.layers)


@dataclass(frozen=True)
class Index:
    """An index as it was added, with the images it names."""

    repository: str
    tag: str | None
    manifest: Manifest
    images: tuple[Image, ...]

    @property
    def digest(self) -> Digest:
        """The index's digest."""
        return self.manifest.digest


def make_blob(content: bytes | int | Blob, *, seed: str, media_type: str, algorithm: str = "sha256") -> Blob:
    """A blob of these bytes, or of as many deterministic bytes as `content` says, or `content` itself."""
    if isinstance(content, Blob):
        return content
    if isinstance(content, int):
        pattern = Pattern(seed, content)
        return Blob(_pattern_digest(pattern, algorithm), content, media_type, pattern)
    return Blob(Digest.of(content, algorithm), len(content), media_type, Data(content))


def make_manifest(content: bytes | Mapping[str, Any], *, media_type: str, algorithm: str = "sha256") -> Manifest:
    """A manifest of these exact bytes; a mapping is written as JSON in a way that no re-encoding would reproduce."""
    data = content if isinstance(content, bytes) else json.dumps(content, indent=3).encode() + b"\n"
    return Manifest(Digest.of(data, algorithm), len(data), media_type, Data(data))


def image_config(layers: Sequence[Blob], platform: str, labels: Mapping[str, str]) -> bytes:
    """The bytes of an image configuration whose `diff_ids` are right for layers that really are (gzipped) tars."""
    system, architecture, *variant = platform.split("/")
    config = {
        "created": _EPOCH,
        "architecture": architecture,
        "os": system,
        **({"variant": variant[0]} if variant else {}),
        "config": {"Cmd": ["/hello"], **({"Labels": dict(labels)} if labels else {})},
        "rootfs": {"type": "layers", "diff_ids": [str(_diff_id(layer)) for layer in layers]},
        "history": [{"created": _EPOCH, "created_by": f"layer {number}"} for number, _ in enumerate(layers)],
    }
    return json.dumps(config).encode()


def image_manifest(
    config: Blob, layers: Sequence[Blob], *, docker: bool, annotations: Mapping[str, str], subject: Stored | None
) -> Manifest:
    """The manifest of one image."""
    media_type = DOCKER_MANIFEST if docker else OCI_MANIFEST
    body: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": config.descriptor,
        "layers": [layer.descriptor for layer in layers],
    }
    if annotations:
        body["annotations"] = dict(annotations)
    if subject is not None:
        body["subject"] = subject.descriptor
    return make_manifest(body, media_type=media_type)


def image_index(images: Mapping[str, Image], *, docker: bool) -> Manifest:
    """The index of images by platform (`linux/arm64/v8`)."""
    media_type = DOCKER_LIST if docker else OCI_INDEX
    children = []
    for platform, image in images.items():
        system, architecture, *variant = platform.split("/")
        described = {"os": system, "architecture": architecture, **({"variant": variant[0]} if variant else {})}
        children.append({**image.manifest.descriptor, "platform": described})
    return make_manifest(
        {"schemaVersion": 2, "mediaType": media_type, "manifests": children}, media_type=media_type
    )  # fmt: skip


def tar_layer(files: Mapping[str, bytes]) -> bytes:
    """A gzipped tar of executable files by path: a layer that real clients can unpack. The same bytes every time."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path, data in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(data)
            member.mode = 0o755
            tar.addfile(member, io.BytesIO(data))
    return gzip.compress(buffer.getvalue(), mtime=0)


def _diff_id(layer: Blob) -> Digest:
    if layer.read(0, 2) == b"\x1f\x8b" and isinstance(layer.source, Data):
        return Digest.of(gzip.decompress(layer.content))
    return layer.digest


@functools.lru_cache(maxsize=256)
def _noise(seed: str) -> bytes:
    return random.Random(seed).randbytes(_BLOCK - 8)


@functools.lru_cache(maxsize=1024)
def _pattern_digest(pattern: Pattern, algorithm: str) -> Digest:
    hasher = hashlib.new(algorithm)
    for start in range(0, pattern.size, 1 << 20):
        hasher.update(pattern.read(start, 1 << 20))
    return Digest(algorithm, hasher.hexdigest())

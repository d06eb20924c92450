"""A small image that really runs, for two architectures, written as an OCI image layout."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import random
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.programs import PATH, missing, need, run

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_INDEX = "application/vnd.oci.image.index.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

Descriptor = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Image:
    """An index in an OCI layout. `digest` is the index's; `blobs` are those that this machine's platform pulls."""

    layout: Path
    digest: str
    blobs: frozenset[str]
    greeting: str
    """What it prints when it is run."""

    @property
    def largest(self) -> str:
        """The digest of the blob that takes longest to pull."""
        blobs = self.layout / "blobs" / "sha256"
        return max(self.blobs, key=lambda digest: (blobs / digest.removeprefix("sha256:")).stat().st_size)

    def push(self, registry: str, repository: str, tag: str, *, home: Path) -> None:
        """Copies the whole index, byte for byte, to the registry at `registry` (host:port, plain http)."""
        need("skopeo")
        run(
            "skopeo", "--insecure-policy", "copy", "--quiet", "--all", "--preserve-digests", "--dest-tls-verify=false",
            f"oci:{self.layout}:image", f"docker://{registry}/{repository}:{tag}",
            home=home,
        )  # fmt: skip


def build(layout: Path, *, greeting: str, random_bytes: int = 2 << 20, apart: bool = False) -> Image:
    """Writes an image with busybox in one layer and `random_bytes` that do not compress in another.

    With `apart` it has no blob in common with an image of another greeting.
    """
    writer = _Layout(layout)
    layers = [
        writer.layer({"bin/busybox": _busybox(), **({"greeting": greeting.encode()} if apart else {})}),
        writer.layer({"data/random": random.Random(greeting).randbytes(random_bytes)}),
    ]
    command = ["/bin/busybox", "echo", greeting]
    images = {architecture: writer.image(architecture, layers, command) for architecture in ("amd64", "arm64")}
    index = writer.index(images)
    here = images[_ARCHITECTURES[platform.machine()]]
    return Image(layout, index["digest"], frozenset(writer.referred(here)), greeting)


def build_sandbox(layout: Path) -> None:
    """Writes an image that sleeps, for this machine's platform alone. It has no blob in common with any of `build`."""
    build_of(layout, {"bin/busybox": _busybox(), "sandbox": b""}, ["/bin/busybox", "sleep", "3600"])


def build_of(layout: Path, files: dict[str, bytes], command: list[str]) -> None:
    """Writes an image of these files, each of which everybody may run, for this machine's platform alone."""
    writer = _Layout(layout)
    here = _ARCHITECTURES[platform.machine()]
    writer.index({here: writer.image(here, [writer.layer(files)], command)})


def build_on(layout: Path, archive: Path) -> str:
    """Writes an image of a whole file system, a tar archive that is moved there. Returns its manifest's digest."""
    writer = _Layout(layout)
    here = _ARCHITECTURES[platform.machine()]
    made = writer.image(here, [writer.archive(archive)], ["/bin/sh"])
    writer.index({here: made})
    digest: str = made["digest"]
    return digest


class _Layout:
    """Writes blobs and the two files that make a directory an OCI image layout."""

    def __init__(self, top: Path) -> None:
        self._top = top
        self._blobs = top / "blobs" / "sha256"
        self._blobs.mkdir(parents=True)
        (top / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def layer(self, files: dict[str, bytes]) -> tuple[Descriptor, str]:
        """The layer's descriptor and its diff ID; the same files always make the same bytes."""
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w") as archive:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(content), 0o755
                archive.addfile(entry, io.BytesIO(content))
        diff_id = hashlib.sha256(raw.getvalue()).hexdigest()
        return self._put(_LAYER, gzip.compress(raw.getvalue(), 1, mtime=0)), f"sha256:{diff_id}"

    def archive(self, file: Path) -> tuple[Descriptor, str]:
        """The layer that this file is, uncompressed, and its diff ID."""
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        size = file.stat().st_size
        file.rename(self._blobs / digest)
        media_type = _LAYER.removesuffix("+gzip")
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": size}, f"sha256:{digest}"

    def image(self, architecture: str, layers: list[tuple[Descriptor, str]], command: list[str]) -> Descriptor:
        config = self._put_json(
            _CONFIG,
            {
                "architecture": architecture,
                "os": "linux",
                "config": {"Cmd": command},
                "rootfs": {"type": "layers", "diff_ids": [diff_id for _, diff_id in layers]},
            },
        )
        return self._put_json(
            _MANIFEST,
            {
                "schemaVersion": 2,
                "mediaType": _MANIFEST,
                "config": config,
                "layers": [descriptor for descriptor, _ in layers],
            },
        )

    def index(self, images: dict[str, Descriptor]) -> Descriptor:
        manifests = [
            {**descriptor, "platform": {"architecture": architecture, "os": "linux"}}
            for architecture, descriptor in images.items()
        ]
        index = self._put_json(_INDEX, {"schemaVersion": 2, "mediaType": _INDEX, "manifests": manifests})
        named = {**index, "annotations": {"org.opencontainers.image.ref.name": "image"}}
        (self._top / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [named]}))
        return index

    def referred(self, image: Descriptor) -> list[str]:
        """The digests of an image's config and layers."""
        manifest = json.loads((self._blobs / image["digest"].removeprefix("sha256:")).read_bytes())
        return [descriptor["digest"] for descriptor in (manifest["config"], *manifest["layers"])]

    def _put_json(self, media_type: str, document: dict[str, Any]) -> Descriptor:
        return self._put(media_type, json.dumps(document).encode())

    def _put(self, media_type: str, content: bytes) -> Descriptor:
        digest = hashlib.sha256(content).hexdigest()
        (self._blobs / digest).write_bytes(content)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}


def _busybox() -> bytes:
    """A busybox that runs in an empty root: one that names no dynamic loader."""
    need("busybox")
    content = Path(shutil.which("busybox", path=PATH) or "").read_bytes()
    if b"/ld-" in content[:4096]:
        missing("needs a static busybox (Debian: busybox-static); this one is linked dynamically and cannot run alone")
    return content

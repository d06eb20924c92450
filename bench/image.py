"""What is pulled: one image of the upstream, known by its manifest, its large layer and a small blob."""

from __future__ import annotations

import hashlib
import http.client
import json
from dataclasses import dataclass
from pathlib import Path

REPOSITORY, TAG = "library/bench", "1"
ACCEPT = "application/vnd.oci.image.manifest.v1+json"
_PIECE = 1 << 20
_SECONDS = 120.0


class BenchFailed(Exception):
    """A server did not do what is measured; the message says which and what."""


@dataclass(frozen=True, slots=True)
class Image:
    """The image, by its digests: every server has it under the same paths."""

    manifest: str
    """Its digest."""
    media_type: str
    layer: str
    """Digest of the large layer."""
    size: int
    """Of that layer."""
    blobs: tuple[str, ...]
    """Digests of config and layers."""

    @property
    def by_tag(self) -> str:
        """Path of the manifest, by tag."""
        return manifest_path(TAG)

    @property
    def by_digest(self) -> str:
        """Path of the manifest, by digest."""
        return manifest_path(self.manifest)


def manifest_path(reference: str) -> str:
    """Path of a manifest of our repository."""
    return f"/v2/{REPOSITORY}/manifests/{reference}"


def blob_path(digest: str) -> str:
    """Path of a blob of our repository."""
    return f"/v2/{REPOSITORY}/blobs/{digest}"


def read_image(port: int) -> Image:
    """The image as the registry on this port describes it. Raises BenchFailed."""
    answer, content = fetch(port, manifest_path(TAG))
    named = json.loads(content)
    layer = max(named["layers"], key=lambda one: int(one["size"]))
    blobs = tuple(one["digest"] for one in (named["config"], *named["layers"]))
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    return Image(digest, answer.headers["Content-Type"], layer["digest"], layer["size"], blobs)


def fetch(port: int, path: str, into: Path | None = None) -> tuple[http.client.HTTPResponse, bytes]:
    """One GET, verified where the path has a digest; the body is returned, or written to a file. Raises BenchFailed."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_SECONDS)
    try:
        connection.request("GET", path, headers={"Accept": ACCEPT})
        answer = connection.getresponse()
        hasher, kept = hashlib.sha256(), bytearray()
        with (into or Path("/dev/null")).open("wb") as file:
            while piece := answer.read(_PIECE):
                hasher.update(piece)
                file.write(piece)
                if into is None and len(kept) < _PIECE:
                    kept += piece
    except (OSError, http.client.HTTPException) as error:
        raise BenchFailed(f"GET {path} on port {port}: {type(error).__name__}: {error}") from error
    finally:
        connection.close()
    if answer.status != http.HTTPStatus.OK:
        raise BenchFailed(f"GET {path} on port {port}: {answer.status} {kept[:300].decode(errors='replace')}")
    if ":" in path and not path.endswith(hasher.hexdigest()):
        raise BenchFailed(f"GET {path} on port {port}: wrong bytes")
    return answer, bytes(kept)

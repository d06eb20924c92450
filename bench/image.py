"""What is asked for: the images of the upstream, by their paths, and one verified GET."""

from __future__ import annotations

import hashlib
import http.client
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.upstream.certificates import client_tls

MEDIA_TYPE = "application/vnd.oci.image.manifest.v1+json"
ACCEPT = MEDIA_TYPE
_PIECE = 1 << 20
_SECONDS = 120.0


class BenchFailed(Exception):
    """A server did not do what is measured; the message says which and what."""


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob of an image; `size` in bytes."""

    path: str
    """As every server has it."""
    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class Image:
    """A manifest and the blobs that it names: every server has them under the same paths."""

    repository: str
    tag: str
    digest: str
    """Of the manifest."""
    config: Blob
    layers: Sequence[Blob]

    @property
    def by_tag(self) -> str:
        """Path of the manifest, by tag."""
        return manifest_path(self.repository, self.tag)

    @property
    def by_digest(self) -> str:
        """Path of the manifest, by digest."""
        return manifest_path(self.repository, self.digest)

    @property
    def blobs(self) -> Sequence[Blob]:
        """The configuration and the layers."""
        return (self.config, *self.layers)


def manifest_path(repository: str, reference: str) -> str:
    """Path of a manifest."""
    return f"/v2/{repository}/manifests/{reference}"


def blob_path(repository: str, digest: str) -> str:
    """Path of a blob."""
    return f"/v2/{repository}/blobs/{digest}"


def fetch(
    port: int, path: str, into: Path | None = None, *, tls: bool = False
) -> tuple[http.client.HTTPResponse, bytes]:
    """One GET, verified where the path has a digest; the body is returned, or written to a file. Raises BenchFailed."""
    connection = (
        http.client.HTTPSConnection("127.0.0.1", port, timeout=_SECONDS, context=client_tls())
        if tls
        else http.client.HTTPConnection("127.0.0.1", port, timeout=_SECONDS)
    )
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

"""A small pull client: a manifest by tag, then config and layers side by side, every byte checked by its digest."""

from __future__ import annotations

import hashlib
import http.client
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

ACCEPT = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
PARALLEL = 3
"""Blobs that one client fetches at a time, as docker and containerd do."""
_PIECE = 256 << 10
_SECONDS = 30.0


class PullFailed(Exception):
    """An answer that no client could use; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """Something that came whole and right: its length in bytes, its X-Cache, the seconds from request to last byte."""

    what: str
    size: int
    source: str
    seconds: float


class Client:
    """Pulls from the registry API on 127.0.0.1:`port`, with a connection for each request."""

    def __init__(self, port: int) -> None:
        self._port = port

    def pull(self, repository: str, tag: str) -> list[Fetched]:
        """The manifest, the config and the layers, in this order. Raises PullFailed."""
        manifest, content = self._fetch(repository, f"manifests/{tag}", "manifest")
        named = json.loads(content)
        blobs = [("config", named["config"]["digest"])]
        blobs += [(f"layer {number}", layer["digest"]) for number, layer in enumerate(named["layers"], 1)]
        with ThreadPoolExecutor(PARALLEL) as pool:
            running = [pool.submit(self._fetch, repository, f"blobs/{digest}", what, digest) for what, digest in blobs]
            return [manifest, *(one.result()[0] for one in running)]

    def _fetch(self, repository: str, path: str, what: str, digest: str | None = None) -> tuple[Fetched, bytes]:
        """One GET, and the body where it is a manifest; without a `digest` the one that the answer names must fit."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_SECONDS)
        started = time.perf_counter()
        try:
            connection.request("GET", f"/v2/{repository}/{path}", headers={"Accept": ACCEPT})
            answer = connection.getresponse()
            size, found, content = _read(answer, keep=path.startswith("manifests/"))
        except (OSError, http.client.HTTPException) as error:
            raise PullFailed(f"{what} of {repository}: {type(error).__name__}: {error}") from error
        finally:
            connection.close()
        seconds = time.perf_counter() - started
        if answer.status != http.HTTPStatus.OK:
            raise PullFailed(f"{what} of {repository} was answered {answer.status}: {content.decode(errors='replace')}")
        wanted = digest or answer.headers["Docker-Content-Digest"]
        if found != wanted:
            raise PullFailed(f"{what} of {repository} has the digest {found}, not {wanted}")
        return Fetched(what, size, answer.headers.get("X-Cache", "none"), seconds), content


def _read(answer: http.client.HTTPResponse, *, keep: bool) -> tuple[int, str, bytes]:
    """Length and digest of the body, and the body itself if it is to be kept or says what went wrong."""
    keep = keep or answer.status != http.HTTPStatus.OK
    hasher, size, kept = hashlib.sha256(), 0, bytearray()
    while piece := answer.read(_PIECE):
        hasher.update(piece)
        size += len(piece)
        if keep:
            kept += piece
    # HTTPResponse.read(n) takes an early end for the end; `length` is what was promised and did not come.
    if answer.length:
        raise http.client.IncompleteRead(b"", answer.length)
    return size, f"sha256:{hasher.hexdigest()}", bytes(kept)


def total(things: Sequence[Fetched]) -> int:
    """Bytes of all of them."""
    return sum(thing.size for thing in things)

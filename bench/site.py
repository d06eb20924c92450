"""The upstream of every server: a registry of static files behind nginx, which writes down what it was asked for.

It is as fast as an upstream can be, so that what is measured is the server in front of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.image import MEDIA_TYPE, BenchFailed, Blob, Image, blob_path, manifest_path
from tests.e2e.processes import Process, free_port, listens
from tests.e2e.programs import PATH

_PIECE = 1 << 20
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_CONFIG = "application/vnd.oci.image.config.v1+json"
NGINX = "nginx"
HEAD = """\
daemon off;
worker_processes 1;
pid {home}/nginx.pid;
error_log stderr warn;
{user}
events {{ worker_connections 2048; }}
http {{
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000000;
    client_body_temp_path {home}/body;
    proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi;
    scgi_temp_path {home}/scgi;
"""
"""How each nginx here begins; `{home}` is a directory of its own."""
FILES = """\
    map_hash_bucket_size 512;
    map $uri $manifest_digest {{
        default "";
{digests}
    }}
    server {{
        listen 127.0.0.1:{port} backlog=2048{tls};
        root {root};
        default_type application/octet-stream;
        location = /v2/ {{ default_type application/json; return 200 '{{}}'; }}
        location ~ /manifests/ {{
            default_type {media_type};
            add_header Docker-Content-Digest $manifest_digest;
        }}
    }}
}}
"""
"""How nginx serves a site."""
_LOG = """\
    log_format counted '$request_method $uri $status $body_bytes_sent';
    access_log {home}/access.log counted;
"""


@dataclass
class Site:
    """The files of the registry, and the images among them."""

    root: Path
    images: dict[str, Image] = field(default_factory=dict)
    """By repository."""

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)

    def add(self, repository: str, sizes: Sequence[int], tag: str = "1") -> Image:
        """An image whose layers are random bytes of these sizes."""
        layers = [self._random(repository, size) for size in sizes]
        return self.describe(repository, layers, {}, _LAYER, tag)

    def describe(
        self, repository: str, layers: Sequence[Blob], config: Mapping[str, object], layer_type: str, tag: str = "1"
    ) -> Image:
        """An image of layers that are there already (`put`)."""
        about = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}, **config}
        named = self.put(repository, json.dumps({**about, "comment": repository}).encode())
        document = {
            "schemaVersion": 2,
            "mediaType": MEDIA_TYPE,
            "config": {"mediaType": _CONFIG, "digest": named.digest, "size": named.size},
            "layers": [{"mediaType": layer_type, "digest": one.digest, "size": one.size} for one in layers],
        }
        content = json.dumps(document, indent=3).encode()
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        for reference in (tag, digest):
            self._file(manifest_path(repository, reference)).write_bytes(content)
        self.images[repository] = Image(repository, tag, digest, named, tuple(layers))
        return self.images[repository]

    def put(self, repository: str, content: bytes) -> Blob:
        """A blob with this content."""
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        self._file(blob_path(repository, digest)).write_bytes(content)
        return Blob(blob_path(repository, digest), digest, len(content))

    def digests(self) -> str:
        """The entries of nginx's map from a manifest's path to its digest."""
        return "\n".join(
            f"        {path} {image.digest};"
            for image in self.images.values()
            for path in (image.by_tag, image.by_digest)
        )

    def _random(self, repository: str, size: int) -> Blob:
        hasher = hashlib.sha256()
        making = self.root / "making"
        with making.open("wb") as file:
            for start in range(0, size, _PIECE):
                piece = os.urandom(min(_PIECE, size - start))
                hasher.update(piece)
                file.write(piece)
        digest = f"sha256:{hasher.hexdigest()}"
        making.rename(self._file(blob_path(repository, digest)))
        return Blob(blob_path(repository, digest), digest, size)

    def _file(self, path: str) -> Path:
        file = self.root / path[1:]
        file.parent.mkdir(parents=True, exist_ok=True)
        return file


@dataclass(frozen=True, slots=True)
class Upstream:
    """What the servers ask: `port` leads to the site, through a link or straight."""

    site: Site
    port: int
    log: Path

    @property
    def url(self) -> str:
        """Without a slash at its end."""
        return f"http://127.0.0.1:{self.port}"

    def sent(self, digest: str = "") -> int:
        """The bytes of blobs (of this one) in all answers that are over."""
        lines = (line.split() for line in self.log.read_text().splitlines())
        return sum(int(size) for _, uri, _, size in lines if "/blobs/" in uri and uri.endswith(digest))


@contextmanager
def upstream(home: Path, site: Site) -> Iterator[Upstream]:
    """nginx in front of the site; images that are added later are unknown to it. Raises BenchFailed."""
    home.mkdir(parents=True, exist_ok=True)
    port = free_port()
    text = nginx_head(home) + _LOG.format(home=home) + nginx_files(site, port)
    with nginx_running(home, text, port) as process:
        yield Upstream(site, port, process.log.with_name("access.log"))


def nginx_head(home: Path) -> str:
    """The beginning of a configuration."""
    return HEAD.format(home=home, user="user root;" if os.geteuid() == 0 else "")


def nginx_files(site: Site, port: int, tls: str = "") -> str:
    """The end of a configuration that serves the site."""
    return FILES.format(port=port, root=site.root, tls=tls, media_type=MEDIA_TYPE, digests=site.digests())


@contextmanager
def nginx_running(home: Path, text: str, port: int) -> Iterator[Process]:
    """nginx with this configuration. Raises BenchFailed."""
    (home / "nginx.conf").write_text(text)
    program = shutil.which(NGINX, path=PATH)
    if program is None:
        raise BenchFailed("nginx is not installed")
    argv: list[str | Path] = [program, "-p", home, "-e", "stderr", "-c", home / "nginx.conf"]
    process = Process(argv, log=home / "nginx.log", env={"PATH": PATH})
    try:
        process.wait_until(lambda: listens(port))
        yield process
    finally:
        process.stop()

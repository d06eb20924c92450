"""The servers that are measured: the mirror, and others that give the same bytes; and the upstream behind them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.image import BenchFailed, Image, blob_path, fetch, manifest_path
from mirror import __version__
from tests.e2e.mirrors import MirrorProcess
from tests.e2e.processes import Process, eventually, free_port, listens

MIRROR = "mirror"
_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
_START_SECONDS = 60.0
_NGINX = """\
daemon off;
worker_processes 1;
pid {home}/nginx.pid;
error_log stderr warn;
{user}
events {{ worker_connections 1024; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000000;
    client_body_temp_path {home}/body;
    proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi;
    scgi_temp_path {home}/scgi;
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        root {home}/root;
        default_type application/octet-stream;
        location ~ /manifests/ {{
            default_type {media_type};
            add_header Docker-Content-Digest {digest};
        }}
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: what it is, its port on 127.0.0.1, and the process group whose CPU time is its own."""

    name: str
    what: str
    port: int
    group: int


@dataclass(frozen=True, slots=True)
class Upstream:
    """The registry that all servers got the image from."""

    port: int
    image: Image

    @property
    def url(self) -> str:
        """Without a slash at its end."""
        return f"http://127.0.0.1:{self.port}"


Start = Callable[[Path, Upstream], AbstractContextManager[Server]]


@contextmanager
def upstream(home: Path, layer_size: int, read: Callable[[int], Image]) -> Iterator[Upstream]:
    """A registry with one image, whose first layer has `layer_size` bytes."""
    log, port = home / "upstream.log", free_port()
    argv = [sys.executable, "-m", "tests.upstream", f"--port={port}", "--image=library/bench:1"]
    process = Process([*argv, f"--layer-size={layer_size}"], log=log, env=dict(os.environ))
    try:
        process.wait_until(lambda: " serves " in log.read_text(), seconds=_START_SECONDS)
        yield Upstream(port, read(port))
    finally:
        process.stop()


@contextmanager
def mirror(home: Path, upstream: Upstream) -> Iterator[Server]:
    """This project, as it comes: metrics and a line for each request included."""
    port = free_port()
    process = MirrorProcess(home, port)
    process.start({"docker.io": {"url": upstream.url}})
    try:
        _warm(port, upstream.image)
        settled = eventually(lambda: process.counted("mirror_downloads_in_flight") == 0)
        if not settled or fetch(port, upstream.image.by_tag)[0].headers["X-Cache"] != "hit":
            raise BenchFailed("the mirror does not hold what it has just fetched")
        yield Server(MIRROR, f"mirror {__version__}", port, process.pid)
    finally:
        process.stop()


@contextmanager
def distribution(home: Path, upstream: Upstream) -> Iterator[Server]:
    """CNCF Distribution as a pull-through cache, on one processor, without an access log."""
    port, store = free_port(), home / "store"
    config = {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(store)}},
        "http": {"addr": f"127.0.0.1:{port}", "secret": "unused"},
        "proxy": {"remoteurl": upstream.url},
    }
    (home / "registry.yml").write_text(json.dumps(config))  # JSON is YAML
    argv: list[str | Path] = [_program("docker-registry"), "serve", home / "registry.yml"]
    env = {"PATH": _PATH, "HOME": str(home), "GOMAXPROCS": "1", "OTEL_TRACES_EXPORTER": "none"}
    with _running(argv, home / "registry.log", env, port) as process:
        _warm(port, upstream.image)
        # It stores a blob while it sends it, and is done a little later.
        stored = store / f"docker/registry/v2/blobs/{_sharded(upstream.image.layer)}/data"
        if not eventually(lambda: stored.exists() and stored.stat().st_size == upstream.image.size, seconds=30):
            raise BenchFailed("Distribution does not hold what it has just fetched")
        version = _version("docker-registry", "--version").split()[-1].partition("+")[0]
        yield Server("distribution", f"Distribution {version}", port, process.pid)


@contextmanager
def nginx(home: Path, upstream: Upstream) -> Iterator[Server]:
    """nginx with the same bytes as static files: what the kernel can do."""
    port, image, root = free_port(), upstream.image, home / "root"
    for path in (image.by_tag, image.by_digest, *map(blob_path, image.blobs)):
        file = root / path[1:]
        file.parent.mkdir(parents=True, exist_ok=True)
        fetch(upstream.port, path, into=file)
    user = "user root;" if os.geteuid() == 0 else ""
    text = _NGINX.format(home=home, port=port, user=user, media_type=image.media_type, digest=image.manifest)
    (home / "nginx.conf").write_text(text)
    argv: list[str | Path] = [_program("nginx"), "-p", home, "-e", "stderr", "-c", home / "nginx.conf"]
    with _running(argv, home / "nginx.log", {"PATH": _PATH}, port) as process:
        _warm(port, image)
        version = _version("nginx", "-v").split("/")[-1].split()[0]
        yield Server("nginx", f"nginx {version}, static", port, process.pid)


SERVERS: Mapping[str, tuple[str | None, Start]] = {
    MIRROR: (None, mirror),
    "distribution": ("docker-registry", distribution),
    "nginx": ("nginx", nginx),
}
"""Each server by name, with the program that has to be installed for it (also the name of its Debian package)."""


def installed(program: str) -> bool:
    """Whether a program is there, also where daemons live and an ordinary PATH does not look."""
    return shutil.which(program, path=_PATH) is not None


@contextmanager
def _running(argv: Sequence[str | Path], log: Path, env: Mapping[str, str], port: int) -> Iterator[Process]:
    process = Process(argv, log=log, env=env)
    try:
        process.wait_until(lambda: listens(port))
        yield process
    finally:
        process.stop()


def _warm(port: int, image: Image) -> None:
    """Pulls all of the image, by both names, and looks at every byte."""
    for path in (image.by_tag, image.by_digest, *map(blob_path, image.blobs)):
        fetch(port, path)
    if fetch(port, image.by_tag)[1] != fetch(port, manifest_path(image.manifest))[1]:
        raise BenchFailed(f"port {port} gives two manifests for one tag")


def _program(name: str) -> str:
    found = shutil.which(name, path=_PATH)
    if found is None:
        raise BenchFailed(f"{name} is not installed")
    return found


def _version(program: str, flag: str) -> str:
    done = subprocess.run([_program(program), flag], capture_output=True, text=True, check=True)
    return (done.stdout + done.stderr).strip()


def _sharded(digest: str) -> str:
    algorithm, _, hex_digits = digest.partition(":")
    return f"{algorithm}/{hex_digits[:2]}/{hex_digits}"

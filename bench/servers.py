"""The servers that are measured: the mirror, and others that give the same bytes."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.image import BenchFailed
from bench.site import NGINX, Upstream, nginx_files, nginx_head, nginx_running
from mirror import __version__
from tests.e2e.mirrors import MirrorProcess
from tests.e2e.processes import Process, free_port, listens
from tests.e2e.programs import PATH
from tests.upstream.certificates import CA_FILE, KEY_FILE

MIRROR = "mirror"
_CACHE = """\
    access_log off;
    proxy_cache_path {home}/cache keys_zone=blobs:10m levels=1:2 max_size=100g inactive=1d use_temp_path=off;
    upstream registry {{ server 127.0.0.1:{behind}; keepalive 64; }}
    server {{
        listen 127.0.0.1:{port} backlog=2048{tls};
        location / {{
            proxy_pass http://registry;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_cache blobs;
            proxy_cache_valid 200 1d;
            proxy_cache_lock on;
            proxy_cache_lock_age 10m;
            proxy_cache_lock_timeout 10m;
            proxy_max_temp_file_size 0;
        }}
    }}
}}
"""
_TLS = " ssl;\n        ssl_certificate {certificate};\n        ssl_certificate_key {key}"


@dataclass(frozen=True, slots=True)
class Shape:
    """How a server is to be run."""

    tls: bool = False
    workers: int = 1
    """Processes that serve; only the mirror is run with another number."""


PLAIN = Shape()


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: what it is, its port on 127.0.0.1, and the process group whose CPU time is its own."""

    name: str
    what: str
    port: int
    group: int
    tls: bool = False
    counted: Callable[..., float] | None = None
    """Reads one of the mirror's metrics; others have none."""


Start = Callable[[Path, Upstream, Shape], AbstractContextManager[Server]]


@contextmanager
def mirror(home: Path, upstream: Upstream, shape: Shape) -> Iterator[Server]:
    """This project, as it comes: metrics and a line for each request included."""
    port = free_port()
    process = MirrorProcess(home, port)
    settings: dict[str, object] = {
        "tag_ttl": "1d",  # the bench lasts longer than the default
        "storage": {"path": str(process.data), "max_size": "100GiB", "min_free": "0%"},
    }
    if shape.tls:
        settings["tls"] = {"certificate": str(CA_FILE), "key": str(KEY_FILE)}
    if shape.workers != 1:
        settings["workers"] = shape.workers
    process.start({"docker.io": {"url": upstream.url}}, **settings)
    try:
        what = f"mirror {__version__}" + (f", {shape.workers} workers" if shape.workers != 1 else "")
        yield Server(MIRROR, what, port, process.pid, shape.tls, process.counted)
    finally:
        with suppress(AssertionError):  # its exit code is the tests' business
            process.stop()


@contextmanager
def distribution(program: str, home: Path, upstream: Upstream, shape: Shape) -> Iterator[Server]:
    """CNCF Distribution as a pull-through cache, on one processor, without an access log."""
    port = free_port()
    tls = {"tls": {"certificate": str(CA_FILE), "key": str(KEY_FILE)}} if shape.tls else {}
    config = {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(home / "store")}},
        "http": {"addr": f"127.0.0.1:{port}", "secret": "unused", **tls},
        "proxy": {"remoteurl": upstream.url},
    }
    (home / "registry.yml").write_text(json.dumps(config))  # JSON is YAML
    argv: list[str | Path] = [_program(program), "serve", home / "registry.yml"]
    env = {"PATH": PATH, "HOME": str(home), "GOMAXPROCS": "1", "OTEL_TRACES_EXPORTER": "none"}
    process = Process(argv, log=home / "registry.log", env=env)
    try:
        process.wait_until(lambda: listens(port))
        yield Server(program, _DISTRIBUTIONS[program], port, process.pid, shape.tls)
    finally:
        process.stop()


@contextmanager
def nginx(home: Path, upstream: Upstream, shape: Shape) -> Iterator[Server]:
    """nginx with the same bytes as static files: what the kernel can do."""
    port = free_port()
    text = nginx_head(home) + "    access_log off;\n" + nginx_files(upstream.site, port, _tls(shape))
    with nginx_running(home, text, port) as process:
        yield Server("nginx", f"nginx {_nginx_version()}, static files", port, process.pid, shape.tls)


@contextmanager
def nginx_cache(home: Path, upstream: Upstream, shape: Shape) -> Iterator[Server]:
    """nginx as a cache (`proxy_cache`), which locks a file while it fetches it."""
    port = free_port()
    text = nginx_head(home) + _CACHE.format(home=home, behind=upstream.port, port=port, tls=_tls(shape))
    with nginx_running(home, text, port) as process:
        yield Server("nginx-cache", f"nginx {_nginx_version()}, proxy_cache", port, process.pid, shape.tls)


_DISTRIBUTIONS = {"registry3": "Distribution 3.1", "docker-registry": "Distribution 2.8"}

SERVERS: Mapping[str, Start] = {
    MIRROR: mirror,
    "registry3": partial(distribution, "registry3"),
    "docker-registry": partial(distribution, "docker-registry"),
    "nginx": nginx,
    "nginx-cache": nginx_cache,
}
"""Each server by name."""
TITLES: Mapping[str, str] = {
    MIRROR: MIRROR,
    **_DISTRIBUTIONS,
    "nginx": "nginx, static files",
    "nginx-cache": "nginx, proxy_cache",
}


def lacking(name: str) -> str | None:
    """What has to be installed before this server can be started, if so."""
    program = {MIRROR: None, "nginx-cache": NGINX}.get(name, name)
    return None if program is None or installed(program) else f"{program} is not installed"


def installed(program: str) -> bool:
    """Whether a program is there, also where daemons live and an ordinary PATH does not look."""
    return shutil.which(program, path=PATH) is not None


def _tls(shape: Shape) -> str:
    return _TLS.format(certificate=CA_FILE, key=KEY_FILE) if shape.tls else ""


def _program(name: str) -> str:
    found = shutil.which(name, path=PATH)
    if found is None:
        raise BenchFailed(f"{name} is not installed")
    return found


def _nginx_version() -> str:
    done = subprocess.run([_program(NGINX), "-v"], capture_output=True, text=True, check=True)
    return (done.stdout + done.stderr).strip().split("/")[-1].split()[0]

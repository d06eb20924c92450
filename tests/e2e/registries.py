"""CNCF Distribution as the upstream: open, behind a password or behind bearer tokens. Its access log is the witness."""

from __future__ import annotations

import http.client
import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tests.e2e.processes import Process, eventually, free_port, listens
from tests.e2e.programs import environment, need, run
from tests.e2e.tokens import ISSUER, SigningKey, TokenServer
from tests.upstream.certificates import CA_FILE, KEY_FILE, client_tls

USERNAME, PASSWORD = "puller", "planted-s3cret"  # also what a test looks for in places where it must not be

KINDS = ("plain", "htpasswd", "bearer", "anonymous-bearer", "tls", "redirecting")
"""The ways in which an upstream may want to know who asks, may be verified, and may hand out blobs."""

_LOGGED = re.compile(r'\S+ \S+ \S+ \[[^]]*\] "(\S+) (\S+) \S+" (\d+) (\d+) "[^"]*" "([^"]*)"')
_CONTENT = re.compile(r"/(?:manifests|blobs)/")


@dataclass(frozen=True, slots=True)
class Asked:
    """One line of the access log."""

    method: str
    path: str
    status: int
    size: int
    """Bytes of the body that were sent."""
    agent: str

    @property
    def content(self) -> bool:
        """Whether this asked for a manifest, a tag or a blob, or about one."""
        return _CONTENT.search(self.path) is not None


class Witness(Protocol):
    """What an upstream says of what it was asked."""

    @property
    def log(self) -> Path | None:
        """Where it writes, if it does."""

    def asked(self) -> list[Asked]:
        """What was asked so far, in order."""

    def stop(self) -> None:
        """Ends it."""


class Registry:
    """A Distribution process (`program`) that serves what lies under `store`; with `tls` under our test certificate.

    With `proxy`, the URL of another registry, it is that one's pull-through cache and keeps it there.
    """

    def __init__(
        self,
        store: Path,
        home: Path,
        *,
        auth: Mapping[str, Any] | None = None,
        tls: bool = False,
        proxy: str | None = None,
        program: str = "docker-registry",
    ) -> None:
        need(program)
        self._port = free_port()
        self._tls = tls
        self.address = f"127.0.0.1:{self._port}"
        self.url = f"{'https' if tls else 'http'}://{self.address}"
        self.log = home / "registry.log"
        # JSON is YAML.
        config = {
            "version": 0.1,
            "log": {"level": "warn", "accesslog": {"disabled": False}},
            "storage": {"filesystem": {"rootdirectory": str(store)}, "delete": {"enabled": True}},
            "http": {
                "addr": self.address,
                "secret": "unused",
                **({"tls": {"certificate": str(CA_FILE), "key": str(KEY_FILE)}} if tls else {}),
            },
            **({"auth": auth} if auth else {}),
            **({"proxy": {"remoteurl": proxy}} if proxy else {}),
        }
        (home / "registry.yml").write_text(json.dumps(config))
        # registry3 would send its traces somewhere.
        env = environment(home) | {"OTEL_TRACES_EXPORTER": "none"}
        self._process = Process([program, "serve", home / "registry.yml"], log=self.log, env=env)
        self._process.wait_until(lambda: listens(self._port))

    def stop(self) -> None:
        self._process.stop()

    def asked(self) -> list[Asked]:
        """Every request that has been answered so far, in order.

        A line is written after its answer was sent, so this sends a request of its own and waits for that one's line.
        """
        agent = f"witness-{uuid.uuid4().hex}"
        connection = (
            http.client.HTTPSConnection(self.address, timeout=5, context=client_tls())
            if self._tls
            else http.client.HTTPConnection(self.address, timeout=5)
        )
        try:
            connection.request("GET", "/v2/", headers={"User-Agent": agent})
            connection.getresponse().read()
        finally:
            connection.close()
        if not eventually(lambda: any(line.agent == agent for line in self._lines())):
            raise TimeoutError("the registry does not write its access log")
        return [line for line in self._lines() if not line.agent.startswith("witness-")]

    def _lines(self) -> list[Asked]:
        found = (_LOGGED.match(line) for line in self.log.read_text().splitlines())
        return [Asked(line[1], line[2], int(line[3]), int(line[4]), line[5]) for line in found if line]


@dataclass(frozen=True, slots=True)
class Upstream:
    """A registry and what the mirror has to know about it."""

    registry: Witness
    settings: Mapping[str, str]
    """The mirror's `upstreams:` entry for it."""
    tokens: TokenServer | None = None

    @property
    def log(self) -> Path | None:
        return self.registry.log

    def stop(self) -> None:
        """Stops the registry, and the token server with it."""
        self.registry.stop()
        if self.tokens:
            self.tokens.stop()


def plain(store: Path, home: Path) -> Upstream:
    """An upstream that lets everybody read."""
    registry = Registry(store, home)
    return Upstream(registry, {"url": registry.url})


def tls(store: Path, home: Path) -> Upstream:
    """An upstream whose certificate only a CA of its own vouches for."""
    registry = Registry(store, home, tls=True)
    return Upstream(registry, {"url": registry.url, "ca_file": str(CA_FILE)})


def htpasswd(store: Path, home: Path) -> Upstream:
    """An upstream behind Basic authentication."""
    need("htpasswd")
    accounts = home / "accounts"
    accounts.write_text(run("htpasswd", "-Bbn", USERNAME, PASSWORD, home=home))
    registry = Registry(store, home, auth={"htpasswd": {"realm": "end-to-end", "path": str(accounts)}})
    return Upstream(registry, {"url": registry.url, **_credential(home)})


def bearer(store: Path, home: Path, key: SigningKey, *, anonymous: bool = False) -> Upstream:
    """An upstream that wants a token, which its token server gives to our user, or to anybody if `anonymous`."""
    tokens = TokenServer(free_port(), key, user=None if anonymous else (USERNAME, PASSWORD))
    auth = {
        "token": {
            "realm": f"http://{tokens.address}/token",
            "service": "end-to-end-registry",
            "issuer": ISSUER,
            "rootcertbundle": str(key.certificate),
        }
    }
    try:
        registry = Registry(store, home, auth=auth)
    except BaseException:
        tokens.stop()
        raise
    return Upstream(registry, {"url": registry.url, **({} if anonymous else _credential(home))}, tokens)


def _credential(home: Path) -> dict[str, str]:
    password = home / "password"
    password.write_text(f"{PASSWORD}\n")
    return {"username": USERNAME, "password_file": str(password)}

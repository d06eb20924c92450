"""Docker's config.json, which Kubernetes' dockerconfigjson secrets hold, too: who we are to a registry."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field

import msgspec

from mirror.config.names import parse_host

_LIMIT = 256 << 10
"""Bytes; thousands of registries fit in."""
_VERSIONS = ("", "v1", "v2")
"""Paths that mean the whole registry; any other one is of another tool's key for a part of it."""


class _Entry(msgspec.Struct):
    auth: str = ""
    username: str = ""
    password: str = ""
    identitytoken: str = ""


class _File(msgspec.Struct, rename={"helpers": "credHelpers", "store": "credsStore"}):
    auths: dict[str, _Entry | None] | None = None
    helpers: dict[str, str] | None = None
    store: str | None = None


_decode = msgspec.json.Decoder(_File).decode


@dataclass(frozen=True, slots=True)
class Login:
    """A user name and password, or an identity token, which is exchanged at the registry's token endpoint."""

    username: str
    password: str = field(repr=False)
    identity_token: str = field(default="", repr=False)


class DockerConfig:
    """The logins of a file, by registry."""

    def __init__(self, logins: dict[str, Login], helpers: dict[str, str], store: str) -> None:
        self._logins = logins
        self._helpers = helpers
        self._store = store

    @classmethod
    def parse(cls, content: bytes) -> DockerConfig:
        """Reads the file's content. Raises ValueError with a predicate that quotes nothing of it but registries."""
        if len(content) > _LIMIT:
            raise ValueError(f"is longer than {_LIMIT >> 10} KiB")
        try:
            file = _decode(content)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise ValueError("is not Docker's config.json") from None
        logins: dict[str, Login] = {}
        for key, entry in (file.auths or {}).items():
            host = _host_of(key)
            if host is not None and entry is not None and (login := _login(key, entry)) is not None:
                logins.setdefault(host, login)
        helpers = {host: name for key, name in (file.helpers or {}).items() if (host := _host_of(key))}
        return cls(logins, helpers, file.store or "")

    def login(self, host: str) -> Login | None:
        """Of the registry by its canonical name (host or host:port); None where the file has none."""
        return self._logins.get(host)

    def helper(self, host: str) -> str | None:
        """The credential helper that the file names for it; we run none."""
        return self._helpers.get(host) or self._store or None


def _host_of(key: str) -> str | None:
    """The registry that a key means: `ghcr.io`, `https://registry.corp:5000/v2/`, `https://index.docker.io/v1/`."""
    host, _, path = key.removeprefix("https://").removeprefix("http://").partition("/")
    if path.strip("/") not in _VERSIONS:
        return None
    try:
        return parse_host(host)
    except ValueError:
        return None


def _login(key: str, entry: _Entry) -> Login | None:
    username, password = entry.username, entry.password
    if entry.auth:
        try:
            username, colon, password = base64.b64decode(entry.auth, validate=True).decode().partition(":")
        except (binascii.Error, ValueError):
            colon = ""
        if not colon:
            raise ValueError(f"has an auth for {key} that is not the base64 of user:password")
    password = password.rstrip("\0")
    if not password and not entry.identitytoken:
        return None  # logged out, or left to a helper
    return Login(username, password, entry.identitytoken)

"""The credential that configuration gives us for an upstream; never one of a client."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from mirror.config import DockerConfig, UpstreamSettings
from mirror.oci.errors import CredentialRejected
from mirror.routing import UpstreamName

_FILE_LIMIT = 512 << 10
"""Bytes of a file that are read; more is none of ours."""


Version = tuple[int, int, int]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Credential:
    """A user name and a password, or an identity token; neither its repr nor its `identity` tells a secret."""

    username: str
    password: str = field(repr=False)
    identity_token: str = field(default="", repr=False)
    """What a token endpoint takes in place of the password (OAuth2's refresh token); registries do not."""

    @property
    def header(self) -> str | None:
        """The Authorization header of HTTP Basic (RFC 7617), in UTF-8; None without a password."""
        if self.identity_token and not self.password:
            return None
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode("ascii")

    @property
    def identity(self) -> str:
        """A key for what was obtained with it."""
        parts = f"{len(self.username)}:{self.username}:{self.password}"
        if self.identity_token:
            parts += f":{len(self.password)}:{self.identity_token}"
        return hashlib.sha256(parts.encode()).hexdigest()


class Credentials:
    """Reads credentials from settings; a `password_file` or `docker_config` again whenever it changes."""

    def __init__(self) -> None:
        self._passwords: dict[Path, tuple[Version, str]] = {}
        self._logins: dict[Path, tuple[Version, DockerConfig]] = {}
        self._pool = ThreadPoolExecutor(1, "credentials")  # the default executor is at the mercy of DNS servers

    async def get(self, settings: UpstreamSettings, name: UpstreamName) -> Credential | None:
        """The credential, or None where we ask anonymously. Raises CredentialRejected for a file we cannot use."""
        if settings.docker_config is not None:
            config = await self._run(self._read_logins, settings.docker_config)
            return _login(config, settings.docker_config, name)
        if settings.username is None:
            return None
        if settings.password_file is None:
            assert settings.password is not None
            return Credential(settings.username, settings.password.get_secret_value())
        return Credential(settings.username, await self._run(self._read_password, settings.password_file))

    async def close(self) -> None:
        """Lets go of the thread that reads."""
        self._pool.shutdown(wait=False)

    async def _run(self, read: Callable[[Path], T], path: Path) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, read, path)

    def _read_password(self, path: Path) -> str:
        return _read(path, "password_file", self._passwords, lambda content: content.decode().rstrip("\r\n"))

    def _read_logins(self, path: Path) -> DockerConfig:
        return _read(path, "docker_config", self._logins, DockerConfig.parse)


def _read(path: Path, key: str, known: dict[Path, tuple[Version, T]], parse: Callable[[bytes], T]) -> T:
    """What is in the file, parsed anew where the file is another one than last time. Raises CredentialRejected."""
    try:
        stat = path.stat()
        version = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if path in known and known[path][0] == version:
            return known[path][1]
        with path.open("rb") as file:
            parsed = parse(file.read(_FILE_LIMIT))
    except OSError as error:
        raise CredentialRejected(f"{key} {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise CredentialRejected(f"{key} {path} cannot be read: not UTF-8 text") from None
    except ValueError as error:
        raise CredentialRejected(f"{key} {path} {error}") from None
    known[path] = (version, parsed)
    return parsed


def _login(config: DockerConfig, path: Path, name: UpstreamName) -> Credential | None:
    login = config.login(name.host)
    if login is not None:
        return Credential(login.username, login.password, login.identity_token)
    helper = config.helper(name.host)
    if helper is None and "*" in name.entry:
        return None  # a pattern's other registries may be open
    missing = "has no login" if helper is None else f"leaves the login to docker-credential-{helper}"
    raise CredentialRejected(f"docker_config {path} {missing} for {name.host}; expected it in auths")

"""The credential that configuration gives us for an upstream; never one of a client."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from mirror.config import UpstreamSettings
from mirror.oci.errors import CredentialRejected

_FILE_LIMIT = 64 << 10


@dataclass(frozen=True, slots=True)
class Credential:
    """A user name and a password or token; neither its repr nor its `identity` tells the password."""

    username: str
    password: str = field(repr=False)

    @property
    def header(self) -> str:
        """The Authorization header of HTTP Basic (RFC 7617), in UTF-8."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode("ascii")

    @property
    def identity(self) -> str:
        """A key for what was obtained with it."""
        return hashlib.sha256(f"{len(self.username)}:{self.username}:{self.password}".encode()).hexdigest()


class Credentials:
    """Reads credentials from settings; a `password_file` again whenever it changes."""

    def __init__(self) -> None:
        self._files: dict[Path, tuple[tuple[int, int, int], str]] = {}
        self._pool = ThreadPoolExecutor(1, "credentials")  # the default executor is at the mercy of DNS servers

    async def get(self, settings: UpstreamSettings) -> Credential | None:
        """The credential, or None where we ask anonymously. Raises CredentialRejected for a file we cannot use."""
        if settings.username is None:
            return None
        if settings.password_file is None:
            assert settings.password is not None
            return Credential(settings.username, settings.password.get_secret_value())
        reading = asyncio.get_running_loop().run_in_executor(self._pool, self._read, settings.password_file)
        return Credential(settings.username, await reading)

    async def close(self) -> None:
        """Lets go of the thread that reads."""
        self._pool.shutdown(wait=False)

    def _read(self, path: Path) -> str:
        try:
            stat = path.stat()
            version = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
            known = self._files.get(path)
            if known is not None and known[0] == version:
                return known[1]
            with path.open(encoding="utf-8") as file:
                password = file.read(_FILE_LIMIT).rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            problem = getattr(error, "strerror", None) or "not UTF-8 text"
            raise CredentialRejected(f"password_file {path} cannot be read: {problem}") from None
        self._files[path] = (version, password)
        return password

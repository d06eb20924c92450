"""A node's file system, as it is mounted at some directory: whole files read, replaced at once, and removed."""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mirror.nodes.errors import NodeError, Unusable

LARGEST = 4 << 20
"""Bytes of a configuration file."""
_LOCK_SECONDS = 10.0
_LOOK_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Owner:
    """To whom a file belongs: its permission bits, user and group."""

    mode: int
    uid: int
    gid: int


OURS = Owner(0o644, 0, 0)


class Root:
    """Paths are those that the node itself sees, as `/etc/containerd/config.toml`.

    Everything raises NodeError, and Unusable for what is no plain file. Links are not followed below another root than
    `/`: what they name is not what the node sees.
    """

    def __init__(self, top: Path, *, patience: float = _LOCK_SECONDS) -> None:
        """`patience`: seconds that `locked` waits for others."""
        self._top = top
        self._patience = patience

    def exists(self, path: str) -> bool:
        """Whether there is anything of that name."""
        return os.path.lexists(self._at(path))

    def read(self, path: str) -> bytes | None:
        """The content of a plain file; None where there is none."""
        where = self._at(path)
        try:
            if where.is_symlink():
                raise Unusable(f"{path} is a symbolic link: only a file of its own can be replaced and put back")
            with where.open("rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise Unusable(f"{path} is no plain file")
                content = file.read(LARGEST + 1)
        except FileNotFoundError:
            return None
        except NotADirectoryError:
            raise Unusable(f"{path} cannot be there: a directory above it is a file") from None
        except IsADirectoryError:
            raise Unusable(f"{path} is a directory, not a file") from None
        except OSError as error:
            raise NodeError(f"{path} cannot be read: {error.strerror}") from error
        if len(content) > LARGEST:
            raise Unusable(f"{path} has more than {LARGEST:,} bytes: that is no configuration")
        return content

    def read_text(self, path: str) -> str | None:
        """The same of a text."""
        content = self.read(path)
        try:
            return None if content is None else content.decode()
        except UnicodeDecodeError:
            raise Unusable(f"{path} is no UTF-8 text") from None

    def owner(self, path: str) -> Owner:
        """Of a file that is there."""
        try:
            found = self._at(path).lstat()
        except OSError as error:
            raise NodeError(f"{path} cannot be looked at: {error.strerror}") from error
        return Owner(stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid)

    def missing_directories(self, path: str) -> list[str]:
        """The directories above `path` that are not there, the outermost first."""
        missing = []
        for above in Path(path).parents:
            if self._at(str(above)).is_dir():
                break
            missing.append(str(above))
        return missing[::-1]

    def make_directories(self, paths: list[str]) -> None:
        """Makes them, the outermost first."""
        for path in paths:
            where = self._at(path)
            try:
                where.mkdir(mode=0o755, exist_ok=True)
                _sync_directory(where.parent)
            except OSError as error:
                raise NodeError(f"{path} cannot be made: {error.strerror}") from error

    def remove_directories(self, paths: list[str]) -> None:
        """Removes those of them that are empty, the outermost last."""
        for path in reversed(paths):
            with suppress(OSError):
                self._at(path).rmdir()

    def write(self, path: str, content: bytes, owner: Owner) -> None:
        """Replaces a file, or makes it: whoever reads it sees the old one or the new one, also after a crash."""
        where = self._at(path)
        fresh = where.with_name(f".{where.name}.{secrets.token_hex(4)}")
        try:
            fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                with os.fdopen(fd, "wb") as file:
                    file.write(content)
                    if os.geteuid() == 0:
                        os.fchown(fd, owner.uid, owner.gid)
                    os.fchmod(fd, owner.mode)
                    file.flush()
                    os.fsync(fd)
                fresh.rename(where)
            except BaseException:
                with suppress(OSError):
                    fresh.unlink()
                raise
            _sync_directory(where.parent)
        except OSError as error:
            raise NodeError(f"{path} cannot be written: {error.strerror}") from error

    def remove(self, path: str) -> None:
        """Removes a file, if it is there."""
        where = self._at(path)
        try:
            where.unlink(missing_ok=True)
            _sync_directory(where.parent)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise NodeError(f"{path} cannot be removed: {error.strerror}") from error

    def names(self, directory: str) -> list[str]:
        """What a directory has, sorted; nothing where it is not there."""
        try:
            return sorted(path.name for path in self._at(directory).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise NodeError(f"{directory} cannot be read: {error.strerror}") from error

    @contextmanager
    def locked(self, directory: str) -> Iterator[None]:
        """Keeps other runs out of what is below a directory that is there."""
        try:
            fd = os.open(self._at(directory), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise NodeError(f"{directory} cannot be opened: {error.strerror}") from error
        try:
            deadline = time.monotonic() + self._patience
            while not _try_lock(fd):
                if time.monotonic() > deadline:
                    raise NodeError(f"another `mirror node-config` is at work in {directory}")
                time.sleep(_LOOK_SECONDS)
            yield
        finally:
            os.close(fd)

    def _at(self, path: str) -> Path:
        """Where a path of the node is for us."""
        parts = Path(path).parts[1:]
        if self._top != Path("/"):
            where = self._top
            for part in parts[:-1]:
                where /= part
                if where.is_symlink():
                    raise Unusable(
                        f"{path}: {where.relative_to(self._top)} is a symbolic link, which cannot be followed"
                    )
        return self._top.joinpath(*parts)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

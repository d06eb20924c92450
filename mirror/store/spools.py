"""A blob being written: an append-only file with a running hash, and what an earlier process left of one."""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mirror.oci.digest import Digest
from mirror.oci.errors import DigestInvalid
from mirror.store.files import SharedFile, write_some

_READ_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Leftover:
    """A spool of an earlier process; `origin` stands for the upstream host that its `size` bytes came from."""

    path: Path
    size: int
    origin: str


class Spool:
    """A file that grows, and the hash of what is in it. Its methods block; one call at a time writes."""

    def __init__(self, digest: Digest, path: Path, file: SharedFile, inode: int = 0) -> None:
        """`inode`: the file's number, for those who open it by its name."""
        self.inode = inode
        self.digest = digest
        self.path = path
        self.file = file
        self.hasher = digest.hasher()
        self.written = 0
        self._given_up = False
        self._counting = threading.Lock()

    def append(self, pieces: Sequence[bytes]) -> None:
        """Writes and hashes `pieces`. Raises OSError; then `written` still tells what is whole and hashed."""
        for piece in pieces:
            view = memoryview(piece)
            done = 0
            while done < len(view):
                done += write_some(self.file.files, self.file.fd, view[done:], self.written + done)
            if not self._count(piece):
                return

    def take_over(self) -> None:
        """Hashes what an earlier process left in the file. Raises OSError."""
        for piece in read_pieces(self.file):
            self._count(piece)

    def give_up(self) -> None:
        """`written` and `hasher` stay as they are from now on, whatever a thread that still writes may do."""
        with self._counting:
            self._given_up = True

    def read_all(self) -> bytes:
        """Everything written so far; only for small blobs."""
        return b"".join(read_pieces(self.file))

    def _count(self, piece: bytes) -> bool:
        with self._counting:
            if not self._given_up:
                self.hasher.update(piece)
                self.written += len(piece)
            return not self._given_up


def read_pieces(file: SharedFile) -> Iterator[bytes]:
    """The file's bytes from its start, in pieces. Blocks. Raises OSError."""
    offset = 0
    while piece := file.files.read(file.fd, _READ_PIECE, offset):
        offset += len(piece)
        yield piece


def spool_name(digest: Digest, host: str) -> str:
    """A name that no other spool has, and that tells a later process what is inside."""
    return f"{digest.algorithm}-{digest.hex}.{origin_of(host)}.{secrets.token_hex(4)}"


def parse_spool_name(name: str) -> tuple[Digest | None, str]:
    """The digest and the origin that a spool's name tells; None for a file that is not one of ours."""
    encoded, _, rest = name.partition(".")
    algorithm, _, hex_digits = encoded.partition("-")
    try:
        return Digest.parse(f"{algorithm}:{hex_digits}"), rest.partition(".")[0]
    except DigestInvalid:
        return None, ""


def origin_of(host: str) -> str:
    """A short name for an upstream host that fits into a file name; only its equality matters."""
    return hashlib.sha256(host.encode()).hexdigest()[:16]

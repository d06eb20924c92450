"""A record behind its checksum, since SQLite has none: a rotten bit would name another digest, or a wrong size."""

from __future__ import annotations

import zlib

from mirror.oci.errors import StorageError

_BYTES = 4


def seal(key: str, value: bytes) -> bytes:
    """What is stored under `key` for `value`."""
    return _checksum(key, value) + value


def unseal(key: str, sealed: bytes | None) -> bytes | None:
    """The value; None for None. Raises StorageError where it is not as it was written, or stands under another key."""
    if sealed is None:
        return None
    value = sealed[_BYTES:]
    if sealed[:_BYTES] != _checksum(key, value):
        raise StorageError("a record is not as it was written")
    return value


def _checksum(key: str, value: bytes) -> bytes:
    return zlib.crc32(value, zlib.crc32(key.encode())).to_bytes(_BYTES, "big")

"""Content digests: `algorithm:hex`, as the OCI image specification has them."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from mirror.oci.errors import DigestInvalid

_HEX_LENGTH = {"sha256": 64, "sha512": 128}
_GRAMMAR = re.compile(r"([a-z0-9]+(?:[+._-][a-z0-9]+)*):([a-zA-Z0-9=_-]+)")


class Hasher(Protocol):
    """What we use of hashlib's objects; `copy` lets a reader go on from where a shared hash stood."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None: ...
    def hexdigest(self) -> str: ...
    def copy(self) -> Hasher: ...


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A digest of an algorithm that we can verify: sha256 or sha512."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Reads `sha256:<64 hex>` or `sha512:<128 hex>`, lower case. Raises DigestInvalid."""
        return _parse(text)

    @classmethod
    def of(cls, data: bytes, algorithm: str = "sha256") -> Digest:
        """The digest of `data`."""
        return cls(algorithm, hashlib.new(algorithm, data).hexdigest())

    def hasher(self) -> Hasher:
        """A fresh hash of this digest's algorithm."""
        return hashlib.new(self.algorithm)

    def matches(self, data: bytes) -> bool:
        """Whether `data` has this digest."""
        return hashlib.new(self.algorithm, data).hexdigest() == self.hex

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


@lru_cache(maxsize=16_384)
def _parse(text: str) -> Digest:
    """Serving one manifest means reading the digest of every layer: the same few, again and again."""
    match = _GRAMMAR.fullmatch(text)
    if match is None:
        raise DigestInvalid(f"not a digest: {text[:160]!r}; expected algorithm:hex")
    algorithm, encoded = match.groups()
    length = _HEX_LENGTH.get(algorithm)
    if length is None:
        raise DigestInvalid(f"digest algorithm {algorithm[:40]!r} is not supported; expected sha256 or sha512")
    if len(encoded) != length or not set(encoded) <= set("0123456789abcdef"):
        raise DigestInvalid(f"a {algorithm} digest has {length} lower-case hex digits, not {encoded[:160]!r}")
    return Digest(algorithm, encoded)

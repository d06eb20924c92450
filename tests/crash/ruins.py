"""What a dead mirror has left on the disk, read without its help."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mirror.oci.digest import Digest
from mirror.store.spools import parse_spool_name

_RESUMABLE = 1 << 20
"""From how many bytes on a spool is kept, as docs/architecture.md says."""


@dataclass(frozen=True, slots=True)
class Ruins:
    """Blobs by digest, each with its size, and others on their way."""

    blobs: dict[Digest, int]
    spools: dict[Digest, tuple[Path, int]]
    """The file, and how many bytes are in it, of each that the next process will go on with."""
    noted: list[str]
    """Lines of `unsettled`."""
    wrong: list[str]
    """Files under the name of a digest that their bytes do not have, and files that should not be there."""


def inspect(data: Path) -> Ruins:
    """Reads and hashes everything under `data`."""
    blobs: dict[Digest, int] = {}
    wrong: list[str] = []
    for path in _files(data / "blobs"):
        algorithm, prefix, name = path.relative_to(data / "blobs").parts
        content = path.read_bytes()
        blobs[Digest(algorithm, name)] = len(content)
        if prefix != name[:2] or hashlib.new(algorithm, content).hexdigest() != name:
            wrong.append(str(path))
    spools: dict[Digest, tuple[Path, int]] = {}
    several: set[Digest] = set()
    for path in _files(data / "spool"):
        digest, _ = parse_spool_name(path.name)
        if digest is not None and path.stat().st_size >= _RESUMABLE and digest not in blobs:
            several |= {digest} & spools.keys()
            spools[digest] = (path, path.stat().st_size)
        elif digest is None and path.name != "probe":
            wrong.append(str(path))
    for digest in several:  # the next process takes either
        del spools[digest]
    journal = data / "unsettled"
    return Ruins(blobs, spools, journal.read_text().split() if journal.exists() else [], wrong)


def size_of(data: Path) -> int:
    """The lengths of all files, added up. Spools last: one that becomes a blob meanwhile must not count twice."""
    total = 0
    for top in sorted(data.glob("*"), key=lambda path: path.name == "spool"):
        for path in [top, *top.rglob("*")]:
            try:
                total += path.stat().st_size if path.is_file() else 0
            except FileNotFoundError:
                continue
    return total


def _files(top: Path) -> Iterable[Path]:
    return [path for path in top.rglob("*") if path.is_file()]

"""What bad disks, crashes and people do to the files of a database."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path


def holes(path: Path, chance: random.Random) -> None:
    """Some bytes changed, in the database or its log."""
    for file in (path / "cache.db", path / "cache.db-wal"):
        data = bytearray(file.read_bytes())
        for _ in range(len(data) // 2000):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        file.write_bytes(data)


def zeros(path: Path, chance: random.Random) -> None:
    """Pages that were never written before the power went."""
    for file in (path / "cache.db", path / "cache.db-wal"):
        data = bytearray(file.read_bytes())
        for _ in range(max(1, len(data) // 40_000)):
            page = chance.randrange(max(1, len(data) // 4096)) * 4096
            data[page : page + 4096] = bytes(len(data[page : page + 4096]))
        file.write_bytes(data)


def half_a_log(path: Path, chance: random.Random) -> None:
    """The end of it is missing."""
    os.truncate(path / "cache.db-wal", chance.randrange((path / "cache.db-wal").stat().st_size))


def half_a_database(path: Path, chance: random.Random) -> None:
    """The end of it is missing."""
    os.truncate(path / "cache.db", chance.randrange((path / "cache.db").stat().st_size))


def no_log(path: Path, _: random.Random) -> None:
    """What was last written is gone."""
    (path / "cache.db-wal").unlink()


def no_index(path: Path, _: random.Random) -> None:
    """The shared memory of the log is gone."""
    (path / "cache.db-shm").unlink()


def no_database(path: Path, _: random.Random) -> None:
    """A log without its database."""
    (path / "cache.db").unlink()


Damage = Callable[[Path, random.Random], None]
DAMAGES: list[Damage] = [holes, zeros, half_a_log, half_a_database, no_log, no_index, no_database]

"""What a power loss, or worse, makes of SQLite's files. What the log holds since the last checkpoint was not synced."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

_HEAD = 32
_FRAME = 24 + 4096
_PAGE = 4096


def tear_log(records: Path, choice: random.Random) -> str:
    """Loses some of the log, as a power loss may; returns what was done."""
    log = records / "cache.db-wal"
    data = bytearray(log.read_bytes())
    frames = max(0, len(data) - _HEAD) // _FRAME
    how = choice.choice(["whole", "cut", "emptied", "zeroed", "old"])
    if how == "cut":
        del data[choice.randint(0, len(data)) :]
    elif how == "emptied":
        data.clear()
    elif how != "whole":
        for frame in choice.sample(range(frames), choice.randint(0, frames)):
            start = _HEAD + frame * _FRAME + choice.randrange(0, _FRAME, 512)
            data[start : start + 512] = bytes(512) if how == "zeroed" else choice.randbytes(512)
    log.write_bytes(data)
    return f"log {how}"


def spoil_book(records: Path, choice: random.Random) -> str:
    """Does to the database what no power loss should, but disks do; returns what was done."""
    book = records / "cache.db"
    data = bytearray(book.read_bytes())
    pages = max(1, len(data) // _PAGE)
    at = choice.randrange(pages) * _PAGE
    ways: dict[str, Callable[[], object]] = {
        "gone": book.unlink,
        "empty": lambda: book.write_bytes(b""),
        "cut": lambda: book.write_bytes(data[: choice.randint(0, len(data))]),
        "zeroed page": lambda: book.write_bytes(data[:at] + bytes(_PAGE) + data[at + _PAGE :]),
        "strange page": lambda: book.write_bytes(data[:at] + choice.randbytes(_PAGE) + data[at + _PAGE :]),
        "exchanged pages": lambda: book.write_bytes(_exchanged(data, at, choice.randrange(pages) * _PAGE)),
        "flipped bit": lambda: book.write_bytes(_flipped(data, choice.randrange(len(data) * 8))),
    }
    how = choice.choice(sorted(ways))
    ways[how]()
    return f"book {how}"


def _exchanged(data: bytearray, one: int, other: int) -> bytes:
    pages = bytearray(data)
    pages[one : one + _PAGE], pages[other : other + _PAGE] = data[other : other + _PAGE], data[one : one + _PAGE]
    return bytes(pages)


def _flipped(data: bytearray, bit: int) -> bytes:
    flipped = bytearray(data)
    flipped[bit // 8] ^= 1 << bit % 8
    return bytes(flipped)

"""Sizes, rates, durations and shares as people write them: text to numbers and back.

Every parser raises ValueError whose message is the noun phrase of what was expected ("a size such as 20GiB …").
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

_SIZE_UNITS = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "pb": 10**15,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40, "pib": 2**50,
}  # fmt: skip
_SIZE = re.compile(r"(\d{1,19}(?:\.\d{1,9})?) ?([kmgtp]?i?b|)", re.ASCII | re.IGNORECASE)
_SIZE_LIMIT = 2**63 - 1
_WRITTEN_SIZES = tuple((unit, factor) for unit, factor in (
    ("PiB", 2**50), ("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10),
    ("PB", 10**15), ("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3),
))  # fmt: skip

_NUMBER = r"\d{1,12}(?:\.\d{1,9})?"
_DURATION_UNITS = {
    "d": Decimal(86400), "h": Decimal(3600), "m": Decimal(60), "s": Decimal(1), "ms": Decimal("0.001")
}  # fmt: skip
_DURATION = re.compile("".join(rf"(?:({_NUMBER}){unit})?" for unit in _DURATION_UNITS), re.ASCII)
_DURATION_LIMIT = 3650 * 86400
_BARE_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?", re.ASCII)
_PERCENTAGE = re.compile(r"(\d{1,3}(?:\.\d{1,9})?) ?%", re.ASCII)

_A_SIZE = "a size such as 20GiB, 500MB or a whole number of bytes"
_A_RATE = "a rate such as 8KiB/s or 10MB/s"
_A_DURATION = "a duration such as 500ms, 30s, 5m, 1h30m or 7d"
_A_FRACTION = "a share such as 90% or 0.9"


@dataclass(frozen=True, slots=True)
class Amount:
    """A part of something: a number of bytes, or a fraction (0..1) of the whole."""

    size: int | None = None
    fraction: float | None = None

    def of(self, total: int) -> int:
        """The amount in bytes, where the whole has `total` bytes."""
        if self.size is not None:
            return self.size
        return int(total * (self.fraction or 0.0))

    def __str__(self) -> str:
        return format_fraction(self.fraction) if self.fraction is not None else format_size(self.size or 0)


def parse_size(value: object) -> int:
    """Bytes of `20GiB`, `500MB`, `1.5 TiB` or a whole number of bytes."""
    if isinstance(value, int) and not isinstance(value, bool):
        number, unit = str(value), ""
    else:
        match = _SIZE.fullmatch(value) if isinstance(value, str) else None
        # "ib" alone is no unit, and half a byte is a missing unit.
        if match is None or match[2].lower() not in _SIZE_UNITS or ("." in match[1] and not match[2]):
            raise ValueError(_A_SIZE)
        number, unit = match[1], match[2].lower()
    size = int(Decimal(number) * _SIZE_UNITS[unit])
    if not 0 <= size <= _SIZE_LIMIT:
        raise ValueError(f"{_A_SIZE}, not negative and below 8EiB")
    return size


def format_size(size: int) -> str:
    """`size` in the largest unit that holds it exactly, binary units before decimal ones."""
    for unit, factor in _WRITTEN_SIZES:
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return f"{size}B"


def parse_rate(value: object) -> int:
    """Bytes a second of `8KiB/s`; 0 needs no unit."""
    if value in (0, "0") and not isinstance(value, bool):
        return 0
    if not isinstance(value, str) or not value.lower().endswith("/s"):
        raise ValueError(_A_RATE)
    size = value[:-2].rstrip()
    if _BARE_NUMBER.fullmatch(size):
        raise ValueError(f"{_A_RATE}, with its unit")
    try:
        return parse_size(size)
    except ValueError:
        raise ValueError(_A_RATE) from None


def format_rate(rate: int) -> str:
    """`rate` in bytes a second, as `parse_rate` reads it."""
    return f"{format_size(rate)}/s"


def parse_duration(value: object) -> float:
    """Seconds of `500ms`, `30s`, `5m`, `1h30m` or `7d`, larger units first; 0 needs no unit, other numbers do."""
    text = "" if isinstance(value, bool) else str(value)
    if _BARE_NUMBER.fullmatch(text):
        if float(text) == 0:
            return 0.0
        raise ValueError(f"{_A_DURATION}; a bare number does not say its unit")
    match = _DURATION.fullmatch(text)
    if match is None or not text:
        raise ValueError(_A_DURATION)
    parts = zip(match.groups(), _DURATION_UNITS.values(), strict=True)
    seconds = float(sum((Decimal(number) * unit for number, unit in parts if number), Decimal(0)))
    if seconds > _DURATION_LIMIT:
        raise ValueError(f"{_A_DURATION}, and no longer than {_DURATION_LIMIT // 86400}d")
    return seconds


def format_duration(seconds: float) -> str:
    """`seconds` as `parse_duration` reads it, to a microsecond."""
    left = Decimal(round(seconds * 1_000_000)) / 1_000_000
    text = ""
    for unit, length in _DURATION_UNITS.items():
        count, left = (left / length, Decimal(0)) if unit == "ms" else divmod(left, length)
        if count:
            text += f"{count.normalize():f}{unit}"
    return text or "0s"


def parse_fraction(value: object) -> float:
    """A number 0..1 of `90%` or `0.9`."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value)
    elif isinstance(value, str) and (match := _PERCENTAGE.fullmatch(value)):
        number = float(Decimal(match[1]) / 100)
    elif isinstance(value, str) and _BARE_NUMBER.fullmatch(value):
        number = float(value)
    else:
        raise ValueError(_A_FRACTION)
    if not 0 <= number <= 1:
        raise ValueError(f"{_A_FRACTION}, between 0% and 100%")
    return number


def format_fraction(fraction: float) -> str:
    """`fraction` (0..1) as a percentage."""
    return f"{(Decimal(str(fraction)) * 100).normalize():f}%"


def parse_amount(value: object) -> Amount:
    """A size (`10GiB`) or a percentage of the whole (`5%`)."""
    if isinstance(value, Amount):
        return value
    try:
        if isinstance(value, str) and value.rstrip().endswith("%"):
            return Amount(fraction=parse_fraction(value))
        return Amount(size=parse_size(value))
    except ValueError:
        raise ValueError("a size such as 10GiB or a percentage such as 5%") from None

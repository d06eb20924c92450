"""The kinds of values that settings have: how each is read, checked, and shown again."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, PlainSerializer, PlainValidator, ValidationInfo

from mirror.config import units
from mirror.config.front import Network, parse_base_path, parse_network
from mirror.config.names import parse_entry, parse_host

WRITTEN = "written"
"""Validation context of values that an operator wrote: there durations and rates must carry their unit."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen: a host name or IP address, and a TCP port (0 = any free one)."""

    host: str
    port: int

    @classmethod
    def parse(cls, value: object) -> Address:
        """Reads `127.0.0.1:5000`, `mirror.corp:5000`, `[::1]:5000`. Raises ValueError with what was expected."""
        if isinstance(value, cls):
            return value
        expected = "an address as host:port, such as 127.0.0.1:5000 or [::]:5000"
        host, _, port = _text(value).rpartition(":")
        if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
            raise ValueError(expected)
        try:
            parse_host(f"{host}:1")
        except ValueError:
            raise ValueError(expected) from None
        return cls(host.removeprefix("[").removesuffix("]"), int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _text(value: object) -> str:
    """`value` if it is text, else the empty text, which no parser accepts."""
    return value if isinstance(value, str) else ""


def _quantity(parse: Callable[[object], _T], plain: Callable[[float], _T]) -> PlainValidator:
    """A number with a unit: plain ones are taken from code, and from an operator only where `parse` allows it."""

    def validate(value: object, info: ValidationInfo) -> _T:
        if info.context != WRITTEN and isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
            return plain(value)
        return parse(value)

    return PlainValidator(validate)


def _positive(noun: str) -> AfterValidator:
    def validate(value: float) -> float:
        if value <= 0:
            raise ValueError(f"{noun} above 0")
        return value

    return AfterValidator(validate)


def _shown_as(form: Callable[[Any], str]) -> PlainSerializer:
    return PlainSerializer(form, return_type=str, when_used="json")


def _parse_count(value: object) -> int:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else _text(value)
    if not (text.isascii() and text.isdigit() and 0 < len(text) <= 7 and int(text) > 0):
        raise ValueError("a whole number from 1 to 9999999")
    return int(text)


def _parse_workers(value: object) -> int:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else _text(value)
    if not (text.isascii() and text.isdigit() and len(text) <= 3 and int(text) <= 256):
        raise ValueError("a whole number from 0 (one for each CPU) to 256")
    return int(text)


def _parse_host(value: object) -> str:
    return parse_host(_text(value))


def _check_entry(value: str) -> str:
    """Leaves `value` as it is: an error inside the entry is reported under the key that the operator wrote."""
    parse_entry(value)
    return value


def _parse_path(value: object) -> Path:
    path = str(value) if isinstance(value, Path) else _text(value)
    if not path or "\0" in path:
        raise ValueError("a path as text")
    return Path(path)


def _show_path(path: Path) -> str:
    return os.path.join(".", path)  # noqa: PTH118 - pathlib drops the leading dot that tells a relative path


def _check_username(value: str) -> str:
    if not value or ":" in value:
        raise ValueError("a user name, not empty and without a colon")
    return value


def _parse_url(value: object) -> str:
    expected = "an http:// or https:// URL with a host, such as https://registry.corp:5000"
    url = _text(value)
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError(expected)
    try:
        parts = urlsplit(url)
        port_is_valid = parts.port != 0
    except ValueError:
        raise ValueError(expected) from None
    if "@" in parts.netloc:
        raise ValueError("a URL without credentials; they belong in username and password_file")
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_valid:
        raise ValueError(expected)
    if "?" in url or "#" in url:
        raise ValueError("a URL without a query or fragment")
    path = parts.path.rstrip("/")
    if path.endswith("/v2"):
        raise ValueError("a URL without the final /v2, which is added to every request")
    return f"{parts.scheme}://{parts.netloc.lower()}{path}"


def _parse_public_url(value: object) -> str:
    if "@" in _text(value):
        raise ValueError("a URL without credentials")
    url = _parse_url(value)
    try:
        parse_base_path(urlsplit(url).path)
    except ValueError as exc:
        raise ValueError(f"a URL whose path is {exc}") from None
    return url


Count = Annotated[int, PlainValidator(_parse_count)]
Workers = Annotated[int, PlainValidator(_parse_workers)]
Size = Annotated[int, _quantity(units.parse_size, int), _shown_as(units.format_size)]
Rate = Annotated[int, _quantity(units.parse_rate, int), _shown_as(units.format_rate)]
Duration = Annotated[float, _quantity(units.parse_duration, float), _shown_as(units.format_duration)]
Fraction = Annotated[float, PlainValidator(units.parse_fraction), _shown_as(units.format_fraction)]
PositiveSize = Annotated[Size, _positive("a size")]
PositiveDuration = Annotated[Duration, _positive("a duration")]
PositiveFraction = Annotated[Fraction, _positive("a share")]
SizeOrShare = Annotated[units.Amount, PlainValidator(units.parse_amount), _shown_as(str)]
Listen = Annotated[Address, PlainValidator(Address.parse), _shown_as(str)]
FilePath = Annotated[Path, PlainValidator(_parse_path), _shown_as(_show_path)]
Username = Annotated[str, AfterValidator(_check_username)]
Url = Annotated[str, PlainValidator(_parse_url)]
PublicUrl = Annotated[str, PlainValidator(_parse_public_url)]
Host = Annotated[str, PlainValidator(_parse_host)]
ProxyNetwork = Annotated[Network, PlainValidator(parse_network), _shown_as(str)]
EntryName = Annotated[str, AfterValidator(_check_entry)]

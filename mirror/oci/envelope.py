"""The error envelope of the distribution specification, as registries send it: read best-effort, never trusted."""

from __future__ import annotations

import msgspec


class _Error(msgspec.Struct):
    code: str = ""


class _Envelope(msgspec.Struct):
    errors: list[_Error] = []


_decode = msgspec.json.Decoder(_Envelope).decode


def error_codes(body: bytes) -> frozenset[str]:
    """The codes that an error's body names (`NAME_UNKNOWN`); empty for any other body. Raises nothing."""
    try:
        return frozenset(error.code for error in _decode(body).errors if error.code)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return frozenset()

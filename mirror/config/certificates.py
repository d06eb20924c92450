"""Certificates and keys in PEM files: what is wrong with them, and when they end."""

from __future__ import annotations

import re
import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_KEY = re.compile(r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----")
_PEM_LIMIT = 1 << 20
_MISMATCHES = frozenset({"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"})
"""OpenSSL's reasons; the last one is what it says of a key of another kind."""
_VERSION, _UTC_TIME, _GENERALIZED_TIME = b"\xa0", b"\x17", b"\x18"
"""Tags of DER."""


class Encrypted(ValueError):
    """A private key that needs a passphrase."""


def refuse_passphrase() -> NoReturn:
    """For `load_cert_chain`, which would ask the terminal. Raises Encrypted."""
    raise Encrypted("the key is encrypted")


def certificate_ends(path: Path) -> float:
    """When the first certificate of a PEM file ends, in seconds since the epoch.

    Raises OSError where it cannot be read, and ValueError where there is none that can be understood.
    """
    found = _CERTIFICATE.search(_read(path))
    if found is None:
        raise ValueError("no certificate")
    return _not_after(ssl.PEM_cert_to_DER_cert(found[0]))


def wrong_certificate(path: Path) -> str | None:
    """What a file holds in place of a certificate, if so. Raises OSError where it cannot be read."""
    text = _read(path)
    if _CERTIFICATE.search(text) is None:
        return "holds no certificate"
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=text)
        certificate_ends(path)
    except (ssl.SSLError, ValueError):
        return "holds a damaged certificate"
    return None


def wrong_key(path: Path, certificate: Path) -> str | None:
    """What a file holds in place of the key of the first of the `certificate`s, which are right, if so.

    Raises OSError where it cannot be read.
    """
    if _KEY.search(_read(path)) is None:
        return "holds no private key"
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, path, password=refuse_passphrase)
    except Encrypted:
        return "holds an encrypted key"
    except ssl.SSLError as error:
        if error.reason in _MISMATCHES:
            return "holds the key of another certificate"
        return f"holds a key that cannot be used ({error.reason or 'damaged'})"
    return None


def _read(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_PEM_LIMIT).decode("ascii", "replace")


# As much of X.509 as lies before the end of validity: the standard library decodes what it has verified, which leaves
# out what has expired.


def _not_after(der: bytes) -> float:
    """The end of a certificate's validity. Raises ValueError for what is none."""
    certificate, _ = _element(der)
    signed, _ = _element(certificate)
    if signed[:1] == _VERSION:
        _, signed = _element(signed)
    for _ in ("serial number", "signature algorithm", "issuer"):
        _, signed = _element(signed)
    validity, _ = _element(signed)
    _, not_after = _element(validity)
    text, _ = _element(not_after)
    return _moment(not_after[:1], text.decode("ascii"))


def _element(data: bytes) -> tuple[bytes, bytes]:
    """What is in the first element of DER, and what comes after it."""
    if len(data) < 2:
        raise ValueError("the certificate is cut off")
    length, begin = data[1], 2
    if length & 0x80:
        begin += length & 0x7F
        length = int.from_bytes(data[2:begin], "big")
    if len(data) < begin + length:
        raise ValueError("the certificate is cut off")
    return data[begin : begin + length], data[begin + length :]


def _moment(tag: bytes, text: str) -> float:
    if tag == _UTC_TIME:  # two digits of the year, of the century around 2000 (RFC 5280 §4.1.2.5.1)
        text = ("19" if text[:2] >= "50" else "20") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError("the certificate's end is no time")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()

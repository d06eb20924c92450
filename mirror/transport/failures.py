"""The one place where errors of aiohttp and the operating system become ours."""

from __future__ import annotations

import errno

import aiohttp

from mirror.oci.errors import UpstreamTimeout, UpstreamUnavailable
from mirror.transport.addresses import PrivateAddress

RETRIED = frozenset({"unreachable", "dns", "reset", "timeout", "status", "stall", "throttled", "breaker", "local"})
"""Reasons after which asking again may help. Not tls: a certificate does not get better within seconds."""

CAUGHT = (aiohttp.ClientError, OSError, ValueError)
"""What a send or a read may raise besides TimeoutError, which is an OSError; ValueError for what cannot be sent."""


_OURS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL})
"""What this process or machine has run out of; it says nothing of the host."""


class RedirectExpired(UpstreamUnavailable):
    """A redirect's target refused what the upstream had sent us to it for; a fresh redirect may do better."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="redirect")


def translate(error: Exception, asked: str, led_by: str = "redirect") -> UpstreamUnavailable:
    """The error to raise for a request called `asked` in messages; `led_by` is the reason of a guard.

    Raise it `from None`: aiohttp's errors quote URLs, which may be signed, and what the peer sent.
    """
    if isinstance(error, TimeoutError):
        return UpstreamTimeout(f"{asked}: no answer in time")
    if isinstance(error, aiohttp.ClientConnectorError) and error.os_error.errno in _OURS:
        return UpstreamUnavailable(f"{asked}: cannot connect: {error.os_error.strerror}", reason="local")
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        if isinstance(error.os_error, PrivateAddress):
            return UpstreamUnavailable(f"{asked}: {error.os_error}", reason=led_by)
        return UpstreamUnavailable(f"{asked}: the host name does not resolve", reason="dns")
    if isinstance(error, aiohttp.ClientSSLError):
        return UpstreamUnavailable(f"{asked}: TLS failed: {_tls(error)}", reason="tls")
    if isinstance(error, aiohttp.ClientConnectorError):
        return UpstreamUnavailable(f"{asked}: cannot connect: {error.os_error.strerror or 'unknown'}")
    if isinstance(error, (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, OSError)):
        return UpstreamUnavailable(f"{asked}: the connection broke", reason="reset")
    if isinstance(error, ValueError):
        return UpstreamUnavailable(f"{asked}: not a URL that can be asked", reason=led_by)
    return UpstreamUnavailable(f"{asked}: not an HTTP answer we can use ({type(error).__name__})", reason="protocol")


def _tls(error: aiohttp.ClientSSLError) -> str:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        certificate = error.certificate_error
        return str(getattr(certificate, "verify_message", "") or "the certificate does not verify")
    return getattr(error.os_error, "reason", None) or "no handshake"

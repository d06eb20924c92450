"""What the registry port shows of itself over TLS, and whom it then serves."""

from __future__ import annotations

import ssl

from mirror.config import Tls, certificate_ends
from mirror.config.certificates import refuse_passphrase

_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


def read_files(tls: Tls) -> tuple[ssl.SSLContext | None, float | None]:
    """What begins TLS with a client, and when its certificate ends, in seconds since the epoch. Raises as below."""
    return server_context(tls), certificate_ends(tls.certificate) if tls.certificate is not None else None


def server_context(tls: Tls) -> ssl.SSLContext | None:
    """What begins TLS with a client, from the files as they are now; None where there is to be none.

    Raises OSError (ssl.SSLError included) and ValueError for files that `mirror.config` would refuse.
    """
    if tls.certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.minimum_version = _VERSIONS[tls.minimum]
    context.load_cert_chain(tls.certificate, tls.key, password=refuse_passphrase)
    context.set_alpn_protocols(["http/1.1"])
    if tls.client_ca is not None:
        context.load_verify_locations(cafile=tls.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context

"""Certificates for mirrors that speak TLS, and for their clients; in files, so that tests need no other program.

`ca.pem` is the authority of all of them, and its key is gone. `server.pem` and `renewed.pem` are for 127.0.0.1, ::1,
localhost and mirror.test, `client.pem` is a client's, all until 2126; `expired.pem` is for `server.key`, until 2021.
`encrypted.key` is `server.key` with the passphrase `passphrase`. The keys protect nothing.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from mirror.config import Tls

HERE = Path(__file__).parent
CA = HERE / "ca.pem"
SERVER = Tls(certificate=HERE / "server.pem", key=HERE / "server.key")
MUTUAL = SERVER.model_copy(update={"client_ca": CA})
CLIENT = (HERE / "client.pem", HERE / "client.key")


def client_tls(*, certificate: bool = False) -> ssl.SSLContext:
    """What a client needs to trust the mirrors, and with `certificate` to be trusted by them."""
    context = ssl.create_default_context(cafile=CA)
    if certificate:
        context.load_cert_chain(*CLIENT)
    return context

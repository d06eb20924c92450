"""A certificate for loopback, so that tests speak TLS without any other program.

`loopback.pem` is self-signed, for 127.0.0.1 and localhost, valid until 2126; its key lies beside it and
protects nothing.
It was made by `openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 36500`.
"""

from __future__ import annotations

import ssl
from pathlib import Path

CA_FILE = Path(__file__).with_name("loopback.pem")
KEY_FILE = Path(__file__).with_name("loopback.key")


def server_tls() -> ssl.SSLContext:
    """What a server on loopback presents."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CA_FILE, KEY_FILE)
    return context


def client_tls() -> ssl.SSLContext:
    """What a client needs to trust it."""
    return ssl.create_default_context(cafile=str(CA_FILE))

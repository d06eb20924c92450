"""A certificate authority for the names that a cluster knows registries by."""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from pathlib import Path

from tests.e2e.programs import run


class Authority:
    """One certificate for all the names; whoever trusts `ca` trusts it.

    As companies have them: without the key usage that Python 3.13 wants by itself.
    """

    def __init__(self, home: Path, names: Iterable[str]) -> None:
        self.ca = home / "ca.crt"
        ca_key, self._key, request, self._certificate, extensions = (
            home / name for name in ("ca.key", "tls.key", "tls.csr", "tls.crt", "tls.ext")
        )
        extensions.write_text(f"subjectAltName={','.join(f'DNS:{name}' for name in names)}\n")
        new = ("openssl", "req", "-newkey", "rsa:2048", "-nodes")
        run(*new, "-x509", "-days", "2", "-subj", "/CN=ca", "-keyout", ca_key, "-out", self.ca, home=home)
        run(*new, "-subj", "/CN=registries", "-keyout", self._key, "-out", request, home=home)
        run(
            "openssl", "x509", "-req", "-days", "2", "-in", request,
            "-CA", self.ca, "-CAkey", ca_key, "-CAcreateserial",
            "-extfile", extensions, "-out", self._certificate,
            home=home,
        )  # fmt: skip

    def server(self) -> ssl.SSLContext:
        """What a server by one of the names presents."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._certificate, self._key)
        return context

"""A token endpoint as Distribution wants it: Basic in, a signed JWT out. It keeps count of what it was asked."""

from __future__ import annotations

import base64
import functools
import json
import subprocess
import threading
import time
import uuid
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.e2e.programs import PATH, need, run

ISSUER = "end-to-end"
_LIFETIME = 300  # seconds


@dataclass(frozen=True, slots=True)
class SigningKey:
    """An RSA key and the certificate that the registry trusts."""

    key: Path
    certificate: Path

    @classmethod
    def make(cls, directory: Path) -> SigningKey:
        need("openssl")
        made = cls(directory / "token.key", directory / "token.crt")
        run(
            "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=token",
            "-keyout", made.key, "-out", made.certificate,
            home=directory,
        )  # fmt: skip
        return made

    def sign(self, claims: dict[str, Any]) -> str:
        """A JWT (RS256) that carries its certificate, by which Distribution 2.8 finds the key."""
        certificate = "".join(line for line in self.certificate.read_text().splitlines() if "CERTIFICATE" not in line)
        header = {"alg": "RS256", "typ": "JWT", "x5c": [certificate]}
        signed = b".".join(_base64url(json.dumps(part).encode()) for part in (header, claims))
        signature = subprocess.run(
            ["openssl", "dgst", "-sha256", "-sign", self.key],
            input=signed, stdout=subprocess.PIPE, check=True, env={"PATH": PATH},
        ).stdout  # fmt: skip
        return b".".join((signed, _base64url(signature))).decode()


class TokenServer:
    """Serves http://`address`/token from a thread; grants pulls to the one user, or to anybody where `user` is None."""

    def __init__(self, port: int, key: SigningKey, *, user: tuple[str, str] | None) -> None:
        self.address = f"127.0.0.1:{port}"
        self.scopes: list[str] = []
        """The scope of every token that was handed out, in order."""
        self._key = key
        self._authorization = _basic(*user) if user else None
        self._server = ThreadingHTTPServer(("127.0.0.1", port), functools.partial(_Handler, self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="tokens")
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def knows(self, authorization: str | None) -> bool:
        """Whether whoever sends this header may have a token."""
        return self._authorization in (None, authorization)

    def grant(self, service: str, scope: str) -> str:
        """A token for `service` that allows pulls from the repository in `scope`."""
        kind, _, rest = scope.partition(":")
        name = rest.rpartition(":")[0]
        self.scopes.append(scope)
        now = int(time.time())
        granted = [{"type": kind, "name": name, "actions": ["pull"]}] if name else []
        return self._key.sign(
            {
                "iss": ISSUER,
                "sub": "",
                "aud": service,
                "iat": now,
                "nbf": now - 5,
                "exp": now + _LIFETIME,
                "jti": uuid.uuid4().hex,
                "access": granted,
            }
        )


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, tokens: TokenServer, *request: Any) -> None:
        self._tokens = tokens
        super().__init__(*request)

    def do_GET(self) -> None:
        if not self._tokens.knows(self.headers.get("Authorization")):
            self._answer(HTTPStatus.UNAUTHORIZED, {"errors": [{"code": "UNAUTHORIZED"}]})
            return
        asked = parse_qs(urlsplit(self.path).query)
        token = self._tokens.grant(asked.get("service", [""])[0], asked.get("scope", [""])[0])
        self._answer(HTTPStatus.OK, {"token": token, "expires_in": _LIFETIME})

    def log_message(self, *_: object) -> None:
        """Says nothing: what was granted is in `scopes`."""

    def _answer(self, status: HTTPStatus, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _basic(username: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


def _base64url(content: bytes) -> bytes:
    return base64.urlsafe_b64encode(content).rstrip(b"=")

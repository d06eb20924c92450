"""Signed URLs, as object stores have them: bound to every byte of the URL, to the method, and to a moment of expiry."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from dataclasses import dataclass
from urllib.parse import parse_qs, quote

from tests.upstream.answers import Answer, Exchange, content_answer, xml_answer
from tests.upstream.content import Stored

_SECRET = b"the fake's signing key"


@dataclass(frozen=True)
class SignedTarget:
    """What a target under `/cdn/` names; `reference` is a digest as text."""

    repository: str
    reference: str


def sign(repository: str, reference: str, *, method: str, lifetime: float) -> str:
    """A request target that `check` accepts.

    It holds escapes that a careless client would rewrite (`%2F`, `%7E` beside `~`, lower-case hex, `+`, an empty
    value), and any rewriting breaks the signature.
    """
    path = f"/cdn/{quote(repository, safe='')}/{quote(reference, safe='')}"
    query = f"method={method}&expires={time.time() + lifetime:.3f}&note=a%2Fb%7Ec~d%c3%a9+e&empty=&path=%2Fx%3D"
    return f"{path}?{query}&sig={_signature(f'{path}?{query}')}"


def read_target(target: str) -> SignedTarget | None:
    """The names in a target, before its signature is checked."""
    parts = target.partition("?")[0].split("/")
    if len(parts) != 4 or parts[1] != "cdn":
        return None
    return SignedTarget(_unquote(parts[2]), _unquote(parts[3]))


def answer_signed(exchange: Exchange, stored: Stored | None) -> Answer:
    """Checks the URL and serves the content, or refuses as S3 does."""
    if "Authorization" in exchange.headers:
        return xml_answer(400, "InvalidArgument", "Only one auth mechanism allowed")
    target, mark, signature = exchange.seen.target.rpartition("&sig=")
    if not mark or not hmac.compare_digest(signature, _signature(target)):
        return xml_answer(403, "SignatureDoesNotMatch", "The signature we calculated does not match")
    fields = parse_qs(target.partition("?")[2], keep_blank_values=True)
    if fields["method"] != [exchange.seen.method]:
        return xml_answer(403, "SignatureDoesNotMatch", "The signature is for another method")
    if float(fields["expires"][0]) <= time.time():
        return xml_answer(403, "AccessDenied", "Request has expired")
    if stored is None:
        return xml_answer(404, "NoSuchKey", "The specified key does not exist.")
    answer = content_answer(stored, exchange.headers.get("Range"))
    if answer.status < 400:
        answer.headers["Content-Type"] = "application/octet-stream"
        answer.headers["ETag"] = f'"{stored.digest.hex[:32]}"'
    return answer


def _signature(text: str) -> str:
    digest = hmac.new(_SECRET, text.encode(), hashlib.sha256).digest()
    return quote(base64.b64encode(digest).decode(), safe="")


def _unquote(text: str) -> str:
    return text.replace("%2F", "/").replace("%3A", ":")

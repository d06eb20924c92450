"""The switches that change what is said: statuses and their bodies, headers, redirects, quotas, moving tags.

Each function makes a `Fault` for `FakeRegistry.fault`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from email.utils import formatdate
from http import HTTPStatus

from mirror.oci.digest import Digest
from tests.upstream.answers import Answer, Exchange, error_answer, text_answer
from tests.upstream.content import Data, Stored
from tests.upstream.rules import Fault, Rule

HTML = "<!DOCTYPE html><html><head><title>Sign in</title></head><body><h1>Welcome to the hotel</h1></body></html>"


def retry_after_forms(seconds: float = 2.0) -> dict[str, str]:
    """Every form of Retry-After seen in the wild, by name, meaning `seconds` from now where it means anything."""
    moment = time.time() + seconds
    return {
        "seconds": str(int(seconds)),
        "http-date": formatdate(moment, usegmt=True),
        "epoch": str(int(moment)),
        "past-date": formatdate(moment - 3600, usegmt=True),
        "absurd": "9" * 30,
        "negative": "-5",
        "duration": "880µs",
        "garbage": "soon",
        "empty": "",
    }


def status(
    code: int,
    body: str | bytes | None = None,
    *,
    error: str | None = None,
    content_type: str = "application/json",
    retry_after: str | float | None = None,
    headers: Mapping[str, str] | None = None,
) -> Fault:
    """Answers with a status: the specification's error envelope (with code `error`), or `body`."""

    def edit(exchange: Exchange, answer: Answer, _rule: Rule) -> None:
        new = error_answer(code, error or _code_of(exchange, code)) if body is None else text_answer(code, body)
        if body is not None:
            new.headers["Content-Type"] = content_type
        if retry_after is not None:
            new.headers["Retry-After"] = retry_after if isinstance(retry_after, str) else f"{retry_after:g}"
        new.headers.update(headers or {})
        _replace(answer, new)

    return Fault(f"status({code})", edit)


def html(code: int = 200) -> Fault:
    """Answers with a web page, as captive portals and misconfigured proxies do."""

    def edit(_exchange: Exchange, answer: Answer, _rule: Rule) -> None:
        _replace(answer, text_answer(code, HTML, "text/html; charset=utf-8"))

    return Fault(f"html({code})", edit)


def header(name: str, value: str | None) -> Fault:
    """Sets a header of the answer, or leaves it out (None)."""

    def edit(_exchange: Exchange, answer: Answer, _rule: Rule) -> None:
        answer.headers.popall(name, None)
        if value is not None:
            answer.headers[name] = value

    return Fault(f"header({name})", edit)


def content_type(value: str | None) -> Fault:
    """Lies in Content-Type, or leaves it out (None)."""
    return header("Content-Type", value)


def wrong_digest(digest: Digest | None = None) -> Fault:
    """Lies in Docker-Content-Digest; the bytes are right."""
    return header("Docker-Content-Digest", str(digest or Digest.of(b"a lie")))


def no_digest() -> Fault:
    """Leaves Docker-Content-Digest out."""
    return header("Docker-Content-Digest", None)


def instead(other: Stored, *, claim: bool = True) -> Fault:
    """Sends other content in place of what was asked for; `claim` leaves the headers that name the right digest."""

    def edit(_exchange: Exchange, answer: Answer, _rule: Rule) -> None:
        answer.body = other.source
        if not claim:
            answer.headers["Docker-Content-Digest"] = str(other.digest)

    return Fault("instead", edit)


def redirect(code: int = 307, *, lifetime: float = 300.0, method: str | None = None, downgrade: bool = False) -> Fault:
    """Redirects to a signed URL of the CDN, a second origin of the same fake.

    The URL is good for `lifetime` seconds (0 or less: expired, 403 from the CDN) and for the method of this request
    (or `method`). `downgrade` names it with http although the fake speaks TLS.
    """

    def edit(exchange: Exchange, answer: Answer, _rule: Rule) -> None:
        url = exchange.registry.signed_url(exchange.seen, lifetime=lifetime, method=method)
        _move(answer, code, url.replace("https://", "http://", 1) if downgrade else url)

    return Fault(
        "redirect", edit, methods=frozenset({"GET", "HEAD"}), suits=lambda exchange: exchange.stored is not None
    )


def redirect_to(location: str | Callable[[Exchange], str], code: int = 307) -> Fault:
    """Redirects to any URL, byte for byte: a private address, another scheme, a relative path, nonsense."""

    def edit(exchange: Exchange, answer: Answer, _rule: Rule) -> None:
        _move(answer, code, location if isinstance(location, str) else location(exchange))

    return Fault("redirect_to", edit)


def redirect_loop(code: int = 307) -> Fault:
    """Redirects to the very URL that was asked for."""
    return redirect_to(lambda exchange: exchange.registry.url + exchange.seen.target, code)


def then(action: Callable[[], object]) -> Fault:
    """Answers honestly and calls `action` afterwards: what follows meets a changed registry."""
    return Fault("then", after=lambda _: action())


def quota(limit: int = 100, remaining: int = 50, window: int = 21600) -> Fault:
    """Docker Hub's pull limit: `ratelimit-*` headers on everything, each manifest GET costs one, at 0 they get 429."""
    left = remaining

    def edit(exchange: Exchange, answer: Answer, _rule: Rule) -> None:
        nonlocal left
        if exchange.seen.kind == "manifest" and exchange.seen.method == "GET":
            if left == 0:
                _replace(answer, error_answer(429, message="You have reached your pull rate limit."))
            left = max(0, left - 1)
        answer.headers["ratelimit-limit"] = f"{limit};w={window}"
        answer.headers["ratelimit-remaining"] = f"{left};w={window}"
        answer.headers["docker-ratelimit-source"] = "192.0.2.1"

    return Fault("quota", edit)


def strict_accept() -> Fault:
    """404 for a manifest whose media type Accept does not name, as CNCF Distribution does; `*/*` names none."""

    def edit(exchange: Exchange, answer: Answer, _rule: Rule) -> None:
        accepted = ",".join(exchange.headers.getall("Accept", []))
        names = {part.partition(";")[0].strip() for part in accepted.split(",")}
        if exchange.stored is not None and exchange.stored.media_type not in names:
            message = "OCI index found, but accept header does not support OCI indexes"
            _replace(answer, error_answer(404, "MANIFEST_UNKNOWN", message))

    return Fault("strict_accept", edit, suits=lambda exchange: exchange.seen.kind == "manifest")


def _code_of(exchange: Exchange, code: int) -> str | None:
    if code == HTTPStatus.NOT_FOUND and exchange.seen.kind in ("manifest", "blob"):
        return f"{exchange.seen.kind.upper()}_UNKNOWN"
    return None


def _move(answer: Answer, code: int, location: str) -> None:
    _replace(answer, text_answer(code, f"moved to {location}"))
    answer.headers["Location"] = location


def _replace(answer: Answer, new: Answer) -> None:
    """Puts another answer in place of this one; pauses, cuts and rates that other faults asked for stay."""
    answer.status, answer.headers, answer.body, answer.start = new.status, new.headers, new.body or Data(b""), 0
    answer.declared = None

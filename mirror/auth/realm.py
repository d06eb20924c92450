"""Which token endpoints may see our credentials: the upstream names them, so each is checked first.

Without this a registry can have credentials sent to any host it likes (CVE-2020-15157, CVE-2026-33540).
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache, lru_cache

from publicsuffixlist import PublicSuffixList
from yarl import URL

from mirror.oci.errors import UpstreamUnavailable
from mirror.transport.addresses import LONGEST_HOST, literal_of


def resolve_realm(realm: str, asked: URL) -> URL:
    """The token endpoint that a challenge names; relative to `asked`, the URL that answered with it.

    Raises UpstreamUnavailable, reason realm, for what is no http URL or holds a user name.
    """
    try:
        url = asked.join(URL(realm))
        url.origin()
    except ValueError:
        raise _refused(asked, "names a token endpoint that is no URL") from None
    is_plain = url.scheme in ("http", "https") and url.raw_user is None and url.raw_password is None
    if not is_plain or len(url.raw_host or "") > LONGEST_HOST:
        raise _refused(asked, "names a token endpoint that is no plain http or https URL")
    return url.with_fragment(None)


def check_realm(realm: URL, upstream: URL, token_hosts: Collection[str]) -> None:
    """Raises UpstreamUnavailable, reason realm, unless `upstream`'s configuration permits asking `realm` for a token.

    It must be https if the upstream is, and on the same host, in the same registrable domain, or among `token_hosts`
    (host or host:port). That its address is not private behind a public upstream's back is for the transport to see.
    """
    if upstream.scheme == "https" and realm.scheme != "https":
        raise _refused(upstream, f"is https and names a token endpoint at {realm.raw_host} that is not")
    host = _normal(realm.raw_host)
    if host == _normal(upstream.raw_host) or _listed(realm, host, token_hosts):
        return
    domain = _registrable_domain(host)
    if domain is None or domain != _registrable_domain(_normal(upstream.raw_host)):
        raise _refused(upstream, f"names a token endpoint at {host}, another domain; token_hosts can permit it")


def _listed(realm: URL, host: str, token_hosts: Collection[str]) -> bool:
    return any(entry.lower() in (host, f"{host}:{realm.port}") for entry in token_hosts)


def _normal(host: str | None) -> str:
    return (host or "").lower().rstrip(".")


@cache
def suffixes() -> PublicSuffixList:
    """The public-suffix data that comes with the package; takes a tenth of a second, once."""
    return PublicSuffixList()


@lru_cache(1024)
def _registrable_domain(host: str) -> str | None:
    """The part of a name that somebody registered (`example.co.uk`); None for addresses and for public suffixes."""
    if literal_of(host) is not None:
        return None
    domain: str | None = suffixes().privatesuffix(host)
    return domain


def _refused(upstream: URL, problem: str) -> UpstreamUnavailable:
    return UpstreamUnavailable(f"{upstream.raw_host} {problem}; nothing was sent there", reason="realm")

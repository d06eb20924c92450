"""What each parser promises, as a check that any text may be put through; bytes are that text in UTF-8.

A check raises AssertionError where a promise is broken, and lets everything pass that the parser should not have
raised. The grammars are written out here anew, in other words than in the code that is checked.
"""

from __future__ import annotations

import json
import math
import re
import string
from collections.abc import Callable
from ipaddress import ip_network
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

from multidict import CIMultiDict
from yarl import URL

from mirror.api.forwarded import Proxies
from mirror.auth.challenge import choose, own_scope, parse_challenges
from mirror.auth.realm import check_realm, resolve_realm
from mirror.auth.tokens import Tokens
from mirror.config import DockerConfig, Settings, UpstreamSettings
from mirror.config.names import HUB
from mirror.oci import byte_range, link_header, referrers, tag_list
from mirror.oci.byte_range import ByteRange, parse_content_range, parse_ranges
from mirror.oci.envelope import error_codes
from mirror.oci.errors import (
    DigestInvalid,
    InvalidRequest,
    ManifestUnknown,
    NameInvalid,
    RangeInvalid,
    RangeNotSatisfiable,
    Unsupported,
    UpstreamRefused,
    UpstreamUnavailable,
)
from mirror.oci.manifest import media_type_of, parse_manifest
from mirror.oci.reference import Tag, parse_reference, parse_repository
from mirror.routing import Router, UpstreamName
from mirror.transport import Destination, Request
from mirror.transport.client import _target
from mirror.transport.pauses import LONGEST, parse_retry_after

_SMALL = string.ascii_lowercase + string.digits
_HEX = {"sha256": 64, "sha512": 128}
_TOKEN = set(string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~")
_NOW = 1_790_000_000.0
_REGISTRY = URL("https://registry.example.com/v2/")
_SIZES = (0, 1, 2, 500, 1000, 1 << 40)


def reference(text: str) -> None:
    """A tag or digest of the specification's grammar, exactly; else the one error or the other."""
    try:
        found = parse_reference(text)
    except DigestInvalid:
        assert not _is_digest(text)
    except ManifestUnknown:
        assert not _is_tag(text)
    else:
        assert _is_tag(text) if isinstance(found, Tag) else _is_digest(text)
        assert str(found) == text
        assert parse_reference(str(found)) == found


def repository(text: str) -> None:
    """A name of the specification's grammar, exactly."""
    try:
        assert parse_repository(text) == text
    except NameInvalid:
        assert not _is_name(text)
    else:
        assert _is_name(text)


def ranges(text: str) -> None:
    """Ranges that stay within whatever they are of, and read the same when they are written."""
    try:
        found = parse_ranges(text)
    except RangeInvalid:
        assert text.count(",") >= byte_range.MOST_RANGES
        return
    if found is None:
        return
    assert 1 <= len(found.specs) <= byte_range.MOST_RANGES
    written = ",".join(f"{_shown(spec.first)}-{_shown(spec.last)}" for spec in found.specs)
    assert parse_ranges(f"bytes={written}") == found
    for size in _SIZES:
        try:
            parts = found.resolve(size)
        except (RangeNotSatisfiable, RangeInvalid):
            continue
        assert parts
        assert sum(part.length for part in parts) <= size
        assert all(0 <= part.start <= part.end < size for part in parts)


def content_range(text: str) -> None:
    """Bounds that make sense, or nothing."""
    found = parse_content_range(text)
    if found is None:
        return
    assert 0 <= found.start <= found.end < 10**19
    if found.size is not None:
        assert found.end < found.size < 10**19
        assert parse_content_range(ByteRange(found.start, found.end).content_range(found.size)) == found


def challenge(text: str) -> None:
    """Schemes and names that are tokens; no more text than came; an endpoint that credentials may go to, or none."""
    found = parse_challenges([text])
    for one in found:
        for name in (one.scheme, *one.parameters):
            assert name
            assert set(name) <= _TOKEN
            assert name == name.lower()
        assert sum(map(len, one.parameters.values())) <= len(text)
        assert set(own_scope(one).split()) <= set(one.scope.split())
    chosen = choose(found)
    if chosen is None:
        return
    assert (chosen.scheme == "bearer" and chosen.realm) or chosen.scheme == "basic"
    try:
        realm = resolve_realm(chosen.realm, _REGISTRY)
        assert realm.scheme in ("http", "https")
        assert len(realm.raw_host or "") <= 255
        assert "@" not in realm.raw_authority
        check_realm(realm, _REGISTRY, ())
    except UpstreamUnavailable:
        return
    else:
        host = (realm.raw_host or "").lower().rstrip(".")
        assert realm.scheme == "https"
        assert f".{host}".endswith(".example.com")


_BLOB = URL("https://registry.example.com/v2/a/blobs/b?c=d")
_ASKED = Request(
    Destination(UpstreamName("registry.example.com", "registry.example.com"), _REGISTRY, UpstreamSettings()),
    _BLOB,
    "blob",
)


def location(text: str) -> None:
    """A place that can be asked for as it stands, by https, without a password of its own; or no answer."""
    answer: Any = SimpleNamespace(headers={"Location": text}, url=_BLOB, asked="GET x")
    try:
        found = _target(_ASKED, answer)
    except UpstreamUnavailable:
        return
    assert found.scheme == "https"
    assert found.raw_host
    assert len(found.raw_host) <= 255
    assert found.raw_user is None
    assert found.raw_password is None
    assert found.port in range(1 << 16)
    for part in (found.raw_host, found.raw_path_qs):
        assert part.isascii()
        assert part.isprintable()
        assert " " not in part
    if text.isascii() and text.isprintable() and text.startswith("https://"):
        sent = text.strip().partition("#")[0].replace(" ", "%20").removeprefix("https://").partition("/")[2]
        assert str(found.with_fragment(None)).endswith(sent.removesuffix("?")), "every byte may be signed"


def link(text: str) -> None:
    """A query that can be asked for, and that leads to no other host or path."""
    try:
        query = link_header.next_query([text])
    except ValueError:
        return
    if query is None:
        return
    assert 0 < len(query) <= 4096
    assert query.isascii()
    assert query.isprintable()
    page = URL(f"https://registry.example.com/v2/a/tags/list?{query}", encoded=True)
    assert (page.raw_authority, page.raw_path) == ("registry.example.com", "/v2/a/tags/list")
    assert page.raw_query_string == query


def own_link(text: str) -> None:
    """What we write into a Link is what we read from it, whatever names and places are in it."""
    text = text[:500].encode("utf-8", "replace").decode()
    written = link_header.next_link(f"/v2/{text}/tags/list", [("n", "1"), ("last", text)])
    assert written.isascii()
    assert written.isprintable()
    if len(quote(text, safe="")) < 4000:
        assert link_header.next_query([written]) == f"n=1&last={quote(text, safe='')}"


def manifest(text: str) -> None:
    """Digests that can be verified, sizes that a file can have, and a media type that a header can hold."""
    data = _bytes(text)
    found = parse_manifest(data)
    if found is not None:
        json.loads(data)
        for digest, size in [*found.named_blobs(), *found.named_manifests()]:
            assert _is_digest(str(digest))
            assert size is None or 0 <= size < 1 << 63
        assert found.outline().media_type == found.media_type
    for header in (None, "text/html", text, text[:80]):
        media_type = media_type_of(found, header)
        assert len(media_type) <= 255
        assert media_type.count("/") == 1
        assert set(media_type) - {"/"} <= _TOKEN


def docker_config(text: str) -> None:
    """Logins of registries that can be asked for, with a header that says them; or a mistake."""
    try:
        config = DockerConfig.parse(text.encode("utf-8", "surrogateescape"))
    except (ValueError, UnicodeEncodeError):
        return
    for host in (HUB, "ghcr.io", "corp.azurecr.io", "registry.corp:5000"):
        login = config.login(host)
        if login is not None:
            assert login.password or login.identity_token
        assert config.helper(host) != ""


def token(text: str) -> None:
    """A token that a header can hold, and a life between a moment and a day."""
    tokens = Tokens(None, None, lambda: _NOW)  # type: ignore[arg-type]  # reading an answer takes neither
    try:
        value, seconds = tokens._read(_bytes(text), "GET https://auth.example.com/token")
    except UpstreamUnavailable:
        return
    else:
        assert value
        assert value.isascii()
        assert value.isprintable()
        assert " " not in value
        assert 0 < seconds <= 86400


def retry_after(text: str) -> None:
    """Seconds that can be waited, or nothing."""
    for now in (0.0, _NOW):
        seconds = parse_retry_after(text, now)
        assert seconds is None or (0 <= seconds <= LONGEST and not math.isnan(seconds))


def tags(text: str) -> None:
    """Tags of the specification's grammar alone, which we write as they were."""
    data = _bytes(text)
    found = tag_list.parse_tags(data)
    if found is None:
        return
    assert all(map(_is_tag, found))
    assert tag_list.parse_tags(tag_list.render_tags("a", found)) == found
    shown, more = tag_list.page_of(sorted(found), 2, found[0] if found else None)
    assert len(shown) <= 2
    assert more or len(shown) < len(found) or not found


def count(text: str) -> None:
    """How many, or an error of the client's."""
    try:
        found = tag_list.parse_count(text)
    except InvalidRequest:
        return
    assert found is not None
    assert 0 <= found <= 10**9


def index(text: str) -> None:
    """Descriptors of digests that can be verified, each as it came, in pages that are indexes again."""
    data = _bytes(text)
    found = referrers.parse_index(data)
    if found is None:
        return
    for descriptor in found:
        assert descriptor.encode() in data
        assert _is_digest(json.loads(descriptor)["digest"])
    assert referrers.parse_index(referrers.render_index(found)) == found
    page, _ = referrers.page_of(found, text[:60])
    assert set(page) <= set(found)
    assert set(referrers.of_types(found, {"a"})) <= set(found)


def envelope(text: str) -> None:
    """Codes, or none."""
    for code in error_codes(_bytes(text)):
        assert code


def forwarded(text: str) -> None:
    """Nothing of a stranger; of a proxy an address, a short host, a path that links can begin with."""
    proxies = Proxies([ip_network("10.0.0.0/8")])
    headers = CIMultiDict({f"X-Forwarded-{name}": text for name in ("For", "Host", "Prefix", "Proto")})
    stranger = proxies.read("192.0.2.1", headers)
    assert (stranger.client, stranger.host, stranger.prefix) == ("192.0.2.1", None, "")
    found = proxies.read("10.0.0.1", headers)
    assert found.client is not None
    assert set(found.client.partition("%")[0]) <= set(string.hexdigits + ".:")
    assert found.host is None or 0 < len(found.host) <= 263
    assert found.prefix == "" or (found.prefix.startswith("/") and not found.prefix.startswith("//"))
    assert not found.prefix.endswith("/")


_ROUTER = Router(
    Settings(
        upstreams={
            "corp.test:5000": UpstreamSettings(hosts=("corp.mirror.test",)),
            "*.pulls.test": UpstreamSettings(),
        },
        public_url="https://mirror.example/base",
    )
)
_CHOSEN = re.compile(r"(?:docker\.io|corp\.test:5000|[a-z0-9-]+\.pulls\.test|[a-z0-9.*-]+)")


def target(text: str) -> None:
    """A request target and a Host: a registry that is configured or well known, and a name of the grammar, or an error
    that a client is told."""
    asked = _ROUTER.read(text)
    assert "\r" not in asked.prefix or "\r" in text or "%0" in text.lower()
    try:
        chosen = _ROUTER.choose(asked, text)
        if asked.pull is None:
            return
        found = _ROUTER.target(asked.pull.name, chosen)
    except (NameInvalid, UpstreamRefused, Unsupported):
        return
    assert _is_name(found.repository)
    assert _CHOSEN.fullmatch(found.upstream.host)
    assert "." in found.upstream.entry
    assert _ROUTER.settings(found.upstream).url == f"https://{_host(found.upstream.host)}"


CHECKS: dict[str, Callable[[str], None]] = {
    "reference": reference,
    "repository": repository,
    "range": ranges,
    "content_range": content_range,
    "challenge": challenge,
    "location": location,
    "link": link,
    "own_link": own_link,
    "manifest": manifest,
    "token": token,
    "retry_after": retry_after,
    "docker_config": docker_config,
    "tags": tags,
    "count": count,
    "index": index,
    "envelope": envelope,
    "forwarded": forwarded,
    "target": target,
}
"""By the name of their corpus."""


def _host(host: str) -> str:
    return "registry-1.docker.io" if host == "docker.io" else host


def _bytes(text: str) -> bytes:
    """Halves of surrogate pairs stand for bytes that are no UTF-8."""
    return text.encode("utf-8", "surrogatepass")


def _shown(number: int | None) -> str:
    return "" if number is None else str(number)


def _is_tag(text: str) -> bool:
    letters = set(string.ascii_letters + string.digits + "_")
    return 1 <= len(text) <= 128 and text[0] in letters and set(text) <= letters | {".", "-"}


def _is_digest(text: str) -> bool:
    algorithm, _, encoded = text.partition(":")
    return len(encoded) == _HEX.get(algorithm) and set(encoded) <= set("0123456789abcdef")


def _is_name(text: str) -> bool:
    return 0 < len(text) <= 255 and all(map(_is_component, text.split("/")))


def _is_component(text: str) -> bool:
    """Runs of small letters and digits, between them one dot, one or two underscores, or any number of dashes."""
    between = "".join(" " if letter in _SMALL else letter for letter in text).split(" ")
    inner = [separator for separator in between[1:-1] if separator]
    ends = not between[0] and not between[-1] and bool(text) and " " not in text
    return ends and all(separator in (".", "_", "__") or set(separator) == {"-"} for separator in inner)

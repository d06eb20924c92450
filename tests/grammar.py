"""Requests as hypothesis strategies: made by HTTP's and the specification's grammar, and then damaged."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from hypothesis import strategies as st

from mirror.oci.digest import Digest

END = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Words:
    """What a pull is made of here, beside what no registry has."""

    names: tuple[str, ...]
    references: tuple[str, ...]
    namespaces: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Conversation:
    """What one client sends, in `pieces`; whether it then leaves without an answer."""

    pieces: tuple[bytes, ...] = field(repr=False)
    leaves: bool

    @property
    def sent(self) -> bytes:
        """All of it."""
        return b"".join(self.pieces)

    def __repr__(self) -> str:
        return f"Conversation({self.sent!r}, leaves={self.leaves})"


_ABSENT = (str(Digest.of(b"absent")), str(Digest.of(b"absent", "sha512")))
_ODD_NAMES = (
    "",
    ".",
    "..",
    "%2e%2e",
    "%2F",
    "%00",
    "%ff",
    "%",
    "%zz",
    "DEMO",
    "a//b",
    "x" * 300,
    "é",
    "a%0d%0ab",
    ":",
    "@",
)
_ODD_REFERENCES = ("", "list", "..", "sha256:", "sha256:abc", "md5:" + "0" * 32, "SHA256:" + "0" * 64, "a" * 129, "%0A")
_METHODS = (
    ("GET",) * 12
    + ("HEAD",) * 6
    + ("PUT", "POST", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "BREW", "get", "", "G T")
)
_VERSIONS = ("HTTP/1.1",) * 60 + ("HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/1.2", "http/1.1", "HTTP/", "")
_KINDS = (*("manifests", "blobs") * 3, "tags", "referrers", "uploads")
_WHOLE_PATHS = ("/", "*", "", "/v2", "/v2/", "/v2/_catalog", "/livez", "/metrics", "//v2/", "/v2/token", "x:443")
_BEFORE = ("",) * 25 + ("http://mirror", "https://a:b@mirror", "http://[::1", "/prefix", "/docker.io")
_ESCAPES = (
    "%00",
    "%0a",
    "%20",
    "%25",
    "%2f",
    "%3f",
    "%e2%82%ac",
    "%C0%AF",
    "+",
    ";",
    "\\",
    "'",
    '"',
    "<",
    "{",
    "~",
    "$",
    "|",
)
_HEADERS = (
    "Range", "If-Range", "If-None-Match", "If-Match", "If-Modified-Since", "Accept", "Accept-Encoding", "Authorization",
    "Connection", "Upgrade", "Expect", "Content-Length", "Transfer-Encoding", "Content-Encoding", "Content-Type",
    "X-Request-Id", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Prefix", "X-Forwarded-For", "Forwarded",
    "Host", "Cookie", "TE", "Trailer", "Via", "Max-Forwards", "Sec-WebSocket-Key", "HTTP2-Settings", "Keep-Alive",
)  # fmt: skip
_VALUES = (
    "", "*", "0", "-1", "5", "99999999999999999999", "bytes=0-", "bytes=0-0", "bytes=-1", "bytes=10-5", "bytes=0-1,5-6",
    "bytes=0-1,0-1,0-1", "bytes=4999-", "bytes=5000-", "bytes=-0", "bytes=", "bytes=,", "bytes=a-b", "items=0-1",
    "bytes=" + "0-0," * 40, "*/*", "application/json", ",;=\"", "W/\"x\"", "\"x\"", "gzip",
    "identity;q=0", "chunked", "gzip, chunked",
    "close", "keep-alive", "upgrade", "websocket", "h2c", "100-continue", "Basic eDp5", "Bearer", "\t", "a,b", "\xff",
    "mirror", "docker.io", "/prefix", "//evil", "Tue, 24 Nov 2026 10:00:00 GMT", "x" * 9000,
)  # fmt: skip
_LIKELY_HEADERS = (
    *(("Range", value) for value in _VALUES if value.startswith("bytes")),
    *(("If-Range", value) for value in ('"x"', 'W/"x"', "*", "Tue, 24 Nov 2026 10:00:00 GMT")),
    *(("If-None-Match", value) for value in ('"x"', "*", ",;=", "")),
    *(("Accept", value) for value in ("*/*", "application/json", "", "/;q=")),
    *(("Accept-Encoding", value) for value in ("gzip", "identity;q=0", "*")),
    *(("Authorization", value) for value in ("Basic eDp5", "Bearer", "\xff")),
    *(("Connection", value) for value in ("close", "keep-alive", "upgrade", "a,b")),
    *(("Upgrade", value) for value in ("websocket", "h2c")),
    *(("X-Forwarded-Prefix", value) for value in ("/prefix", "//evil", "")),
    *(("X-Forwarded-Host", value) for value in ("mirror", "alias.test", "a b", "", "alias.test, x", ":")),
    *(("X-Forwarded-Proto", value) for value in ("https", "http,https", "javascript", "")),
    *(("X-Forwarded-For", value) for value in ("192.0.2.1", "192.0.2.1, ::1", "[::1]:5", "unknown", "", ",")),
    *(("Forwarded", value) for value in ("for=192.0.2.1;host=alias.test", 'for="[::1]";proto=https', ";;=,", 'for="')),
    ("Expect", "100-continue"),
    ("X-Request-Id", "\t"),
)  # fmt: skip
_BODIES = (b"",) * 30 + (b"hello", b"5\r\nhello\r\n0\r\n\r\n", b"zz\r\n", b"0\r\n\r\n", bytes(300))
_DAMAGE = (
    b"\r\n", b"\n", b"\r", b"\x00", b" ", b"\t", b":", b"/", b"%", b"?", b"#", b"\xff\xfe", b"\xe2\x82\xac",
    b"HTTP/1.1", b"GET ", b"\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", b"Content-Length: 3\r\n",
    b"Host: y\r\n", b"a" * 9000,
)  # fmt: skip


def conversations(words: Words, last: bytes) -> st.SearchStrategy[Conversation]:
    """One to three requests on one connection, perhaps damaged, and `last`, which wants the connection closed."""
    edits = st.tuples(st.integers(0, 10**4), st.sampled_from("idrxt"), st.sampled_from(_DAMAGE))
    return st.builds(
        lambda requests, edits, cuts, leaves: _conversation(_damaged(b"".join(requests), edits), last, cuts, leaves),
        st.lists(_requests(words), min_size=1, max_size=3),
        st.one_of(st.just([]), st.just([]), st.just([]), st.lists(edits, min_size=1, max_size=3)),
        st.lists(st.integers(0, 10**4), max_size=2),
        st.sampled_from((False,) * 15 + (True,)),
    )


def _conversation(request: bytes, last: bytes, cuts: list[int], leaves: bool) -> Conversation:
    sent = request + END + last
    places = [0, *sorted(cut * len(sent) // 10**4 for cut in cuts), len(sent)]
    return Conversation(tuple(sent[a:b] for a, b in itertools.pairwise(places)), leaves)


def _damaged(data: bytes, edits: list[tuple[int, str, bytes]]) -> bytes:
    """Inserts, deletes, replaces, repeats or cuts off at places given in ten-thousandths of the length."""
    for place, edit, extra in edits:
        at = place * len(data) // 10**4
        before, after = data[:at], data[at:]
        data = {
            "i": before + extra + after,
            "d": before + after[len(extra) :],
            "r": before + extra + after[len(extra) :],
            "x": before + after[:20] + after,
            "t": before,
        }[edit]
    return data


def _requests(words: Words) -> st.SearchStrategy[bytes]:
    unlikely = st.tuples(st.sampled_from(_HEADERS), st.sampled_from(_VALUES))
    return st.builds(
        _request,
        st.sampled_from(_METHODS),
        _targets(words),
        st.sampled_from(_VERSIONS),
        st.one_of(*[st.lists(st.sampled_from(_LIKELY_HEADERS), max_size=3)] * 4, st.lists(unlikely, max_size=2)),
        st.sampled_from(_BODIES),
    )


def _request(method: str, target: str, version: str, headers: list[tuple[str, str]], body: bytes) -> bytes:
    lines = [f"{method} {target} {version}", "Host: mirror", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join([*lines, "", ""]).encode("utf-8" if "é" in target else "latin-1") + body


def _targets(words: Words) -> st.SearchStrategy[str]:
    names, references = words.names + _ODD_NAMES, words.references + _ABSENT + _ODD_REFERENCES
    likely = st.builds(
        lambda name, kind, reference: f"/v2/{name}/{kind}/{reference}",
        st.sampled_from(words.names * 20 + names),
        st.sampled_from(_KINDS),
        st.sampled_from(words.references * 20 + references),
    )
    unlikely = st.lists(st.sampled_from(("v2", *_KINDS, *names, *references, *_ESCAPES)), max_size=6).map("/".join)
    path = st.one_of(*[likely] * 8, unlikely.map("/".__add__), st.sampled_from(_WHOLE_PATHS))
    keys = st.sampled_from(("ns", "ns", "n", "last", "artifactType", "digest", "mount", "", "%00"))
    values = st.sampled_from(words.namespaces * 20 + words.references + _ODD_NAMES + _VALUES[:6] + _ESCAPES)
    query = st.lists(st.tuples(keys, values), max_size=2).map(lambda pairs: "&".join(f"{k}={v}" for k, v in pairs))
    return st.builds(
        lambda before, where, asked: before + where + (f"?{asked}" if asked else ""),
        st.sampled_from(_BEFORE),
        path,
        query,
    ).map(lambda target: target.replace("\t", "%09").replace("\xff", "%ff"))

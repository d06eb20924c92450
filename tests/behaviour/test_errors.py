"""What clients see when there is nothing to give: the specification's error with its code, whatever the cause."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from mirror.config import UpstreamSettings
from mirror.oci.digest import Digest
from mirror.store.files import Files
from tests.conftest import StartMirror
from tests.harness import Reply, RunningMirror
from tests.lines import Lines, lines
from tests.raw import RawClient
from tests.upstream import Bearer, FakeRegistry, Fault, Image, flip, reset, stall, status
from tests.upstream.fixtures import StartUpstream

__all__ = ["lines"]

ABSENT = Digest.of(b"nobody has this")
REQUESTS = ["by tag", "by digest", "blob"]


def error_of(reply: Reply) -> dict[str, Any]:
    """The one error of a reply, after a look at its form."""
    assert reply.headers["Content-Type"] == "application/json"
    assert reply.headers["Content-Length"] == str(len(reply.body))
    assert reply.headers["Docker-Distribution-Api-Version"] == "registry/2.0"
    assert "WWW-Authenticate" not in reply.headers
    (error,) = json.loads(reply.body)["errors"]
    assert set(error) == {"code", "message", "detail"}
    assert error["message"]
    return dict(error)


def path_of(image: Image, request: str, name: str = "demo") -> str:
    """The path of one of REQUESTS for an image in library/demo."""
    blob = image.layers[0].digest
    return f"/v2/{name}/" + {
        "by tag": f"manifests/{image.tag}",
        "by digest": f"manifests/{image.digest}",
        "blob": f"blobs/{blob}",
    }[request]  # fmt: skip


async def ask_both(mirror: RunningMirror, path: str) -> Reply:
    """HEAD and GET of a path; both fail alike, the HEAD without a body."""
    head = await mirror.get(path, method="HEAD")
    get = await mirror.get(path)
    assert (head.status, head.body) == (get.status, b"")
    assert head.headers["Content-Type"] == get.headers["Content-Type"]
    return get


# The upstream's no.


async def test_an_upstreams_404_keeps_its_code(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """Nothing there: which thing it was that is not there is what clients act on."""
    upstream.add_image("library/demo", "1")

    for path, code in (
        ("/v2/demo/manifests/absent", "MANIFEST_UNKNOWN"),
        (f"/v2/demo/manifests/{ABSENT}", "MANIFEST_UNKNOWN"),
        (f"/v2/demo/blobs/{ABSENT}", "BLOB_UNKNOWN"),
        ("/v2/absent/manifests/1", "NAME_UNKNOWN"),
        (f"/v2/absent/manifests/{ABSENT}", "NAME_UNKNOWN"),
        (f"/v2/absent/blobs/{ABSENT}", "NAME_UNKNOWN"),
    ):
        reply = await mirror.get(path)
        assert (reply.status, error_of(reply)["code"]) == (404, code), path
        assert (await mirror.get(path, method="HEAD")).status == 404, path


async def test_a_refusal_is_a_403_never_a_401(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """A 401 of ours would make clients send us their credentials."""
    upstream.auth = Bearer()
    image = upstream.add_image("library/demo", "1")
    upstream.make_private("library/demo")

    for request in REQUESTS:
        reply = await ask_both(mirror, path_of(image, request))
        assert (reply.status, error_of(reply)["code"]) == (403, "DENIED"), request


@pytest.mark.parametrize("code", [401, 403])
async def test_a_bare_refusal_is_a_403(mirror: RunningMirror, upstream: FakeRegistry, code: int) -> None:
    """Also where the upstream challenges nobody, or in a language that nobody speaks."""
    image = upstream.add_image("library/demo", "1")
    upstream.fault("library/demo", status(code, "denied: you may not\n", content_type="text/plain"))

    for request in REQUESTS:
        reply = await mirror.get(path_of(image, request))
        assert (reply.status, error_of(reply)["code"]) == (403, "DENIED"), request


async def test_a_registry_that_is_not_known_is_refused(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """However it is named: nobody can aim us at a host of their choice."""
    for path in (
        "/v2/demo/manifests/1?ns=registry.internal:8080",
        "/v2/demo/manifests/1?ns=169.254.169.254",
        "/v2/registry.internal/demo/manifests/1",
        "/v2/localhost:5000/demo/manifests/1",
        f"/v2/demo/blobs/{ABSENT}?ns=127.0.0.1",
    ):
        reply = await ask_both(mirror, path)
        assert (reply.status, error_of(reply)["code"]) == (403, "DENIED"), path
    assert upstream.count() == 0


# No answer.


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """A fault of the upstream, and what a client is told about it."""

    fault: Fault
    status: int
    code: str
    retry_after: bool


NO_ANSWERS = {
    "429": NoAnswer(status(429, retry_after=7), 429, "TOOMANYREQUESTS", retry_after=True),
    "timeout": NoAnswer(stall(), 504, "UNAVAILABLE", retry_after=False),
    "reset": NoAnswer(reset(), 503, "UNAVAILABLE", retry_after=True),
    "500": NoAnswer(status(500), 503, "UNAVAILABLE", retry_after=True),
    "503": NoAnswer(status(503), 503, "UNAVAILABLE", retry_after=True),
    "odd 4xx": NoAnswer(status(418, "teapot"), 503, "UNAVAILABLE", retry_after=True),
}


@pytest.mark.parametrize("cause", NO_ANSWERS)
async def test_no_answer_is_told_from_a_no(mirror: RunningMirror, upstream: FakeRegistry, cause: str) -> None:
    """Each cause has its status, and where waiting helps it says for how long; never a 404, never a 401."""
    expected = NO_ANSWERS[cause]
    image = upstream.add_image("library/demo", "1")
    upstream.fault(image, expected.fault)
    upstream.fault(image.layers[0], expected.fault)

    replies = await asyncio.gather(*(mirror.get(path_of(image, request)) for request in REQUESTS))

    for request, reply in zip(REQUESTS, replies, strict=True):
        assert (reply.status, error_of(reply)["code"]) == (expected.status, expected.code), request
        assert ("Retry-After" in reply.headers) == expected.retry_after
        if expected.retry_after:
            assert int(reply.headers["Retry-After"]) >= 1


async def test_a_pause_is_passed_on_and_kept(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """After a 429 nobody else asks either until the pause is over; they are told for how long."""
    image = upstream.add_image("library/demo", "1")
    other = upstream.add_image("library/other", "1")
    upstream.fault(image, status(429, retry_after=60))
    first = await mirror.get(path_of(image, "by tag"))
    asked = upstream.count()

    second = await mirror.get(path_of(other, "by tag", "other"))

    for reply in (first, second):
        assert (reply.status, error_of(reply)["code"]) == (429, "TOOMANYREQUESTS")
        assert 1 <= int(reply.headers["Retry-After"]) <= 60
    assert upstream.count() == asked


async def test_an_upstream_that_is_gone_is_a_503(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """Nobody listens there: an outage, never an absence."""
    image = upstream.add_image("library/demo", "1")
    await upstream.stop()

    for request in REQUESTS:
        reply = await mirror.get(path_of(image, request))
        assert (reply.status, error_of(reply)["code"]) == (503, "UNAVAILABLE"), request
        assert int(reply.headers["Retry-After"]) >= 1


async def test_a_name_that_does_not_resolve_is_a_503(start_mirror: StartMirror) -> None:
    """A configured upstream, but no address for it."""
    mirror = await start_mirror(upstreams={"gone.test": UpstreamSettings(url="https://gone.invalid")})

    reply = await mirror.get("/v2/gone.test/demo/manifests/1")

    assert (reply.status, error_of(reply)["code"]) == (503, "UNAVAILABLE")


async def test_our_own_credential_refused_is_a_503(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """The operator's problem: clients hear neither that the image is absent nor that they may not have it."""
    upstream.auth = Bearer({"ci": "right"}, anonymous=False)
    image = upstream.add_image("library/demo", "1")
    settings = UpstreamSettings(url=upstream.url, username="ci", password=SecretStr("wr0ng-secret"))
    mirror = await start_mirror(upstreams={"docker.io": settings})

    for request in REQUESTS:
        reply = await mirror.get(path_of(image, request))
        assert (reply.status, error_of(reply)["code"]) == (503, "UNAVAILABLE"), request
        assert b"wr0ng-secret" not in reply.body


@pytest.mark.parametrize("request_for", ["by digest", "blob"])
async def test_wrong_bytes_twice_are_a_502(mirror: RunningMirror, upstream: FakeRegistry, request_for: str) -> None:
    """Where our headers are not out yet, the client is told instead of being cut off."""
    image = upstream.add_image("library/demo", "1", layers=[2000])
    rules = [upstream.fault(thing, flip(100)) for thing in (image.manifest, image.layers[0])]

    reply = await mirror.get(path_of(image, request_for))

    assert (reply.status, error_of(reply)["code"]) == (502, "UNAVAILABLE")
    for rule in rules:
        rule.remove()
    assert (await mirror.get(path_of(image, request_for))).status == 200


# Requests that are off.


@pytest.mark.parametrize("kind", ["manifests", "blobs"])
async def test_bad_digests_are_a_400(mirror: RunningMirror, upstream: FakeRegistry, kind: str) -> None:
    """The conformance suite asks for these; no upstream is asked."""
    for digest in ("sha256:totallywrong", "sha256:baddigeststring", "sha384:" + "a" * 96, "sha256:" + "A" * 64, "a:b"):
        reply = await ask_both(mirror, f"/v2/demo/{kind}/{digest}")
        assert (reply.status, error_of(reply)["code"]) == (400, "DIGEST_INVALID"), digest
    assert upstream.count() == 0


async def test_a_blob_has_no_tag(mirror: RunningMirror) -> None:
    """What is no digest at all is an invalid one."""
    reply = await ask_both(mirror, "/v2/demo/blobs/latest")

    assert (reply.status, error_of(reply)["code"]) == (400, "DIGEST_INVALID")


async def test_impossible_tags_are_a_404(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """No such tag can exist; the conformance suite insists on 404."""
    for tag in (".INVALID_MANIFEST_NAME", "a" * 129, "%00", "a%20b", "%C3%A4"):
        reply = await ask_both(mirror, f"/v2/demo/manifests/{tag}")
        assert (reply.status, error_of(reply)["code"]) == (404, "MANIFEST_UNKNOWN"), tag
    assert upstream.count() == 0


async def test_bad_names_are_a_400(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """Nothing outside the grammar reaches an upstream, a key or a path on disk."""
    for name in ("DEMO", "a..b", "a//b", "%00", "a%0Ab", "a%20b", "x" * 300):
        reply = await ask_both(mirror, f"/v2/{name}/manifests/1")
        assert (reply.status, error_of(reply)["code"]) == (400, "NAME_INVALID"), name
    for ns in ("", "%00", "a%20b", "%FF", "http://x", "x/y", "a" * 5000):
        reply = await ask_both(mirror, f"/v2/demo/manifests/1?ns={ns}")
        assert (reply.status, error_of(reply)["code"]) == (400, "NAME_INVALID"), ns
    assert upstream.count() == 0


async def test_what_we_do_not_serve_is_a_404(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """Also by HEAD, which is never a 405: containerd would go on by GET."""
    for path in (
        "/",
        "/v1/_ping",
        "/v2/_catalog",
        "/v2/demo",
        "/v2/demo/manifests/",
        "/v2/demo/blobs/",
        "/v2//manifests/1",
        "/v2/demo/manifests/a/b",
        "/v2/demo/blobs/uploads/",
        "/v3/demo/manifests/1",
        "/livez",
        "/metrics",
        "/favicon.ico",
    ):
        reply = await ask_both(mirror, path)
        assert (reply.status, error_of(reply)["code"]) == (404, "UNSUPPORTED"), path
    assert upstream.count() == 0


async def test_writes_are_a_405(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """By any method, to anything, with what is allowed named; whatever they carry is not asked for."""
    for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"):
        for path in (
            "/v2/",
            "/v2/demo/blobs/uploads/",
            f"/v2/demo/blobs/{ABSENT}",
            "/v2/demo/manifests/1",
            "/v2/demo/tags/list",
            "/v2/anything",
        ):
            reply = await mirror.get(path, method=method)
            assert (reply.status, error_of(reply)["code"]) == (405, "UNSUPPORTED"), (method, path)
            assert reply.headers["Allow"] == "GET, HEAD"
    assert upstream.count() == 0


async def test_a_push_is_refused_before_its_body(mirror: RunningMirror) -> None:
    """A client that waits for 100 Continue hears the refusal at once and keeps its layer."""
    async with await RawClient.connect(mirror.app.port) as client:
        await client.ask("/v2/demo/blobs/uploads/", "POST", Content_Length="1000000000", Expect="100-continue")
        code, error = await client.error()
    assert (code, error["code"]) == (405, "UNSUPPORTED")


MALFORMED = {
    "no request": b"hello\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64) + b"\r\n\r\n",
    "method": b"GE T /v2/ HTTP/1.1\r\nHost: x\r\n\r\n",
    "unknown method": b"FOO /v2/ HTTP/1.1\r\nHost: x\r\n\r\n",
    "version": b"GET /v2/ HTTP/9.9\r\nHost: x\r\n\r\n",
    "no host": b"GET /v2/ HTTP/1.1\r\n\r\n",
    "long path": b"GET /v2/" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "long header": b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 40_000 + b"\r\n\r\n",
    "many headers": b"GET /v2/ HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 1000 + b"\r\n",
    "raw bytes in the path": b"GET /v2/\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
    "NUL in the path": b"GET /v2/\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
    "NUL in a header": b"GET /v2/ HTTP/1.1\r\nHost: x\r\nA\x00: b\r\n\r\n",
    "line folding": b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n: c\r\n\r\n",
    "two framings": b"POST /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    "two lengths": b"POST /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
    "negative length": b"POST /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
    "broken authority": b"GET http://[::1/v2/ HTTP/1.1\r\nHost: x\r\n\r\n",
}


TOO_MUCH = {"long path": 414, "long header": 431, "many headers": 431}


async def test_what_is_no_http_is_told_so_in_our_own_words(lines: Lines, mirror: RunningMirror) -> None:
    """Port scanners and broken proxies get JSON and a closed connection; the log gets one quiet line for each."""
    for name, data in MALFORMED.items():
        async with await RawClient.connect(mirror.app.port) as client:
            await client.send(data)
            head = await client.head()
            (error,) = json.loads(await client.rest())["errors"]
            assert (head.status, error["code"]) == (TOO_MUCH.get(name, 400), "UNSUPPORTED"), name
            assert head.headers["Content-Type"] == "application/json"
            assert "aiohttp" not in str(head.headers)

    assert mirror.metric("mirror_requests_total", result="refused", kind="none") == len(MALFORMED)
    assert lines.troubles() == []
    assert [line["event"] for line in lines.all()].count("malformed request") == len(MALFORMED)


TARGETS = [
    ("OPTIONS * HTTP/1.1", 404),
    ("CONNECT example.org:443 HTTP/1.1", 404),
    ("GET http://elsewhere/v2/ HTTP/1.1", 200),
    ("GET //v2/ HTTP/1.1", 404),
    ("GET /v2/../manifests/1 HTTP/1.1", 400),
    ("GET /v2/a/../b/manifests/1 HTTP/1.1", 400),
    ("GET /v2/%2e%2e/%2e%2e/manifests/1 HTTP/1.1", 400),
    ("GET /v2/../../etc/passwd HTTP/1.1", 404),
    ("GET /v2/demo/manifests/.. HTTP/1.1", 404),
    ("GET /v2/demo/blobs/%2e%2e HTTP/1.1", 400),
    ("GET /v2/% HTTP/1.1", 404),
    ("GET /v2/%zz/manifests/1 HTTP/1.1", 400),
    ("GET /v2/demo/manifests/%0A HTTP/1.1", 404),
    ("GET /v2/%0A HTTP/1.1", 404),
    ("GET /v2/demo/manifests/1?ns=docker.io&ns=evil&%FF=%00 HTTP/1.1", 400),
    ("GET /v2/demo/manifests/1#fragment HTTP/1.1", 404),
    ("GET /?" + "&".join(f"a{n}=b" for n in range(1000)) + " HTTP/1.1", 404),
]


async def test_odd_targets_are_ordinary_requests(lines: Lines, mirror: RunningMirror) -> None:
    """Every form of request target that HTTP has is understood or unknown; none is a fault of ours."""
    for line, code in TARGETS:
        async with await RawClient.connect(mirror.app.port) as client:
            await client.send(f"{line}\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            head = await client.head()
            body = await client.rest()

        assert head.status == code, line
        assert head.headers["Content-Type"] == "application/json"
        assert json.loads(body) is not None

    assert lines.troubles() == []


PARTS = [
    "v2",
    "demo",
    "library",
    "manifests",
    "blobs",
    "tags",
    "list",
    "referrers",
    "_catalog",
    "..",
    ".",
    "",
    "%2e%2e",
]
ODDITIES = [
    "%00",
    "%2F",
    "%ff",
    "%",
    "%zz",
    "%0d%0a",
    ":",
    "@",
    "~",
    "\\",
    "'",
    '"',
    "<b>",
    "{x}",
    "*",
    "$",
    "sha256:",
    "a",
]
METHODS = ["GET", "GET", "GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"]
HEADERS = ["Range: bytes=", "Range: bytes=-1-", "If-None-Match: ,,\"", "Accept: \xff", "Authorization: Basic ==",
           "X-Request-Id: \t", "Expect: x", "Upgrade: websocket", "Connection: upgrade, close", "If-Range: *",
           "Content-Encoding: gzip", "Cookie: a=b; ;;", "Accept-Encoding: *;q=0"]  # fmt: skip


async def test_no_request_is_our_fault(lines: Lines, mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """Hundreds of requests made of odd pieces: each is answered in JSON by something below 500, and none is logged
    as an error.
    """
    upstream.add_image("library/demo", "1")
    chance = random.Random(3)

    async def attempt() -> tuple[bytes, int, str]:
        parts = [chance.choice(PARTS if chance.random() < 0.8 else ODDITIES) for _ in range(chance.randint(0, 6))]
        query = chance.choice(["", "", "?", "?ns=docker.io", "?ns=" + chance.choice(ODDITIES), "?n=-1&last=%00"])
        lines_ = [f"{chance.choice(METHODS)} /{'/'.join(parts)}{query} HTTP/1.1", "Host: x"]
        lines_ += [chance.choice(HEADERS) for _ in range(chance.randint(0, 3))]
        request = "\r\n".join([*lines_, "", ""]).encode("latin-1")
        async with await RawClient.connect(mirror.app.port) as client:
            await client.send(request)
            head = await client.head()
            return request, head.status, head.headers.get("Content-Type", "")

    for _ in range(20):
        for request, code, content_type in await asyncio.gather(*(attempt() for _ in range(20))):
            assert code < 500, request
            assert content_type == "application/json" or code in (200, 206), request

    assert lines.troubles() == []


# Faults of our own.


class Broken(Files):
    """Fails in ways that no disk does."""

    def __init__(self) -> None:
        self.open_fails = self.send_fails = False

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        if self.open_fails and path.parent.parent.name == "sha256":
            raise ValueError("planted")
        return super().open(path, flags, mode)

    def open_at_hand(self, path: Path) -> int | None:
        return None  # as where nobody can tell

    def sendfile(self, out: int, fd: int, offset: int, count: int) -> int:
        if self.send_fails:
            raise ValueError("planted")
        return super().sendfile(out, fd, offset, count)


async def test_a_fault_of_ours_is_a_500_and_one_line(
    lines: Lines, start_mirror: StartMirror, upstream: FakeRegistry
) -> None:
    """The client learns nothing of our insides, the log learns all of it, once; the next request is right."""
    files = Broken()
    mirror = await start_mirror(files=files)
    blob = upstream.put_blob("library/demo", 1000)
    await mirror.blob("demo", blob.digest)
    await mirror.quiet()
    files.open_fails = True

    reply = await mirror.blob("demo", blob.digest)

    assert (reply.status, error_of(reply)["code"]) == (500, "UNKNOWN")
    assert b"planted" not in reply.body
    assert b"Error" not in reply.body
    files.open_fails = False
    assert (await mirror.blob("demo", blob.digest)).body == blob.content
    (trouble,) = lines.troubles()
    assert (trouble["level"], "ValueError: planted" in trouble["exception"]) == ("error", True)
    assert trouble["request_id"] == reply.headers["X-Request-Id"]


async def test_a_fault_of_ours_after_the_headers_ends_the_answer(
    lines: Lines, start_mirror: StartMirror, upstream: FakeRegistry
) -> None:
    """A second answer in the middle of the first would look like its bytes."""
    files = Broken()
    mirror = await start_mirror(files=files)
    blob = upstream.put_blob("library/demo", 100_000)
    await mirror.blob("demo", blob.digest)
    await mirror.quiet()
    files.send_fails = True

    async with await RawClient.connect(mirror.app.port) as client:
        await client.ask(f"/v2/demo/blobs/{blob.digest}")
        head = await client.head()
        body = await client.rest()

    assert (head.status, head.length, body) == (200, 100_000, b"")
    await mirror.app.traffic.recorded()
    assert len(lines.troubles()) == 1
    assert mirror.metric("mirror_requests_total", kind="blob", result="error", status="200") == 1


# Two upstreams.


async def test_a_dead_upstream_hurts_no_other(
    start_mirror: StartMirror, upstream: FakeRegistry, start_upstream: StartUpstream
) -> None:
    """One registry in trouble: requests to another are answered as ever."""
    dead = await start_upstream()
    mirror = await start_mirror(upstreams={"docker.io": upstream, "dead.test": dead})
    image = upstream.add_image("library/demo", "1")
    dead.add_image("team/app", "1")
    dead.fault("team/app", stall())

    answers = asyncio.gather(*(mirror.manifest("dead.test/team/app", "1") for _ in range(5)))
    alive = await mirror.manifest("demo", "1")

    assert alive.body == image.manifest.content
    assert {reply.status for reply in await answers} == {504}

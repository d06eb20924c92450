"""What is sent to a port by more than registry clients: other protocols, odd HTTP, bodies that nobody wants."""

from __future__ import annotations

import asyncio
import json
import ssl

import pytest

from mirror.oci.digest import Digest
from tests.harness import RunningMirror
from tests.lines import Lines, lines
from tests.raw import Head, RawClient
from tests.upstream import FakeRegistry, Image

__all__ = ["lines"]

END = b"\r\n\r\n"
PING = b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
DIGEST = Digest.of(b"anything")
LIMIT = 5.0


@pytest.fixture
def image(upstream: FakeRegistry) -> Image:
    """An image to be pulled after all that."""
    return upstream.add_image("library/demo", "1", layers=[5000])


async def talk(mirror: RunningMirror, *sent: bytes) -> bytes:
    """What comes back until the connection is closed, if it is within LIMIT."""
    async with asyncio.timeout(LIMIT), await RawClient.connect(mirror.app.port) as client:
        for data in sent:
            await client.send(data)
        return await client.rest()


def answers(received: bytes) -> list[tuple[int, bytes]]:
    """Status and body of each answer; every one has a Content-Length, an error has the envelope."""
    found = []
    while received:
        top, _, received = received.partition(b"\r\n\r\n")
        first, *fields = top.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in fields)}
        status, length = int(first.split(" ")[1]), int(headers["content-length"])
        body, received = received[:length], received[length:]
        assert len(body) == length
        if status >= 400:
            assert headers["content-type"] == "application/json"
            (error,) = json.loads(body)["errors"]
            assert (set(error), error["code"].isupper()) == ({"code", "message", "detail"}, True)
        found.append((status, body))
    return found


# Other protocols.

OTHERS = {
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
    "TLS": bytes.fromhex("16030100a5010000a10303") + bytes(range(160)),
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
    "SOCKS": b"\x05\x01\x00",
    "PROXY": b"PROXY TCP4 192.0.2.1 192.0.2.2 5 6\r\n" + PING,
    "SMTP": b"EHLO example.org\r\n",
    "Redis": b"*1\r\n$4\r\nPING\r\n",
    "NULs": bytes(1000),
    "a long line": b"a" * 70_000,
    "lines of LF": b"GET /v2/ HTTP/1.1\nHost: x\n\n",
    "HTTP/1.2": PING.replace(b"1.1", b"1.2"),
    "HTTP/3": PING.replace(b"1.1", b"3"),
    "http/1.1": PING.replace(b"HTTP", b"http"),
    "a lower-case method": PING.replace(b"GET", b"get"),
    "an endless method": b"G" * 10_000 + PING,
    "tabs": PING.replace(b" ", b"\t"),
    "no slash": PING.replace(b"/v2/", b"v2/"),
    "an asterisk": PING.replace(b"/v2/", b"*"),
    "two hosts": PING.replace(b"\r\n\r\n", b"\r\nHost: y\r\n\r\n"),
    "two lengths": PING.replace(b"\r\n\r\n", b"\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n"),
    "a signed length": PING.replace(b"\r\n\r\n", b"\r\nContent-Length: +0\r\n\r\n"),
    "an endless length": PING.replace(b"\r\n\r\n", b"\r\nContent-Length: " + b"9" * 30 + b"\r\n\r\n"),
    "an unknown framing": PING.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: xchunked\r\n\r\n"),
    "no chunk": PING.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
    "a folded header": PING.replace(b"\r\n\r\n", b"\r\nA: b\r\n c\r\n\r\n"),
    "a space in a name": PING.replace(b"Host:", b"Host :"),
    "a line without a colon": PING.replace(b"\r\n\r\n", b"\r\nhello\r\n\r\n"),
    "no name": PING.replace(b"\r\n\r\n", b"\r\n: hello\r\n\r\n"),
    "a port that is none": PING.replace(b"/v2/", b"http://x:99999/v2/"),
    "a query alone": PING.replace(b"/v2/", b"?n=1"),
}


@pytest.mark.parametrize("name", OTHERS)
async def test_what_is_no_request_is_told_so(lines: Lines, mirror: RunningMirror, image: Image, name: str) -> None:
    """One 400 in JSON, a closed connection, a quiet line; and the next client is served."""
    ((status, body),) = answers(await talk(mirror, OTHERS[name]))

    assert (status, json.loads(body)["errors"][0]["code"]) == (400, "UNSUPPORTED")
    assert (await mirror.manifest("demo", "1")).body == image.manifest.content
    assert lines.troubles() == []
    assert [line["event"] for line in lines.all()].count("malformed request") == 1


async def test_tls_on_the_plain_port_fails_at_once(mirror: RunningMirror) -> None:
    """podman and crane try https first and go on by http: they must not be left waiting."""
    context = ssl.create_default_context()
    with pytest.raises((ssl.SSLError, ConnectionError)):
        async with asyncio.timeout(LIMIT):
            await asyncio.open_connection("127.0.0.1", mirror.app.port, ssl=context, server_hostname="x")


async def test_a_client_without_a_word_costs_nothing(lines: Lines, mirror: RunningMirror, image: Image) -> None:
    """Health checks that only connect, scanners that leave in the middle of a line or of a body."""
    for data in (b"", b"GET /v2/ HT", PING[:-2], LAST.replace(b"\r\n\r\n", b"\r\nContent-Length: 50\r\n\r\nhalf")):
        for leave in (RawClient.close, RawClient.reset):
            client = await RawClient.connect(mirror.app.port)
            await client.send(data)
            leave(client)

    assert (await mirror.manifest("demo", "1")).body == image.manifest.content
    assert lines.troubles() == []


# Odd HTTP.


def having(request: bytes, lines: bytes) -> bytes:
    """The request with more header lines, and perhaps a body after them."""
    return request.replace(END, b"\r\n" + lines, 1)


PUT = b"PUT /v2/x HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
ODD: dict[str, tuple[list[bytes], list[int]]] = {
    "HTTP/1.0": ([b"GET /v2/ HTTP/1.0\r\n\r\n"], [200]),
    "HTTP/1.0 that stays": ([b"GET /v2/ HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", LAST], [200, 200]),
    "HTTP/2 offered": ([having(LAST, b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n")], [200]),
    "a web socket": ([having(PING, b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\n"), LAST], [200, 200]),
    "empty lines before": ([b"\r\n\r\n" + LAST], [200]),
    "an absolute target": ([LAST.replace(b"/v2/", b"http://elsewhere/v2/")], [200]),
    "a target without a path": ([LAST.replace(b"/v2/", b"http://elsewhere")], [404]),
    "all of the server": ([b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", LAST], [404, 200]),
    "a tunnel": ([b"CONNECT example.org:443 HTTP/1.1\r\nHost: x\r\n\r\n", LAST], [404, 200]),
    "a tunnel to nowhere": ([b"CONNECT  HTTP/1.1\r\nHost: x\r\n\r\n"], [404]),
    "a tunnel from long ago": ([b"CONNECT \r\n\r\n"], [404]),
    "a tunnel to a path": ([b"CONNECT /v2/ HTTP/1.1\r\nHost: x\r\n\r\n", LAST], [405, 200]),
    "an odd host": ([LAST.replace(b"Host: x", b"Host: a b/\xff")], [200]),
    "no host's name": ([LAST.replace(b"Host: x", b"Host:")], [200]),
    "an unknown expectation": ([having(LAST, b"Expect: the-spanish-inquisition\r\n\r\n")], [200]),
    "a body": ([having(PING, b"Content-Length: 5\r\n\r\nhello"), LAST], [200, 200]),
    "a body in chunks": (
        [having(PING, b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"), LAST],
        [200, 200],
    ),
    "a body that is no gzip": (
        [having(PING, b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc"), LAST],
        [200, 200],
    ),
    "requests in a row": ([PING * 50, LAST], [200] * 51),
    "a request in pieces": ([LAST[:9], LAST[9:30], LAST[30:]], [200]),
    "writes in a row": ([PUT * 3, LAST], [405, 405, 405, 200]),
}


@pytest.mark.parametrize("name", ODD)
async def test_odd_requests_are_answered_in_order(lines: Lines, mirror: RunningMirror, name: str) -> None:
    """Each by its own answer, on a connection that goes on where it can."""
    sent, expected = ODD[name]

    assert [status for status, _ in answers(await talk(mirror, *sent))] == expected
    assert lines.troubles() == []


async def test_http_0_9_is_answered_too(mirror: RunningMirror) -> None:
    """Nobody speaks it any more; whoever does is answered, and not left waiting."""
    assert (await talk(mirror, b"GET /v2/\r\n\r\n")).endswith(b"{}")


async def test_what_comes_before_garbage_is_not_lost_with_it(mirror: RunningMirror) -> None:
    """Once it has been read: garbage ends the connection, it does not undo what was asked before."""
    async with await RawClient.connect(mirror.app.port) as client:
        await client.send(PING)
        first, _ = await client.answer()
        await client.send(b"GARBAGE\r\n\r\n")
        second, _ = await client.answer()
        assert await client.rest() == b""
    assert (first.status, second.status) == (200, 400)


async def test_a_body_nobody_wants_is_not_waited_for(mirror: RunningMirror) -> None:
    """The answer comes at once, though the rest of a gigabyte does not, and nobody is told to go on with it."""
    for method, status, more in (("PUT", 405, {}), ("GET", 200, {}), ("GET", 200, {"Expect": "100-continue"})):
        async with asyncio.timeout(LIMIT), await RawClient.connect(mirror.app.port) as client:
            await client.ask("/v2/", method, Content_Length="1000000000", **more)
            await client.send(b"the beginning")
            head: Head = await client.head()
            assert head.status == status


# Words of the specification.

ENDPOINTS = (
    "/v2/",
    "/v2/_catalog",
    "/v2/demo/tags/list",
    "/v2/demo/manifests/1",
    f"/v2/demo/manifests/{DIGEST}",
    f"/v2/demo/blobs/{DIGEST}",
    "/v2/demo/blobs/uploads/",
    "/v2/demo/blobs/uploads/0d8a9b5e",
    f"/v2/demo/blobs/uploads/?mount={DIGEST}&from=library/other",
    f"/v2/demo/referrers/{DIGEST}",
    "/v2/demo/manifests/1?ns=docker.io",
    "/v2/ghcr.io/org/app/manifests/1",
)


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "TRACE", "OPTIONS", "PROPFIND", "LINK"])
async def test_no_endpoint_is_written_to(mirror: RunningMirror, upstream: FakeRegistry, method: str) -> None:
    """405 UNSUPPORTED, with what is allowed, whatever the endpoint and the method; the upstream hears nothing."""
    for path in ENDPOINTS:
        for body in (b"", b"some content"):
            async with asyncio.timeout(LIMIT), await RawClient.connect(mirror.app.port) as client:
                await client.ask(path, method, Content_Length=str(len(body)), Authorization="Basic eDp5")
                await client.send(body)
                head, text = await client.answer()
            assert (head.status, json.loads(text)["errors"][0]["code"]) == (405, "UNSUPPORTED"), path
            assert head.headers["Allow"] == "GET, HEAD"
    assert upstream.count() == 0


async def test_head_is_never_a_405(mirror: RunningMirror, upstream: FakeRegistry, image: Image) -> None:
    """containerd would go on by GET: of nothing that there is, nor of what there is not."""
    for path in (*ENDPOINTS, "/", "/v2", "/v2/demo", "/v1/_ping"):
        if "ghcr.io" not in path:
            assert (await mirror.get(path, method="HEAD")).status != 405, path


async def test_the_catalog_is_not_served(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """What may be pulled through here is nothing that can be listed: 404 UNSUPPORTED, with any query."""
    for path in ("/v2/_catalog", "/v2/_catalog?n=100", "/v2/_catalog?n=100&last=x&ns=docker.io", "/v2/_catalog/"):
        head, get = await mirror.get(path, method="HEAD"), await mirror.get(path)
        assert (head.status, get.status, get.code) == (404, 404, "UNSUPPORTED")
    assert upstream.count() == 0


@pytest.mark.parametrize("kind", ["manifests", "blobs", "referrers"])
async def test_every_bad_digest_is_a_400(mirror: RunningMirror, upstream: FakeRegistry, kind: str) -> None:
    """Another algorithm, a wrong length, capitals, or no hex: DIGEST_INVALID, and nobody is asked."""
    for algorithm, good in (("sha256", "0123456789abcdef" * 4), ("sha512", "0123456789abcdef" * 8)):
        bad = [
            good.upper(),
            good[1:],
            good + "0",
            "",
            "g" + good[1:],
            " " + good[1:],
            good[:-1] + "%00",
            good[:-1] + "=",
        ]
        bad += [f"{good[:-1]}é", "\u0660" * len(good)]
        for text in [f"{algorithm}:{encoded}" for encoded in bad]:
            reply = await mirror.get(f"/v2/demo/{kind}/{text}")
            assert (reply.status, reply.code) == (400, "DIGEST_INVALID"), text
    for text in (
        "md5:" + "0" * 32,
        "sha384:" + "0" * 96,
        "SHA256:" + "0" * 64,
        "sha256+b64u:x",
        "sha256-x:y",
        ":",
        "a:b:c",
    ):
        reply = await mirror.get(f"/v2/demo/{kind}/{text}")
        assert (reply.status, reply.code) == (400, "DIGEST_INVALID"), text
    assert upstream.count() == 0


# Secrets.

BROKEN = {
    "a long header": b"GET /v2/ HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer s3cret" + b"a" * 200_000 + b"\r\n\r\n",
    "a header of odd bytes": b"GET /v2/ HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer s3cret\x01\r\n\r\n",
    "a header without a name": b"GET /v2/ HTTP/1.1\r\nHost: x\r\ns3cret\r\n\r\n",
    "a target with a password": b"GET http://ci:s3cret@x:99999/v2/ HTTP/1.1\r\nHost: x\r\n\r\n",
    "a broken target": b"GET http://ci:s3cret@[::1/v2/ HTTP/1.1\r\nHost: x\r\n\r\n",
    "a long target": b"GET /v2/?token=s3cret" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "another version": b"GET /v2/?token=s3cret HTTP/7.7\r\nHost: x\r\n\r\n",
    "another method": b"s3cret /v2/ HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("name", BROKEN)
async def test_what_was_wrong_is_not_repeated(lines: Lines, mirror: RunningMirror, name: str) -> None:
    """A credential may stand in what could not be read: it reaches neither the answer nor the log."""
    async with asyncio.timeout(LIMIT), await RawClient.connect(mirror.app.port) as client:
        await client.send(BROKEN[name])
        head, body = await client.answer()

    assert head.status == {"a long header": 431, "a long target": 414}.get(name, 400)
    assert json.loads(body)["errors"][0]["message"]
    assert b"s3cret" not in body
    assert "s3cret" not in lines.text

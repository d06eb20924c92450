"""No secret leaves: a whole run of a real process, through success and every fault, and all that came out of it."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from mirror.auth.credentials import Credential
from mirror.auth.tokens import Grant, Token
from mirror.config import effective, load
from mirror.transport import Destination, Request
from tests.raw import RawClient
from tests.served import Served
from tests.upstream import (
    ANY,
    Basic,
    Bearer,
    FakeRegistry,
    garbage,
    header,
    html,
    redirect_loop,
    redirect_to,
    refuse,
    reset,
    stall,
    status,
    truncate,
)
from tests.upstream.fixtures import StartUpstream

HUB, CORP = "planted-hub-password", "planted-corp-pässword"
TOKEN = "fake-token"
"""What the fake's tokens begin with."""
SIGNATURE = "planted-signature"
REALM = "planted-realm-query"
BROUGHT = "planted-by-a-client"


def basic(user: str, password: str) -> str:
    """The value of a Basic header, without the scheme."""
    return base64.b64encode(f"{user}:{password}".encode()).decode()


SECRETS = (HUB, CORP, TOKEN, SIGNATURE, REALM, BROUGHT, *(basic("ci", it) for it in (HUB, CORP, BROUGHT)))

PROGRAM = """
from mirror.transport import Transport

send = Transport.send

async def broken(self, request, deadline):
    response = await send(self, request, deadline)
    if "crash" in str(request.url):
        raise RuntimeError("broken by the test")
    return response

Transport.send = broken
from mirror.cli import main
main()
"""
"""`mirror`, with a fault of our own in the middle of its secrets."""

TIMEOUTS = {
    "stale_after": "300ms",
    "try": "300ms",
    "first_byte": "900ms",
    "cold_head": "500ms",
    "stall": "300ms",
    "no_progress": "1s",
}

OURS = {
    "accept", "accept-encoding", "authorization", "host", "range", "user-agent",
}  # fmt: skip
"""The headers of our requests."""


class Run:
    """The process, what it is asked, and everything that it gives away."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.said: list[bytes] = []

    async def send(self, data: bytes, port: int | None = None) -> None:
        """Sends these bytes on a connection of its own and keeps what comes back, until it is closed."""
        async with await RawClient.connect(port or self.served.port) as client:
            try:
                await client.send(data)
                self.said.append(await self._answer(client))
            except ConnectionError:
                pass  # it need not take everything that is not HTTP

    async def _answer(self, client: RawClient) -> bytes:
        try:
            async with asyncio.timeout(1):
                return await client.rest()
        except TimeoutError:  # it was answered, and may ask again
            client.end()
            async with asyncio.timeout(5):
                return await client.rest()

    async def ask(self, path: str, method: str = "GET", **headers: str) -> bytes:
        """A request with a client's own credentials; returns the answer, which is kept."""
        carried = {
            "Authorization": f"Basic {basic('ci', BROUGHT)}",
            "Proxy-Authorization": f"Bearer {BROUGHT}",
            "Cookie": f"session={BROUGHT}",
            "X-Registry-Auth": base64.b64encode(json.dumps({"password": BROUGHT}).encode()).decode(),
            "X-Forwarded-For": "192.0.2.1",
            "X-Forwarded-Host": BROUGHT,
            "Forwarded": f"for=192.0.2.1;host={BROUGHT}",
            "X-Amz-Security-Token": BROUGHT,
            "TE": "trailers",
            "Upgrade": "h2c",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        lines = [f"{method} {path} HTTP/1.1", "Host: mirror", "Connection: close, X-Amz-Security-Token"]
        lines += [f"{name}: {value}" for name, value in carried.items()]
        before = len(self.said)
        await self.send("\r\n".join([*lines, "", ""]).encode())
        return self.said[-1] if len(self.said) > before else b""

    async def output(self) -> str:
        """Ends the process; all that it has said, wherever."""
        for path in ("/metrics", "/readyz", "/livez"):
            self.said.append((await self.served.get(path, self.served.admin_port))[2])
        self.served.process.terminate()
        assert await self.served.ended() == 0
        return "\n".join([*self.served.lines, *(answer.decode("latin-1") for answer in self.said)])


@pytest.fixture
async def corp(start_upstream: StartUpstream) -> FakeRegistry:
    """A registry that wants Basic credentials."""
    corp = await start_upstream(auth=Basic({"ci": CORP}))
    corp.add_image("team/app", "1", layers=[5000])
    return corp


def settings(home: Path, upstream: FakeRegistry, corp: FakeRegistry) -> dict[str, Any]:
    """Secrets in every place that a configuration has for them."""
    (home / "password").write_text(f"{HUB}\n")
    return {
        "log_level": "debug",
        "timeouts": TIMEOUTS,
        "upstreams": {
            "docker.io": {"url": upstream.url, "username": "ci", "password_file": str(home / "password")},
            "corp.test": {"url": corp.url, "username": "ci", "password": CORP},
        },
    }


@pytest.fixture
async def run(tmp_path: Path, upstream: FakeRegistry, corp: FakeRegistry) -> AsyncIterator[Run]:
    """The process, in front of a registry with tokens and one with Basic credentials."""
    upstream.auth = Bearer({"ci": HUB}, anonymous=False, realm=f"{upstream.url}/token?client_secret={REALM}")
    served = Served(tmp_path, upstream, program=("-c", PROGRAM), **settings(tmp_path, upstream, corp))
    await served.start()
    yield Run(served)
    await served.stop()


async def success(run: Run, upstream: FakeRegistry) -> None:
    """What a registry is for."""
    image = upstream.add_image("team/app", "1", layers=[5000])
    for path in (
        "/v2/",
        f"/v2/?ns=docker.io&token={BROUGHT}",
        "/v2/team/app/manifests/1",
        f"/v2/team/app/blobs/{image.layers[0].digest}",
        "/v2/team/app/tags/list",
        f"/v2/team/app/referrers/{image.digest}",
        "/v2/corp.test/team/app/manifests/1",
    ):
        assert b" 200 OK" in await run.ask(path), path
    await run.ask(f"/v2/team/app/manifests/absent?access_token={BROUGHT}", method="HEAD")
    await run.ask("/v2/team/app/blobs/uploads/", method="POST")


async def words_of_the_registry(run: Run, upstream: FakeRegistry) -> None:
    """Registries that repeat what they were sent, and worse, at every kind of request."""
    echo = f"you sent {basic('ci', HUB)} {HUB} {TOKEN}-1 {SIGNATURE}"
    for number, fault in enumerate(
        (
            status(500, body=echo.encode()),
            status(401, body=echo.encode(), headers={"WWW-Authenticate": f'Bearer realm="{echo}"'}),
            status(401, headers={"WWW-Authenticate": f'Bearer realm="https://ci:{HUB}@127.0.0.1/token?{SIGNATURE}"'}),
            status(401, headers={"WWW-Authenticate": f'Bearer realm="http://xn--a/?{SIGNATURE}",service="{HUB}"'}),
            status(403, body=json.dumps({"errors": [{"code": "DENIED", "message": echo, "detail": echo}]}).encode()),
            status(429, body=echo.encode(), headers={"Retry-After": "0", "X-Echo": echo}),
            status(404, body=echo.encode()),
            html(),
            garbage(),
            refuse(),
            reset(at=10),
            truncate(at=10),
            stall(),
            header("Content-Encoding", echo),
            header("Content-Type", echo),
            header("Docker-Content-Digest", echo),
            header("Link", f"<{echo}>; rel=next"),
        )
    ):
        image = upstream.add_image("team/odd", f"v{number}", layers=[5000 + number])
        rule = upstream.fault("team/odd", fault)
        for path in (f"manifests/v{number}", f"blobs/{image.layers[0].digest}", "tags/list"):
            await run.ask(f"/v2/team/odd/{path}")
        rule.remove()
        rule.release()


async def signed_places(run: Run, upstream: FakeRegistry) -> None:
    """Redirects to URLs that hold a credential of their own, and what goes wrong there."""
    for number, (location, fault) in enumerate(
        (
            (f"{upstream.cdn_url}/cdn/x?sig={SIGNATURE}", status(403, body=SIGNATURE.encode())),
            (f"{upstream.cdn_url}/cdn/x?sig={SIGNATURE}", status(500, body=SIGNATURE.encode())),
            (f"{upstream.cdn_url}/cdn/x?sig={SIGNATURE}", reset(at=0)),
            (f"{upstream.cdn_url}/cdn/x?sig={SIGNATURE}", garbage()),
            (f"{upstream.cdn_url}/cdn/x?sig={SIGNATURE}", redirect_loop()),
            (f"http://127.0.0.1:1/?sig={SIGNATURE}", None),
            (f"http://[::1/?sig={SIGNATURE}", None),
            (f"http://xn--a/?sig={SIGNATURE}", None),
            (f"http://{SIGNATURE}:{SIGNATURE}@127.0.0.1/?sig={SIGNATURE}", None),
            (f"ftp://127.0.0.1/?sig={SIGNATURE}", None),
            (f"https://127.0.0.1:{URL(upstream.url).port}/?sig={SIGNATURE}", None),
            (f"/v2/team/far/crash?sig={SIGNATURE}", None),
        )
    ):
        image = upstream.add_image("team/far", f"v{number}", layers=[6000 + number])
        rules = [upstream.fault("team/far", redirect_to(location))]
        if fault is not None:
            rules.append(upstream.fault(ANY, fault, origin="cdn"))
        for path in (f"manifests/v{number}", f"blobs/{image.layers[0].digest}"):
            await run.ask(f"/v2/team/far/{path}")
        for rule in rules:
            rule.remove()


async def words_of_the_endpoint(run: Run, upstream: FakeRegistry) -> None:
    """Token endpoints that are down, refuse, repeat what they were sent, or give what is no token."""
    upstream.add_image("team/app", "2")
    echo = f"{basic('ci', HUB)} {HUB} {TOKEN}-99"
    for number, fault in enumerate(
        (
            status(500, body=echo.encode()),
            status(401, body=echo.encode()),
            status(403, body=echo.encode()),
            status(429, body=echo.encode(), headers={"Retry-After": "0"}),
            status(200, body=echo.encode()),
            status(200, body=json.dumps({"token": f"{TOKEN} with a space"}).encode()),
            status(200, body=json.dumps({"token": [HUB], "expires_in": HUB}).encode()),
            garbage(),
            refuse(),
            stall(),
            redirect_to(f"http://elsewhere.test/token?sig={SIGNATURE}"),
            redirect_to(f"{upstream.cdn_url}/token?sig={SIGNATURE}"),
        )
    ):
        rule = upstream.fault(ANY, fault, kind="token")
        # A scope that no token is held for.
        await run.ask(f"/v2/team/new{number}/manifests/1")
        rule.remove()
        rule.release()
    await run.ask("/v2/team/crash/manifests/1")


async def credentials_that_go_bad(run: Run, upstream: FakeRegistry, corp: FakeRegistry) -> None:
    """Passwords that are changed at the registry, and files that are lost."""
    assert isinstance(upstream.auth, Bearer)
    assert isinstance(corp.auth, Basic)
    corp.auth.users["ci"] = "changed"
    await run.ask("/v2/corp.test/team/app/manifests/other")
    upstream.auth.users["ci"] = "changed"
    upstream.auth.expire_tokens()
    await run.ask("/v2/team/app/manifests/3")
    password = run.served.data.parent / "password"
    password.write_bytes(b"\xff" + HUB.encode())
    upstream.auth.expire_tokens()
    await run.ask("/v2/team/app/manifests/4")
    password.unlink()
    await run.ask("/v2/team/app/manifests/5")


async def words_of_clients(run: Run) -> None:
    """Requests that are none, with credentials in every place, on both ports."""
    value = basic("ci", BROUGHT).encode()
    plain = BROUGHT.encode()
    for port in (run.served.port, run.served.admin_port):
        for request in (
            b"GET /v2/ HTTP/1.1\r\nHost: x\r\nAuthorization: Basic " + value + b"\x00\r\n\r\n",
            b"GET /v2/ HTTP/1.1\r\nHost: x\r\nAuthorization: Basic " + value * 2000 + b"\r\n\r\n",
            b"GET /v2/ HTTP/1.1\r\nHost: x\r\nAuthorization: Basic " + plain * 8000 + b"\r\n\r\n",
            b"GET /v2/ HTTP/1.1\r\nHost: x\r\nAuthorization : Basic " + value + b"\r\n\r\n",
            b"GET /v2/ HTTP/1.1\r\nHost: x\r\nAuthorization: Basic\r\n " + value + b"\r\n\r\n",
            b"GET /v2/ HTTP/1.1\r\nHost: x\r\nAuthorization Basic " + value + b"\r\n\r\n",
            b"GET /v2/ HTTP/1.1\r\nHost: x\r\n" + value + b": x\r\n\r\n",
            b"GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: " + plain + b"\r\n\r\n",
            b"GET /v2/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: " + plain + b"\r\n\r\n",
            b"GET http://ci:" + plain + b"@mirror/v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            b"GET http://ci:" + plain + b"@[::1/v2/ HTTP/1.1\r\nHost: x\r\n\r\n",
            b"CONNECT ci:" + plain + b"@mirror:443 HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /?token=" + plain + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            b"GET /?token=" + plain * 3000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
            b"Authorization: Basic " + value + b"\r\n\r\n",
            b"Basic " + value + b"\r\n\r\n",
            b"POST /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 10000\r\n\r\n" + value,
            b"POST /v2/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + plain + b"\r\n",
            b"\x16\x03\x01" + plain,
        ):
            await run.send(request, port=port)


@pytest.mark.timeout(120)
async def test_a_whole_run_gives_no_secret_away(run: Run, upstream: FakeRegistry, corp: FakeRegistry) -> None:
    """At log level debug, through pulls, faults of every kind, refusals, crashes of our own and requests that are none:
    no line, metric, header, body or file holds a password, a token, a signature or what a client brought, in any form;
    and each credential went to whom it is for, and nothing of a client's to anybody.
    """
    await success(run, upstream)
    await words_of_the_registry(run, upstream)
    await signed_places(run, upstream)
    await words_of_the_endpoint(run, upstream)
    await credentials_that_go_bad(run, upstream, corp)
    await words_of_clients(run)

    output = await run.output()

    kept = b"".join(file.read_bytes() for file in run.served.data.rglob("*") if file.is_file())
    assert [secret for secret in SECRETS if secret in output or secret.encode() in kept] == []
    assert b"team/app" in kept
    assert "broken by the test" in output, "there was a traceback to look through"
    assert output.count('"event":"request"') > 80
    assert output.count('"event":"malformed request"') > 10
    for registry, password in ((upstream, HUB), (corp, CORP)):
        for seen in registry.requests:
            assert {name.lower() for name in seen.headers} <= OURS
            assert BROUGHT not in f"{seen.target} {seen.headers} {seen.body!r}"
            shown = seen.headers.get("Authorization", "")
            assert not shown or seen.origin == "registry"
            assert shown in ("", f"Basic {basic('ci', password)}") or shown.startswith(f"Bearer {TOKEN}")


@pytest.mark.timeout(120)
async def test_no_command_prints_a_secret(tmp_path: Path, upstream: FakeRegistry, corp: FakeRegistry) -> None:
    """`check-config` masks what is right and does not quote what is wrong."""
    right = settings(tmp_path, upstream, corp)
    mistakes: list[Mapping[str, Any]] = [
        {"url": f"https://ci:{CORP}@corp.test"},
        {"username": "ci", "password": [CORP]},
        {"username": "ci", "password": {"is": CORP}},
        {"username": f"ci:{CORP}", "password": CORP},
        {"password": CORP},
        {"username": "ci", "password": CORP, "password_file": "x"},
        {"username": "ci", "passwort": CORP},
    ]
    texts = []
    for number, entry in enumerate([right["upstreams"]["corp.test"], *mistakes]):
        file = tmp_path / f"{number}.yaml"
        file.write_text(json.dumps({**right, "upstreams": {"corp.test": entry}}))
        texts.append(await printed(file, {}))
    texts.append(await printed(tmp_path / "0.yaml", {"MIRROR_UPSTREAMS": f'{{"corp.test": {{"password": "{CORP}"'}))
    texts.append(await printed(tmp_path / "0.yaml", {"MIRROR_PASSWORD": CORP}))

    assert "username: ci" in texts[0]
    assert all(text.startswith("mirror: ") for text in texts[1:])
    assert [text for text in texts for secret in SECRETS if secret in text or ascii(secret)[1:-1] in text] == []


async def printed(file: Path, variables: Mapping[str, str]) -> str:
    """What `mirror check-config` prints."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MIRROR_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "mirror", "check-config", file, env={**env, **variables},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    return (await process.communicate())[0].decode()


def test_no_value_shows_its_secret(tmp_path: Path) -> None:
    """Whatever ends up in a message by accident, by repr or as text, masks what it holds."""
    file = tmp_path / "mirror.yaml"
    file.write_text(json.dumps({"upstreams": {"corp.test": {"username": "ci", "password": CORP}}}))
    loaded = load(file, {})
    upstream = loaded.upstreams["corp.test"]
    credential, url = Credential("ci", CORP), URL("https://corp.test/token")
    request = Request(Destination(None, url, upstream), url, "auth", authorization=credential.header)  # type: ignore[arg-type]  # its name does not matter
    values = [
        loaded,
        loaded.upstreams,
        upstream,
        loaded.model_dump(),
        loaded.model_dump_json(),
        effective(loaded),
        credential,
        credential.identity,
        Grant(url, None, "x", credential),
        Grant(url, None, "x", credential).key,
        Token(f"{TOKEN}-1"),
        request,
        request.asked,
    ]

    for value in values:
        for text in (repr(value), str(value), f"{value}", repr([value])):
            assert not [secret for secret in SECRETS if secret in text], type(value)

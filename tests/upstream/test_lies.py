"""Each switch of `lies` says what it should not; signed URLs are as strict as an object store's."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import aiohttp
import pytest
from yarl import URL

from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_INDEX, OCI_MANIFEST
from tests.upstream import (
    ANY,
    FakeRegistry,
    Fault,
    content_type,
    header,
    html,
    instead,
    no_digest,
    quota,
    redirect,
    redirect_loop,
    redirect_to,
    retry_after_forms,
    server_tls,
    status,
    strict_accept,
    then,
    wrong_digest,
)
from tests.upstream.certificates import client_tls
from tests.upstream.fixtures import StartUpstream


@pytest.mark.parametrize("code", [401, 403, 404, 405, 416, 429, 500, 502, 503, 504])
async def test_status(upstream: FakeRegistry, client: aiohttp.ClientSession, code: int) -> None:
    """Any status comes with the error envelope and its code; HEAD has no body."""
    image = upstream.add_image("x", "1")
    upstream.fault(image, status(code, retry_after=7, headers={"X-More": "yes"}))
    async with client.get(upstream.manifest_url("x", "1")) as response:
        assert response.status == code
        assert response.headers["Retry-After"] == "7"
        assert response.headers["X-More"] == "yes"
        error = (await response.json())["errors"][0]
    assert error["code"] == {404: "MANIFEST_UNKNOWN", 429: "TOOMANYREQUESTS", 401: "UNAUTHORIZED"}.get(
        code, error["code"]
    )
    async with client.head(upstream.manifest_url("x", "1")) as response:
        assert response.status == code
    assert upstream.bytes_for(image) == 0


async def test_status_with_a_body_of_its_own(upstream: FakeRegistry, client: aiohttp.ClientSession) -> None:
    """The body, its type and the error code can be chosen."""
    upstream.fault("/v2/", status(503, "<Error/>", content_type="application/xml"), times=1)
    async with client.get(upstream.url + "/v2/") as response:
        assert (await response.text(), response.content_type) == ("<Error/>", "application/xml")
    upstream.fault("/v2/", status(404, error="NAME_UNKNOWN"), times=1)
    async with client.get(upstream.url + "/v2/") as response:
        assert (await response.json())["errors"][0]["code"] == "NAME_UNKNOWN"


async def test_retry_after_in_each_form(upstream: FakeRegistry, client: aiohttp.ClientSession) -> None:
    """Every form reaches the client as it is written; those that mean a moment mean the right one."""
    forms = retry_after_forms(60.0)
    for value in forms.values():
        upstream.fault(ANY, status(429, retry_after=value), times=1)
        async with client.get(upstream.url + "/v2/") as response:
            assert response.headers["Retry-After"] == value
    now = datetime.now(UTC).timestamp()
    assert forms["seconds"] == "60"
    assert 50 < float(forms["epoch"]) - now < 70
    assert 50 < parsedate_to_datetime(forms["http-date"]).timestamp() - now < 70


async def test_html(upstream: FakeRegistry, client: aiohttp.ClientSession) -> None:
    """A web page comes with 200 in place of a blob, without its digest."""
    blob = upstream.put_blob("x", 1000)
    upstream.fault(blob, html())
    async with client.get(upstream.blob_url("x", blob)) as response:
        assert (response.status, response.content_type) == (200, "text/html")
        assert "Docker-Content-Digest" not in response.headers
        assert (await response.text()).startswith("<!DOCTYPE html>")


async def test_lying_headers(upstream: FakeRegistry, client: aiohttp.ClientSession) -> None:
    """Digest and type can be wrong or missing, any header can be set, and the bytes stay right."""
    image = upstream.add_image("x", "1")
    lies: dict[str, list[tuple[Fault, str | None]]] = {
        "Docker-Content-Digest": [(wrong_digest(), str(Digest.of(b"a lie"))), (no_digest(), None)],
        "Content-Type": [(content_type("text/plain"), "text/plain"), (content_type(None), None)],
        "X-Any": [(header("X-Any", "1"), "1")],
    }
    for name, cases in lies.items():
        for fault, expected in cases:
            rule = upstream.fault(image, fault)
            async with client.get(upstream.manifest_url("x", "1")) as response:
                assert response.headers.get(name) == expected
                assert await response.read() == image.manifest.content
            rule.remove()


async def test_other_content(upstream: FakeRegistry, client: aiohttp.ClientSession) -> None:
    """Other bytes come under the digest that was asked for."""
    blob, other = upstream.put_blob("x", 1000), upstream.put_blob("x", 1000)
    upstream.fault(blob, instead(other))
    async with client.get(upstream.blob_url("x", blob)) as response:
        assert response.headers["Docker-Content-Digest"] == str(blob.digest)
        assert Digest.of(await response.read()) == other.digest


async def test_tag_moves_between_head_and_get(upstream: FakeRegistry, client: aiohttp.ClientSession) -> None:
    """HEAD still names the old image, the GET that follows gives the new one."""
    old, new = upstream.add_image("x", "1"), upstream.add_image("x", "2")
    upstream.fault("x:1", then(lambda: upstream.move_tag("x", "1", new)), method="HEAD", times=1)
    async with client.head(upstream.manifest_url("x", "1")) as response:
        assert response.headers["Docker-Content-Digest"] == str(old.digest)
    async with client.get(upstream.manifest_url("x", "1")) as response:
        assert await response.read() == new.manifest.content


async def test_quota(upstream: FakeRegistry, client: aiohttp.ClientSession) -> None:
    """Each manifest GET costs one, HEAD none; at 0 they get 429."""
    upstream.add_image("x", "1")
    upstream.fault(ANY, quota(limit=100, remaining=2))
    url = upstream.manifest_url("x", "1")
    answers = []
    for method in ("HEAD", "GET", "GET", "GET", "HEAD"):
        async with client.request(method, url) as response:
            answers.append((response.status, response.headers["ratelimit-remaining"]))
    assert answers == [(200, f"{left};w=21600") if code == 200 else (429, "0;w=21600") for code, left in
                       [(200, 2), (200, 1), (200, 0), (429, 0), (200, 0)]]  # fmt: skip


async def test_strict_accept(upstream: FakeRegistry, client: aiohttp.ClientSession) -> None:
    """A manifest whose type is not accepted by name is 404."""
    upstream.add_image("x", "1")
    upstream.fault(ANY, strict_accept())
    for accept, code in {"*/*": 404, OCI_INDEX: 404, f"{OCI_INDEX}, {OCI_MANIFEST};q=0.5": 200}.items():
        async with client.get(upstream.manifest_url("x", "1"), headers={"Accept": accept}) as response:
            assert response.status == code


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_redirect_to_the_cdn(upstream: FakeRegistry, client: aiohttp.ClientSession, code: int) -> None:
    """The content is at a signed URL of another origin, whole and in ranges, without a digest header."""
    blob = upstream.put_blob("x/y", 100_000)
    upstream.fault(ANY, redirect(code), kind="blob")
    async with client.get(upstream.blob_url("x/y", blob), allow_redirects=False) as response:
        assert response.status == code
        location = response.headers["Location"]
    assert location.startswith(upstream.cdn_url)
    assert upstream.cdn_url != upstream.url
    async with client.get(URL(location, encoded=True)) as response:
        assert hashlib.sha256(await response.read()).hexdigest() == blob.digest.hex
        assert "Docker-Content-Digest" not in response.headers
    async with client.get(URL(location, encoded=True), headers={"Range": "bytes=5-9"}) as response:
        assert response.status == 206
        assert await response.read() == blob.content[5:10]
    assert upstream.requests_for(blob) == 1
    assert upstream.count(blob, origin="cdn", kind="blob") == 2


async def test_redirected_manifest(upstream: FakeRegistry, client: aiohttp.ClientSession) -> None:
    """A manifest asked for by tag can be redirected too."""
    image = upstream.add_image("x", "1")
    upstream.fault("x:1", redirect())
    async with client.get(upstream.manifest_url("x", "1"), allow_redirects=False) as response:
        location = response.headers["Location"]
    async with client.get(URL(location, encoded=True)) as response:
        assert await response.read() == image.manifest.content


def _requoted(location: str) -> str:
    return str(URL(location))


def _lowered(location: str) -> str:
    return location.replace("%2F", "%2f")


@pytest.mark.parametrize("rewrite", [_requoted, _lowered])
async def test_signed_urls_are_byte_exact(
    upstream: FakeRegistry, client: aiohttp.ClientSession, rewrite: Callable[[str], str]
) -> None:
    """A URL that a client has rewritten to an equal one is refused."""
    location = await _signed(upstream, client)
    changed = rewrite(location)
    assert changed != location
    async with client.get(URL(changed, encoded=True)) as response:
        assert response.status == 403
        assert "SignatureDoesNotMatch" in await response.text()


async def test_what_the_cdn_refuses(upstream: FakeRegistry, client: aiohttp.ClientSession) -> None:
    """Authorization is 400, another method, an expired URL and an unsigned one are 403."""
    location = URL(await _signed(upstream, client), encoded=True)
    async with client.get(location, headers={"Authorization": "Bearer x"}) as response:
        assert response.status == 400
        assert "Only one auth mechanism" in await response.text()
    async with client.head(location) as response:
        assert response.status == 403
    async with client.get(URL(await _signed(upstream, client, lifetime=-1), encoded=True)) as response:
        assert response.status == 403
        assert "expired" in await response.text()
    async with client.get(upstream.cdn_url + "/cdn/x/y") as response:
        assert response.status == 403


async def test_cdn_in_trouble(upstream: FakeRegistry, client: aiohttp.ClientSession) -> None:
    """The redirect's target can fail while the registry is well."""
    location = URL(await _signed(upstream, client), encoded=True)
    upstream.fault(ANY, status(503), origin="cdn", times=1)
    for expected in (503, 200):
        async with client.get(location) as response:
            assert response.status == expected


async def test_redirects_to_anywhere(upstream: FakeRegistry, client: aiohttp.ClientSession) -> None:
    """Location is sent byte for byte: a private address, a relative path, a loop."""
    blob = upstream.put_blob("x", 10)
    url = upstream.blob_url("x", blob)
    for location in ("http://10.0.0.1/a%2fb?c=%7E", "/elsewhere", "http://169.254.169.254/latest/meta-data/"):
        upstream.fault(blob, redirect_to(location, 302), times=1)
        async with client.get(url, allow_redirects=False) as response:
            assert (response.status, response.headers["Location"]) == (302, location)
    upstream.fault(blob, redirect_loop())
    with pytest.raises(aiohttp.TooManyRedirects):
        await client.get(url, max_redirects=5)
    assert upstream.requests_for(blob) == 3 + 5


async def test_downgrade(start_upstream: StartUpstream) -> None:
    """A fake that speaks TLS can redirect to plain HTTP."""
    upstream = await start_upstream(tls=server_tls())
    blob = upstream.put_blob("x", 10)
    upstream.fault(blob, redirect(downgrade=True))
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=client_tls())) as session,
        session.get(upstream.blob_url("x", blob), allow_redirects=False) as response,
    ):
        assert response.headers["Location"].startswith("http://127.0.0.1:")


async def _signed(upstream: FakeRegistry, client: aiohttp.ClientSession, lifetime: float = 300.0) -> str:
    blob = upstream.put_blob("team/app", 1000)
    upstream.fault(blob, redirect(lifetime=lifetime))
    async with client.get(upstream.blob_url("team/app", blob), allow_redirects=False) as response:
        return response.headers["Location"]

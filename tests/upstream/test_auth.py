"""Basic and bearer authentication are as strict, and as strange, as real registries'."""

from __future__ import annotations

from typing import Any, Literal

import aiohttp
import pytest

from tests.upstream import Basic, Bearer, FakeRegistry, status, truncate
from tests.upstream.fixtures import StartUpstream

_CI = "Basic Y2k6c2VjcmV0"  # ci:secret
_WRONG = "Basic Y2k6d3Jvbmc="  # ci:wrong


async def _token(
    upstream: FakeRegistry, client: aiohttp.ClientSession, scope: str, authorization: str | None = None
) -> dict[str, Any]:
    headers = {"Authorization": authorization} if authorization else {}
    params = {"service": "fake-registry", "scope": scope}
    async with client.get(upstream.url + "/token", params=params, headers=headers) as response:
        return {"status": response.status, **await response.json()}


async def _status(client: aiohttp.ClientSession, url: str, authorization: str | None = None) -> int:
    async with client.get(url, headers={"Authorization": authorization} if authorization else {}) as response:
        return response.status


async def test_private_without_authentication(upstream: FakeRegistry, client: aiohttp.ClientSession) -> None:
    """Where nobody can say who they are, a private repository is refused to all."""
    upstream.add_image("x", "1")
    upstream.make_private("x")
    assert await _status(client, upstream.manifest_url("x", "1")) == 403
    upstream.make_public("x")
    assert await _status(client, upstream.manifest_url("x", "1")) == 200


async def test_basic(start_upstream: StartUpstream, client: aiohttp.ClientSession) -> None:
    """Without the right password there is a challenge; a user who may not read a repository gets 403."""
    upstream = await start_upstream(auth=Basic({"ci": "secret"}))
    upstream.add_image("x", "1")
    url = upstream.manifest_url("x", "1")
    async with client.get(upstream.url + "/v2/") as response:
        assert response.status == 401
        assert response.headers["WWW-Authenticate"] == 'Basic realm="fake"'
    assert [await _status(client, url, given) for given in (None, _WRONG, "Basic ???", _CI)] == [401, 401, 401, 200]
    upstream.make_private("x", readers=["someone"])
    assert await _status(client, url, _CI) == 403


async def test_basic_for_private_repositories_only(
    start_upstream: StartUpstream, client: aiohttp.ClientSession
) -> None:
    """With `anonymous`, public content needs no credential, and a wrong one is refused all the same."""
    upstream = await start_upstream(auth=Basic({"ci": "secret"}, anonymous=True))
    upstream.add_image("open", "1")
    upstream.add_image("closed", "1")
    upstream.make_private("closed")
    assert await _status(client, upstream.manifest_url("open", "1")) == 200
    assert await _status(client, upstream.manifest_url("open", "1"), _WRONG) == 401
    assert await _status(client, upstream.manifest_url("closed", "1")) == 401
    assert await _status(client, upstream.manifest_url("closed", "1"), _CI) == 200


async def test_bearer(start_upstream: StartUpstream, client: aiohttp.ClientSession) -> None:
    """The challenge names endpoint, service and scope; a token opens the repository it is for and no other."""
    upstream = await start_upstream(auth=Bearer())
    upstream.add_image("x", "1")
    upstream.add_image("y", "1")
    async with client.get(upstream.url + "/v2/") as response:
        assert response.headers["WWW-Authenticate"] == f'Bearer realm="{upstream.url}/token",service="fake-registry"'
    async with client.get(upstream.manifest_url("x", "1")) as response:
        assert response.status == 401
        assert response.headers["WWW-Authenticate"].endswith(',scope="repository:x:pull"')
    minted = await _token(upstream, client, "repository:x:pull")
    assert minted["token"] == minted["access_token"]
    assert minted["expires_in"] == 300
    token = f"Bearer {minted['token']}"
    assert await _status(client, upstream.url + "/v2/", token) == 200
    assert await _status(client, upstream.manifest_url("x", "1"), token) == 200
    async with client.get(upstream.manifest_url("y", "1"), headers={"Authorization": token}) as response:
        assert response.status == 401
        assert 'error="insufficient_scope"' in response.headers["WWW-Authenticate"]
    assert upstream.count(kind="token") == 1


async def test_private_repositories_need_a_credential(
    start_upstream: StartUpstream, client: aiohttp.ClientSession
) -> None:
    """An anonymous token lacks the private scope, or `hidden` refuses it; the user's token works until revoked."""
    auth = Bearer({"ci": "secret"})
    upstream = await start_upstream(auth=auth)
    upstream.add_image("x", "1")
    upstream.make_private("x", readers=["ci"])
    url, scope = upstream.manifest_url("x", "1"), "repository:x:pull"
    anonymous = await _token(upstream, client, scope)
    assert await _status(client, url, f"Bearer {anonymous['token']}") == 401
    auth.hidden = 403
    assert (await _token(upstream, client, scope))["status"] == 403
    token = f"Bearer {(await _token(upstream, client, scope, _CI))['token']}"
    assert await _status(client, url, token) == 200
    upstream.make_private("x", readers=["someone"])
    assert await _status(client, url, token) == 401


async def test_refused_credentials(start_upstream: StartUpstream, client: aiohttp.ClientSession) -> None:
    """A wrong password is refused at the endpoint even for public content; so is nobody, where `anonymous` is off."""
    auth = Bearer({"ci": "secret"})
    upstream = await start_upstream(auth=auth)
    assert (await _token(upstream, client, "repository:x:pull", _WRONG))["status"] == 401
    auth.anonymous = False
    assert (await _token(upstream, client, "repository:x:pull"))["status"] == 401
    assert (await _token(upstream, client, "repository:x:pull", _CI))["status"] == 200


@pytest.mark.parametrize(("refusal", "challenged"), [("401", True), ("403", False), ("400", False)])
async def test_expired_tokens(
    start_upstream: StartUpstream,
    client: aiohttp.ClientSession,
    refusal: Literal["401", "403", "400"],
    challenged: bool,
) -> None:
    """An expired token is refused in the style of the day; a new one is good."""
    auth = Bearer(refusal=refusal)
    upstream = await start_upstream(auth=auth)
    upstream.add_image("x", "1")
    url = upstream.manifest_url("x", "1")
    token = f"Bearer {(await _token(upstream, client, 'repository:x:pull'))['token']}"
    assert await _status(client, url, token) == 200
    auth.expire_tokens()
    async with client.get(url, headers={"Authorization": token}) as response:
        assert response.status == int(refusal)
        assert ('error="invalid_token"' in response.headers.get("WWW-Authenticate", "")) == challenged
    token = f"Bearer {(await _token(upstream, client, 'repository:x:pull'))['token']}"
    assert await _status(client, url, token) == 200


async def test_tokens_end_by_themselves(start_upstream: StartUpstream, client: aiohttp.ClientSession) -> None:
    """A token with no lifetime is dead at once, whatever its answer claims."""
    upstream = await start_upstream(auth=Bearer(lifetime=0.0, says=3600))
    minted = await _token(upstream, client, "repository:x:pull")
    assert minted["expires_in"] == 3600
    assert await _status(client, upstream.url + "/v2/", f"Bearer {minted['token']}") == 401


async def test_odd_challenges_and_answers(start_upstream: StartUpstream, client: aiohttp.ClientSession) -> None:
    """Realm, service, scope, whole challenges and the answer's fields are as the test wants them."""
    auth = Bearer(realm="http://10.0.0.1/token", service=None, scope="aws", fields=["access_token"], says=None)
    auth.issued_at = None
    auth.ping_open = True
    upstream = await start_upstream(auth=auth)
    upstream.add_image("x", "1")
    url = upstream.manifest_url("x", "1")
    assert await _status(client, upstream.url + "/v2/") == 200
    async with client.get(url) as response:
        assert response.headers["WWW-Authenticate"] == 'Bearer realm="http://10.0.0.1/token",scope="aws"'
    minted = await _token(upstream, client, "aws")
    assert set(minted) == {"status", "access_token"}
    assert await _status(client, url, f"Bearer {minted['access_token']}") == 200
    auth.challenges = ["Negotiate", 'Basic realm="harbor"']
    async with client.get(url) as response:
        assert response.headers.getall("WWW-Authenticate") == ["Negotiate", 'Basic realm="harbor"']
    auth.challenges = []
    async with client.get(url) as response:
        assert (response.status, "WWW-Authenticate" in response.headers) == (401, False)


async def test_token_by_post(start_upstream: StartUpstream, client: aiohttp.ClientSession) -> None:
    """OAuth2's form is served, unless `post` is off."""
    auth = Bearer({"ci": "secret"})
    upstream = await start_upstream(auth=auth)
    form = {"grant_type": "password", "username": "ci", "password": "secret", "scope": "repository:x:pull"}
    async with client.post(upstream.url + "/token", data=form) as response:
        assert response.status == 200
    async with client.post(upstream.url + "/token", data={**form, "password": "wrong"}) as response:
        assert response.status == 401
    auth.post = False
    async with client.post(upstream.url + "/token", data=form) as response:
        assert response.status == 405


async def test_token_endpoint_on_another_origin(start_upstream: StartUpstream, client: aiohttp.ClientSession) -> None:
    """The endpoint is at the CDN's origin too, and meets faults like everything else."""
    auth = Bearer()
    upstream = await start_upstream(auth=auth)
    auth.realm = upstream.cdn_url + "/token"
    upstream.fault("/token", status(503), origin="cdn", times=1)
    for expected in (503, 200):
        assert await _status(client, auth.realm + "?scope=repository:x:pull") == expected
    assert upstream.count(kind="token", origin="cdn") == 2


async def test_refused_requests_use_no_fault_up(start_upstream: StartUpstream, client: aiohttp.ClientSession) -> None:
    """A request that authentication refuses does not spend a fault that waits for the real one."""
    upstream = await start_upstream(auth=Bearer())
    blob = upstream.put_blob("x", 10)
    rule = upstream.fault(blob, truncate(at=1), times=1)
    assert await _status(client, upstream.blob_url("x", blob)) == 401
    assert rule.hits == 0

"""Whatever proof a registry demands is given, once for all; secrets go where they belong; a refusal means one thing."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
import structlog
from structlog.testing import LogCapture

from mirror.oci.digest import Digest
from mirror.oci.errors import CredentialRejected, ManifestUnknown, UpstreamRefused, UpstreamThrottled, UpstreamTimeout
from mirror.oci.reference import Tag
from tests.asking import NAME, Asking, Names, StartAsking, failure, soon, start_asking, whole
from tests.upstream import (
    ANY,
    CA_FILE,
    Basic,
    Bearer,
    FakeRegistry,
    Fault,
    NoAuth,
    Seen,
    delay,
    html,
    redirect_to,
    server_tls,
    stall,
    status,
)
from tests.upstream.fixtures import StartUpstream, start_upstream, upstream

__all__ = ["start_asking", "start_upstream", "upstream"]

LATEST = Tag("latest")
PASSWORD = "planted-pass-word"
LOGIN = {"username": "ci", "password": PASSWORD}
USERS = {"ci": PASSWORD}


@pytest.fixture(autouse=True)
def image(upstream: FakeRegistry) -> Digest:
    """What is asked for everywhere; the manifest's digest."""
    return upstream.add_image("team/app", "latest", layers=(5000,)).digest


@pytest.fixture
def log() -> Iterator[LogCapture]:
    """Every line that is logged."""
    capture = LogCapture()
    before = structlog.get_config()["processors"]
    structlog.configure(processors=[capture])
    yield capture
    structlog.configure(processors=before)


async def pulled(asking: Asking, repository: str = "team/app") -> Digest | None:
    """The digest that a GET of the tag gives."""
    return (await asking.upstreams.get_manifest(asking.target(repository), LATEST, soon(5))).digest


def tokens(upstream: FakeRegistry) -> list[dict[str, list[str]]]:
    """What the token endpoint was asked, as query parameters."""
    return [
        parse_qs(seen.target.partition("?")[2], keep_blank_values=True)
        for seen in upstream.select(kind="token", origin="registry")
    ]


def shows(seen: Seen, secret: str = PASSWORD) -> bool:
    """Whether a request carried our password in any form."""
    encoded = base64.b64encode(f"ci:{secret}".encode()).decode()
    return secret in seen.target or encoded in str(seen.headers) or secret in str(seen.headers)


class TestChallenges:
    """What a registry wants is learned once, from `/v2/` and from its refusals."""

    async def test_the_challenge_is_learned_once(
        self, upstream: FakeRegistry, start_asking: StartAsking, image: Digest
    ) -> None:
        """One ping, without credentials, for any number of requests at once and after."""
        upstream.auth = Bearer(USERS)
        asking = start_asking(upstream.url, **LOGIN)

        assert set(await asyncio.gather(*(pulled(asking) for _ in range(20)))) == {image}
        assert await pulled(asking) == image
        pings = upstream.select(kind="ping")
        assert len(pings) == 1
        assert "Authorization" not in pings[0].headers

    async def test_an_open_registry_is_asked_for_no_token(
        self, upstream: FakeRegistry, start_asking: StartAsking, image: Digest
    ) -> None:
        """Nor does it see the credential that is configured."""
        asking = start_asking(upstream.url, **LOGIN)

        assert await pulled(asking) == image
        assert not any("Authorization" in seen.headers for seen in upstream.requests)
        assert upstream.count(kind="token") == 0

    async def test_an_open_ping_does_not_mean_open_content(
        self, upstream: FakeRegistry, start_asking: StartAsking, image: Digest
    ) -> None:
        """The 401 of the request itself is answered, and remembered for its repository."""
        upstream.auth = Bearer(ping_open=True)
        asking = start_asking(upstream.url)

        assert await pulled(asking) == image
        assert [seen.status for seen in upstream.select(kind="manifest")] == [401, 200]
        await asking.upstreams.head_manifest(asking.target(), LATEST, soon())
        assert upstream.count(status=401) == 1

    @pytest.mark.parametrize("fault", [status(500), stall(), html(), status(429)], ids=lambda fault: fault.name)
    async def test_a_ping_that_fails_is_not_fatal(
        self, upstream: FakeRegistry, start_asking: StartAsking, image: Digest, fault: Fault
    ) -> None:
        """The challenge of the request itself is enough."""
        upstream.auth = Bearer()
        upstream.fault(ANY, fault, kind="ping", times=1)
        asking = start_asking(upstream.url)

        assert await pulled(asking) == image
        assert upstream.count(kind="ping") == 1

    async def test_a_refusal_of_nothing_shown_is_no_answer_after_a_failed_ping(
        self, upstream: FakeRegistry, start_asking: StartAsking
    ) -> None:
        """Without a challenge from anywhere nobody knows whether a token would have done: not a "no"."""
        upstream.auth = Bearer(challenges=())
        upstream.fault(ANY, status(500), kind="ping")
        asking = start_asking(upstream.url)

        error = await failure(pulled(asking))

        assert error.reason == "status"
        assert "/v2/ did not answer" in error.message

    async def test_a_challenge_we_cannot_meet_is_a_no_also_after_a_failed_ping(
        self, upstream: FakeRegistry, start_asking: StartAsking
    ) -> None:
        """The request itself was told what is wanted: a password, and there is none."""
        upstream.auth = Basic(USERS)
        upstream.fault(ANY, status(500), kind="ping")
        asking = start_asking(upstream.url)

        with pytest.raises(UpstreamRefused):
            await pulled(asking)

    async def test_a_rejected_token_may_be_answered_with_another_scheme(
        self, upstream: FakeRegistry, start_asking: StartAsking, image: Digest
    ) -> None:
        """Harbor challenges with Basic then; the challenge of `/v2/` stays right, and no password is sent."""
        auth = upstream.auth = Bearer(USERS)
        asking = start_asking(upstream.url, **LOGIN)
        assert await pulled(asking) == image
        auth.expire_tokens()
        auth.challenges = ('Basic realm="harbor"',)

        assert await pulled(asking) == image
        assert not any(shows(seen) for seen in upstream.content_requests())

    async def test_challenges_of_several_kinds_are_understood(
        self, upstream: FakeRegistry, start_asking: StartAsking, image: Digest
    ) -> None:
        """Bearer is preferred, unknown schemes are skipped, a relative realm belongs to the registry."""
        upstream.auth = Bearer(
            USERS, challenges=("Negotiate", 'Basic realm="x", BEARER Realm = "/token" , service=fake-registry')
        )
        asking = start_asking(upstream.url, **LOGIN)

        assert await pulled(asking) == image
        assert tokens(upstream) == [{"service": ["fake-registry"], "scope": ["repository:team/app:pull"]}]

    async def test_a_token_endpoint_that_has_moved_is_found(
        self, upstream: FakeRegistry, start_asking: StartAsking, image: Digest
    ) -> None:
        """An endpoint that fails makes us ask `/v2/` anew, but not with every request."""
        auth = upstream.auth = Bearer(realm="http://127.0.0.1:1/token")
        asking = start_asking(upstream.url)
        await failure(pulled(asking))
        auth.realm = None

        assert await pulled(asking) == image
        assert upstream.count(kind="ping") == 2
        auth.expire_tokens()
        upstream.fault(ANY, status(404), kind="token", times=3)
        for _ in range(3):
            await failure(pulled(asking))
        assert upstream.count(kind="ping") == 2

    async def test_a_large_page_at_the_ping_is_an_answer(
        self, upstream: FakeRegistry, start_asking: StartAsking, image: Digest
    ) -> None:
        """Whatever stands there with 200, nothing is demanded."""
        upstream.fault(ANY, status(200, "x" * 1_000_000), kind="ping")
        asking = start_asking(upstream.url)

        assert await pulled(asking) == image
        upstream.make_private("team/app")
        with pytest.raises(UpstreamRefused):
            await pulled(asking)


class TestTokens:
    """Tokens are minted once and used until they end."""

    async def test_a_token_is_minted_once_for_all(
        self, upstream: FakeRegistry, start_asking: StartAsking, image: Digest
    ) -> None:
        """Twenty requests at once and others later cost one token; another repository costs another."""
        upstream.auth = Bearer()
        upstream.add_image("team/other", "latest")
        upstream.fault(ANY, delay(0.05), kind="token")
        asking = start_asking(upstream.url)

        assert set(await asyncio.gather(*(pulled(asking) for _ in range(20)))) == {image}
        await pulled(asking)
        assert upstream.count(kind="token") == 1
        await pulled(asking, "team/other")
        assert upstream.count(kind="token") == 2

    async def test_a_caller_that_leaves_does_not_take_the_token_along(
        self, upstream: FakeRegistry, start_asking: StartAsking, image: Digest
    ) -> None:
        """Whoever starts a mint may go; those who wait get it."""
        upstream.auth = Bearer()
        rule = upstream.fault(ANY, delay(10), kind="token", times=1)
        asking = start_asking(upstream.url)
        first = asyncio.create_task(pulled(asking))
        await rule.reached.wait()
        second = asyncio.create_task(pulled(asking))
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        rule.release()

        assert await second == image
        assert upstream.count(kind="token") == 1

    @pytest.mark.parametrize(
        ("auth", "query"),
        [
            (Bearer(), {"service": ["fake-registry"], "scope": ["repository:team/app:pull"]}),
            (Bearer(service=None), {"scope": ["repository:team/app:pull"]}),
            (Bearer(service=""), {"service": [""], "scope": ["repository:team/app:pull"]}),
            (
                Bearer(scope="aws", challenges=('Bearer realm="/token",service="public.ecr.aws",scope="aws"',)),
                {"service": ["public.ecr.aws"], "scope": ["aws"]},
            ),
        ],
        ids=["usual", "no-service", "empty-service", "own-scope"],
    )
    async def test_the_endpoint_is_asked_as_the_challenge_says(
        self, upstream: FakeRegistry, start_asking: StartAsking, image: Digest, auth: Bearer, query: dict[str, Any]
    ) -> None:
        """Service as it is given or not at all; the registry's own scope, else the repository's."""
        upstream.auth = auth
        asking = start_asking(upstream.url)

        assert await pulled(asking) == image
        assert tokens(upstream) == [query]

    async def test_a_scope_that_only_the_request_is_told_is_learned(
        self, upstream: FakeRegistry, start_asking: StartAsking, image: Digest
    ) -> None:
        """A fresh token for the wrong scope is no denial where the challenge names another; later requests know."""
        upstream.auth = Bearer(scope="aws")
        asking = start_asking(upstream.url)

        for _ in range(2):
            assert await pulled(asking) == image
        assert [query["scope"] for query in tokens(upstream)] == [["repository:team/app:pull"], ["aws"]]
        assert upstream.count(kind="manifest") == 3

    async def test_the_realms_own_query_is_kept(
        self, upstream: FakeRegistry, start_asking: StartAsking, image: Digest
    ) -> None:
        """nvcr.io and others put parameters there."""
        upstream.auth = Bearer(realm=f"{upstream.url}/token?account=x&kept=a%20b", service=None)
        asking = start_asking(upstream.url)

        assert await pulled(asking) == image
        assert tokens(upstream) == [{"account": ["x"], "kept": ["a b"], "scope": ["repository:team/app:pull"]}]

    @pytest.mark.parametrize(
        "auth",
        [
            Bearer(fields=("token",)),
            Bearer(fields=("access_token",)),
            Bearer(says=None, issued_at=None),
            Bearer(says=1),
            Bearer(says="nan"),
            Bearer(says=10**400),
            Bearer(issued_at="2001-01-01T00:00:00Z"),
            Bearer(issued_at="2999-01-01T00:00:00.123456789Z"),
            Bearer(issued_at="yesterday"),
        ],
        ids=[
            "token",
            "access_token",
            "nothing-said",
            "a-second",
            "no-number",
            "no-end",
            "long-ago",
            "future",
            "nonsense",
        ],
    )
    async def test_any_form_of_token_answer_will_do(
        self, upstream: FakeRegistry, start_asking: StartAsking, image: Digest, auth: Bearer
    ) -> None:
        """Either field; a lifetime that is missing, short or makes no sense is a minute, so the token is used again."""
        upstream.auth = auth
        asking = start_asking(upstream.url)

        assert await pulled(asking) == image
        assert await pulled(asking) == image
        assert upstream.count(kind="token") == 1

    async def test_the_age_of_a_token_counts(
        self, upstream: FakeRegistry, start_asking: StartAsking, image: Digest
    ) -> None:
        """One that was issued almost its lifetime ago is used now and not kept."""
        issued = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 297))
        upstream.auth = Bearer(lifetime=300, issued_at=issued)
        asking = start_asking(upstream.url)

        assert await pulled(asking) == image
        assert await pulled(asking) == image
        assert upstream.count(kind="token") == 2

    @pytest.mark.parametrize("refusal", ["401", "403", "400"])
    async def test_an_expired_token_is_replaced_once(
        self, upstream: FakeRegistry, start_asking: StartAsking, image: Digest, refusal: Any
    ) -> None:
        """However the registry says so; all who held it share the new one."""
        auth = upstream.auth = Bearer(refusal=refusal)
        asking = start_asking(upstream.url)
        await pulled(asking)
        auth.expire_tokens()

        assert set(await asyncio.gather(*(pulled(asking) for _ in range(20)))) == {image}
        assert (await asking.upstreams.head_manifest(asking.target(), LATEST, soon())).digest == image
        assert upstream.count(kind="token") == 2

    async def test_a_late_refusal_does_not_discard_the_new_token(
        self, upstream: FakeRegistry, start_asking: StartAsking, image: Digest
    ) -> None:
        """Who hears only now that the old token is bad uses the one that others have got since."""
        upstream.auth = Bearer()
        asking = start_asking(upstream.url)
        await pulled(asking)
        upstream.fault(ANY, status(401), kind="manifest", times=2)
        late = upstream.fault(ANY, delay(10), kind="manifest", times=1)
        second = asyncio.create_task(pulled(asking))
        await late.reached.wait()

        assert await pulled(asking) == image
        late.release()

        assert await second == image
        assert upstream.count(kind="token") == 2

    async def test_a_mint_that_runs_out_of_time_is_not_the_end_for_who_joined_it(
        self, upstream: FakeRegistry, start_asking: StartAsking, image: Digest
    ) -> None:
        """Whoever has time left asks again, once the endpoint may have recovered."""
        upstream.auth = Bearer()
        held = upstream.fault(ANY, stall(), kind="token", times=3)
        asking = start_asking(upstream.url)
        first = asyncio.create_task(pulled(asking))
        await held.reached.wait()

        assert await pulled(asking) == image
        await asyncio.gather(first, return_exceptions=True)

    @pytest.mark.parametrize("refusal", ["401", "403", "400"])
    async def test_a_head_with_an_expired_token_is_replaced_too(
        self, upstream: FakeRegistry, start_asking: StartAsking, image: Digest, refusal: Any
    ) -> None:
        """A refusal of HEAD has no body to explain itself."""
        auth = upstream.auth = Bearer(refusal=refusal)
        asking = start_asking(upstream.url)
        await pulled(asking)
        auth.expire_tokens()

        assert (await asking.upstreams.head_manifest(asking.target(), LATEST, soon())).digest == image

    @pytest.mark.parametrize(
        ("fault", "reason"),
        [
            (status(500), "status"),
            (status(429, retry_after=30), "throttled"),
            (stall(), "timeout"),
            (status(404), "token"),
            (html(), "token"),
            (status(200, "{}"), "token"),
            (status(200, '{"token": "a b\\r\\nX-Evil: 1"}'), "token"),
            (status(200, '{"token": "' + "x" * (70 << 10) + '"}'), "size"),
        ],
        ids=["500", "429", "stall", "404", "page", "no-token", "unsendable", "too-large"],
    )
    async def test_an_endpoint_that_gives_no_token_is_no_answer(
        self, upstream: FakeRegistry, start_asking: StartAsking, image: Digest, fault: Fault, reason: str
    ) -> None:
        """Never a "no"; and it is not remembered: the next request asks again."""
        upstream.auth = Bearer()
        rule = upstream.fault(ANY, fault, kind="token")
        asking = start_asking(upstream.url)

        error = await failure(asking.upstreams.get_manifest(asking.target(), LATEST, soon()))

        assert error.reason == reason
        assert isinstance(error, UpstreamThrottled) == (reason == "throttled")
        assert isinstance(error, UpstreamTimeout) == (reason == "timeout")
        if reason != "throttled":
            rule.remove()
            rule.release()
            assert await pulled(asking) == image

    async def test_a_token_endpoint_that_fails_once_is_asked_again(
        self, upstream: FakeRegistry, start_asking: StartAsking, image: Digest
    ) -> None:
        """Tokens are tried for like content."""
        upstream.auth = Bearer()
        upstream.fault(ANY, status(502), kind="token", times=1)
        asking = start_asking(upstream.url)

        assert await pulled(asking) == image

    async def test_a_range_error_with_a_token_is_not_a_refusal(
        self, upstream: FakeRegistry, start_asking: StartAsking
    ) -> None:
        """A 400 that says nothing of denial, to a fresh token, is what it is for other registries."""
        upstream.auth = Bearer()
        upstream.fault(ANY, status(400, "bad request"), kind="manifest")
        asking = start_asking(upstream.url)

        assert (await failure(pulled(asking))).reason == "status"


class TestRefusals:
    """A "no" to us, a "no" to this repository, and a credential that is no longer good are three things."""

    async def test_a_refusal_of_a_fresh_token_is_a_no(self, upstream: FakeRegistry, start_asking: StartAsking) -> None:
        """Asked once with a fresh token; once more only where the token was an old one."""
        upstream.auth = Bearer()
        upstream.add_image("team/secret", "latest")
        upstream.make_private("team/secret")
        asking = start_asking(upstream.url)

        for sends in (1, 3):
            with pytest.raises(UpstreamRefused):
                await pulled(asking, "team/secret")
            assert upstream.count("team/secret") == sends

    async def test_an_endpoint_that_refuses_strangers_is_a_no(
        self, upstream: FakeRegistry, start_asking: StartAsking
    ) -> None:
        """GHCR and Google refuse there what is private or missing."""
        upstream.auth = Bearer(hidden=403)
        upstream.make_private("team/app")
        asking = start_asking(upstream.url)

        with pytest.raises(UpstreamRefused, match="anonymous access"):
            await pulled(asking)
        assert upstream.count(kind="token") == 1

    async def test_a_repository_that_a_good_credential_may_not_read_is_a_no(
        self, upstream: FakeRegistry, start_asking: StartAsking
    ) -> None:
        """The endpoint refuses the scope and accepts the credential: nothing is wrong with that."""
        upstream.auth = Bearer(USERS, hidden=403)
        upstream.make_private("team/app", ["somebody"])
        asking = start_asking(upstream.url, **LOGIN)

        with pytest.raises(UpstreamRefused, match="configured credential"):
            await pulled(asking)
        assert tokens(upstream)[-1] == {"service": ["fake-registry"]}
        assert asking.metric("credentials_rejected") == 0

    async def test_a_credential_that_the_endpoint_refuses_is_no_answer(
        self, upstream: FakeRegistry, start_asking: StartAsking, log: LogCapture, image: Digest
    ) -> None:
        """The operator hears it once, in the log and in a metric, until it works again; it is asked anew each time."""
        auth = upstream.auth = Bearer({"ci": "changed"})
        asking = start_asking(upstream.url, **LOGIN)

        for _ in range(2):
            assert isinstance(await failure(pulled(asking)), CredentialRejected)
        assert asking.metric("credentials_rejected") == 1
        assert [(line["log_level"], line["upstream"]) for line in log.entries] == [("error", NAME)]
        assert upstream.count(kind="token") == 4

        auth.users = USERS
        assert await pulled(asking) == image
        assert asking.metric("credentials_rejected") == 0

    async def test_a_credential_that_went_bad_is_noticed_behind_a_refusal(
        self, upstream: FakeRegistry, start_asking: StartAsking
    ) -> None:
        """Also after it had been good: what the endpoint said of it before is not remembered."""
        auth = upstream.auth = Bearer(USERS, hidden=403)
        upstream.make_private("team/app", ["somebody"])
        asking = start_asking(upstream.url, **LOGIN)
        with pytest.raises(UpstreamRefused):
            await pulled(asking)

        auth.users = {"ci": "changed"}

        assert isinstance(await failure(pulled(asking)), CredentialRejected)

    async def test_basic_credentials_are_shown_to_the_registry(
        self, upstream: FakeRegistry, start_asking: StartAsking, image: Digest
    ) -> None:
        """And to nobody else; not to the ping either."""
        upstream.auth = Basic(USERS)
        asking = start_asking(upstream.url, **LOGIN)

        assert await pulled(asking) == image
        assert [(seen.kind, shows(seen)) for seen in upstream.requests] == [("ping", False), ("manifest", True)]
        assert asking.metric("credentials_rejected") == 0

    async def test_a_basic_credential_that_is_wrong_is_no_answer(
        self, upstream: FakeRegistry, start_asking: StartAsking, log: LogCapture, image: Digest
    ) -> None:
        """`/v2/` tells whether it is the credential or the repository."""
        auth = upstream.auth = Basic({"ci": "changed"})
        asking = start_asking(upstream.url, **LOGIN)

        assert isinstance(await failure(pulled(asking)), CredentialRejected)
        assert asking.metric("credentials_rejected") == 1
        assert len(log.entries) == 1

        auth.users = USERS
        assert await pulled(asking) == image
        assert asking.metric("credentials_rejected") == 0

    async def test_a_basic_credential_that_may_not_read_is_a_no(
        self, upstream: FakeRegistry, start_asking: StartAsking
    ) -> None:
        """`/v2/` accepts it."""
        upstream.auth = Basic(USERS)
        upstream.make_private("team/app", ["somebody"])
        asking = start_asking(upstream.url, **LOGIN)

        with pytest.raises(UpstreamRefused):
            await pulled(asking)
        assert asking.metric("credentials_rejected") == 0

    async def test_a_registry_that_wants_a_password_refuses_strangers(
        self, upstream: FakeRegistry, start_asking: StartAsking
    ) -> None:
        """Without a configured credential a Basic challenge is a "no"."""
        upstream.auth = Basic(USERS)
        asking = start_asking(upstream.url)

        with pytest.raises(UpstreamRefused):
            await pulled(asking)
        assert upstream.count(kind="manifest") == 1

    async def test_an_open_repository_behind_basic_is_open(
        self, upstream: FakeRegistry, start_asking: StartAsking, image: Digest
    ) -> None:
        """A challenge of `/v2/` does not keep us from asking without a credential."""
        upstream.auth = Basic(USERS, anonymous=True)
        upstream.fault(ANY, status(401, headers={"WWW-Authenticate": 'Basic realm="x"'}), kind="ping")
        asking = start_asking(upstream.url)

        assert await pulled(asking) == image

    async def test_a_private_repository_without_any_challenge_is_a_no(
        self, upstream: FakeRegistry, start_asking: StartAsking
    ) -> None:
        """403 where nothing was demanded."""
        upstream.auth = NoAuth()
        upstream.make_private("team/app")
        asking = start_asking(upstream.url)

        with pytest.raises(UpstreamRefused):
            await pulled(asking)

    async def test_a_password_file_that_is_gone_is_no_answer(
        self, upstream: FakeRegistry, start_asking: StartAsking, log: LogCapture, tmp_path: Path, image: Digest
    ) -> None:
        """It counts as a rejected credential; a new file is used at once."""
        upstream.auth = Bearer(USERS)
        file = tmp_path / "password"
        asking = start_asking(upstream.url, username="ci", password_file=file)

        assert isinstance(await failure(pulled(asking)), CredentialRejected)
        assert asking.metric("credentials_rejected") == 1
        assert str(file) in log.entries[0]["problem"]

        file.write_text(PASSWORD + "\n")
        assert await pulled(asking) == image


class TestRealms:
    """Nothing is sent to a token endpoint that the upstream has no claim to."""

    @pytest.mark.parametrize("login", [{}, LOGIN], ids=["anonymous", "credential"])
    async def test_a_foreign_realm_is_sent_nothing(
        self, upstream: FakeRegistry, start_upstream: StartUpstream, start_asking: StartAsking, login: dict[str, str]
    ) -> None:
        """Neither credentials nor a question; the message names the host and the key that could permit it."""
        thief = await start_upstream(auth=Bearer(USERS))
        upstream.auth = Bearer(USERS, realm=thief.url.replace("127.0.0.1", "thief.test") + "/token")
        names = Names({"thief.test": "127.0.0.1"})
        asking = start_asking(upstream.url, resolver=names, **login)

        error = await failure(pulled(asking))

        assert error.reason == "realm"
        assert "thief.test" in error.message
        assert "token_hosts" in error.message
        assert (thief.requests, names.asked) == ([], [])

    async def test_a_foreign_realm_that_is_listed_is_used(
        self, upstream: FakeRegistry, start_asking: StartAsking, image: Digest
    ) -> None:
        """The operator permits split domains with token_hosts."""
        upstream.auth = Bearer(USERS, realm=upstream.url.replace("127.0.0.1", "sso.test") + "/token")
        asking = start_asking(
            upstream.url, resolver=Names({"sso.test": "127.0.0.1"}), token_hosts=("sso.test",), **LOGIN
        )

        assert await pulled(asking) == image

    async def test_a_public_upstream_names_no_private_endpoint(
        self, upstream: FakeRegistry, start_asking: StartAsking, image: Digest
    ) -> None:
        """Even within its own domain, and even for anonymous tokens: the address decides. allow_private permits it."""
        port = upstream.url.rpartition(":")[2]
        upstream.auth = Bearer(realm=f"http://auth.corp.test:{port}/token")
        names = Names({"registry.corp.test": "127.0.0.1", "auth.corp.test": "127.0.0.9"})
        options: dict[str, Any] = {"resolver": names, "is_global": lambda address: address == "127.0.0.1"}
        url = upstream.url.replace("127.0.0.1", "registry.corp.test")

        error = await failure(pulled(start_asking(url, **options)))

        assert error.reason == "realm"
        assert upstream.count(kind="token") == 0
        names.addresses["auth.corp.test"] = "127.0.0.1"
        assert await pulled(start_asking(url, **options)) == image

    async def test_an_https_upstream_names_no_http_endpoint(
        self, start_upstream: StartUpstream, start_asking: StartAsking
    ) -> None:
        """A token over http could be anybody's."""
        upstream = await start_upstream(tls=server_tls())
        upstream.add_image("team/app", "latest")
        upstream.auth = Bearer(USERS, realm=upstream.url.replace("https", "http") + "/token")
        asking = start_asking(upstream.url, ca_file=CA_FILE, **LOGIN)

        assert (await failure(pulled(asking))).reason == "realm"
        assert upstream.count(kind="token") == 0

    async def test_an_endpoint_does_not_redirect_to_another_domain(
        self, upstream: FakeRegistry, start_upstream: StartUpstream, start_asking: StartAsking
    ) -> None:
        """Its redirects obey the rule that the realm does."""
        thief = await start_upstream(auth=Bearer(USERS))
        upstream.auth = Bearer(USERS)
        upstream.fault(ANY, redirect_to(thief.url.replace("127.0.0.1", "thief.test") + "/token"), kind="token")
        asking = start_asking(upstream.url, resolver=Names({"thief.test": "127.0.0.1"}), **LOGIN)

        error = await failure(pulled(asking))

        assert error.reason == "realm"
        assert thief.requests == []

    async def test_an_endpoint_may_redirect_within_its_origin(
        self, upstream: FakeRegistry, start_asking: StartAsking, image: Digest
    ) -> None:
        """The credential goes along there."""
        upstream.auth = Bearer(USERS)
        query = "service=fake-registry&scope=repository:team/app:pull"
        upstream.fault(ANY, redirect_to(f"{upstream.url}/token?{query}"), kind="token", times=1)
        asking = start_asking(upstream.url, **LOGIN)

        assert await pulled(asking) == image
        assert [shows(seen) for seen in upstream.select(kind="token")] == [True, True]

    async def test_an_endpoint_at_another_origin_gets_no_credential_by_a_redirect(
        self, upstream: FakeRegistry, start_asking: StartAsking
    ) -> None:
        """Another port of the same host is another origin."""
        upstream.auth = Bearer(USERS, anonymous=False)
        upstream.fault(ANY, redirect_to(f"{upstream.cdn_url}/token"), kind="token")
        asking = start_asking(upstream.url, **LOGIN)

        assert (await failure(pulled(asking))).reason == "redirect"
        assert not any(shows(seen) for seen in upstream.select(origin="cdn"))


class TestIdentityTokens:
    """What `docker login` leaves at registries that give one: it is shown to the token endpoint alone, by POST."""

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        """Docker's config.json."""
        return tmp_path / "config.json"

    def login(self, file: Path, upstream: FakeRegistry, **entry: str) -> None:
        """Writes the file anew."""
        host = upstream.url.partition("://")[2]
        named = dict.fromkeys((NAME, host), entry)
        file.write_text(json.dumps({"auths": named}))

    async def test_an_identity_token_is_exchanged(
        self, upstream: FakeRegistry, start_asking: StartAsking, file: Path, image: Digest
    ) -> None:
        """Once for all; the registry never sees it."""
        upstream.auth = Bearer(USERS, identities={PASSWORD: "ci"}, anonymous=False)
        upstream.make_private("team/app", ["ci"])
        self.login(file, upstream, identitytoken=PASSWORD)
        asking = start_asking(upstream.url, docker_config=file)

        assert {await pulled(asking) for _ in range(2)} == {image}
        (asked,) = upstream.select(kind="token")
        form = parse_qs(asked.body.decode())
        assert asked.method == "POST"
        assert form["grant_type"] == ["refresh_token"]
        assert form["scope"] == ["repository:team/app:pull"]
        assert not any(shows(seen) for seen in upstream.requests)

    async def test_an_endpoint_without_post_gets_the_password(
        self, upstream: FakeRegistry, start_asking: StartAsking, file: Path, image: Digest
    ) -> None:
        """If there is one beside the identity token."""
        upstream.auth = Bearer(USERS, post=False, anonymous=False)
        self.login(file, upstream, identitytoken="unknown", username="ci", password=PASSWORD)
        asking = start_asking(upstream.url, docker_config=file)

        assert await pulled(asking) == image
        assert [seen.method for seen in upstream.select(kind="token")] == ["POST", "GET"]

    async def test_one_that_has_ended_is_a_rejected_credential_until_another_is_there(
        self, upstream: FakeRegistry, start_asking: StartAsking, file: Path, image: Digest
    ) -> None:
        """No restart is needed."""
        upstream.auth = Bearer(USERS, identities={PASSWORD: "ci"}, anonymous=False)
        self.login(file, upstream, identitytoken="ended")
        asking = start_asking(upstream.url, docker_config=file)
        assert isinstance(await failure(pulled(asking)), CredentialRejected)
        assert asking.metric("credentials_rejected") == 1

        self.login(file, upstream, identitytoken=PASSWORD)

        assert await pulled(asking) == image
        assert asking.metric("credentials_rejected") == 0

    async def test_a_registry_that_demands_a_password_is_not_shown_it(
        self, upstream: FakeRegistry, start_asking: StartAsking, file: Path
    ) -> None:
        """Which is the operator's problem, and said so."""
        upstream.auth = Basic(USERS)
        self.login(file, upstream, identitytoken=PASSWORD)
        asking = start_asking(upstream.url, docker_config=file)

        problem = await failure(pulled(asking))

        assert isinstance(problem, CredentialRejected)
        assert "an identity token" in problem.message
        assert not any("Authorization" in seen.headers for seen in upstream.requests)

    async def test_a_redirect_does_not_take_it_along(
        self, upstream: FakeRegistry, start_asking: StartAsking, file: Path
    ) -> None:
        """Not even within the registry."""
        upstream.auth = Bearer(USERS, identities={PASSWORD: "ci"}, anonymous=False)
        upstream.fault(ANY, redirect_to(f"{upstream.url}/elsewhere"), kind="token")
        self.login(file, upstream, identitytoken=PASSWORD)
        asking = start_asking(upstream.url, docker_config=file)

        assert (await failure(pulled(asking))).reason == "token"
        assert not [seen for seen in upstream.requests if seen.path == "/elsewhere"]


async def test_secrets_stay_where_they_belong(
    upstream: FakeRegistry, start_asking: StartAsking, log: LogCapture, caplog: pytest.LogCaptureFixture
) -> None:
    """In a run with refusals, redirects and failures no log line, error, repr or metric holds the password or a token,
    and nobody but the token endpoint saw the password."""
    auth = upstream.auth = Bearer(USERS, hidden=403)
    image = upstream.add_image("team/app", "v2", layers=(5000,))
    upstream.add_image("team/secret", "latest")
    upstream.make_private("team/secret", ["somebody"])
    asking = start_asking(upstream.url, **LOGIN)
    said: list[str] = []

    async def note(awaitable: Any) -> None:
        try:
            said.append(repr(await awaitable))
        except Exception as error:
            said.extend((repr(error), str(error), repr(error.__cause__)))

    await note(pulled(asking))
    await note(pulled(asking, "team/secret"))
    await note(pulled(asking, "team/absent"))
    with pytest.raises(ManifestUnknown):
        await asking.upstreams.get_manifest(asking.target(), Tag("absent"), soon())
    await whole(await asking.upstreams.open_blob(asking.target(), image.layers[0].digest, soon()))
    upstream.fault(ANY, status(500, f"echo {PASSWORD}"), kind="manifest", times=4)
    await note(pulled(asking))
    upstream.fault(ANY, status(401, f"echo {PASSWORD} fake-token-1"), kind="manifest", times=4)
    await note(pulled(asking))
    upstream.clear_faults()
    auth.users = {"ci": "changed"}
    auth.expire_tokens()
    await note(pulled(asking))

    said += [
        repr(log.entries),
        caplog.text,
        repr(vars(asking.authenticator)),
        repr(asking.router.settings(asking.target().upstream)),
    ]
    said += [f"{metric}" for metric in asking.metrics.registry.collect()]
    assert not [text for text in said if PASSWORD in text or "fake-token" in text]
    assert len(said) > 10
    assert {seen.kind for seen in upstream.requests if shows(seen)} == {"token"}

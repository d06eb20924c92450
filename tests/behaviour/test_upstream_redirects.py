"""Redirects are followed byte for byte, with nothing that does not belong there, and to no place that is not public."""

from __future__ import annotations

import socket

import pytest
from aiohttp.abc import ResolveResult

from mirror import __version__
from mirror.oci.errors import ManifestUnknown, MirrorError, UpstreamThrottled, UpstreamUnavailable
from mirror.oci.reference import Tag
from tests.asking import Asking, Names, StartAsking, failure, raw_server, soon, start_asking, whole
from tests.upstream import (
    ANY,
    CA_FILE,
    Basic,
    Bearer,
    Blob,
    FakeRegistry,
    Fault,
    html,
    redirect,
    redirect_loop,
    redirect_to,
    server_tls,
    status,
)
from tests.upstream.fixtures import StartUpstream, start_upstream, upstream

__all__ = ["start_asking", "start_upstream", "upstream"]

LATEST = Tag("latest")
PUBLIC = "127.0.0.1"
"""Where the fakes really are; these tests call that address, and no other, public."""
PRIVATE = "127.0.0.9"


def is_public(address: str) -> bool:
    """What stands for "global" here."""
    return address == PUBLIC


@pytest.fixture
def blob(upstream: FakeRegistry) -> Blob:
    """A blob in the repository that is asked for."""
    return upstream.put_blob("team/app", 10_000)


async def opened(asking: Asking, blob: Blob) -> bytes:
    """The blob's bytes, asked for in the usual way."""
    return await whole(await asking.upstreams.open_blob(asking.target(), blob.digest, soon()))


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_every_redirect_is_followed(
    upstream: FakeRegistry, start_asking: StartAsking, blob: Blob, code: int
) -> None:
    """For blobs and for manifests, to a signed URL that no byte of may change (the fake checks its signature)."""
    image = upstream.add_image("team/app", "latest")
    upstream.fault(ANY, redirect(code))
    asking = start_asking(upstream.url)

    assert await opened(asking, blob) == blob.content
    body = await asking.upstreams.get_manifest(asking.target(), LATEST, soon())
    assert body.content == image.manifest.content
    assert upstream.count(origin="cdn", status=200) == 2


async def test_a_long_location_is_followed(upstream: FakeRegistry, start_asking: StartAsking, blob: Blob) -> None:
    """Signed URLs pass the 8190 bytes that aiohttp's parser takes by default."""
    query = "?X-Amz-Security-Token=" + "x" * 20_000
    upstream.fault(
        ANY, redirect_to(lambda exchange: exchange.registry.blob_url("team/app", blob) + query), times=1, kind="blob"
    )
    asking = start_asking(upstream.url)

    assert await opened(asking, blob) == blob.content
    assert upstream.requests[-1].target.endswith(query)


async def test_a_location_that_is_not_clean_is_made_sendable(
    upstream: FakeRegistry, start_asking: StartAsking, blob: Blob
) -> None:
    """A space or a letter outside ASCII is encoded, and nothing else."""
    path = upstream.blob_url("team/app", blob)
    upstream.fault(ANY, redirect_to(f"{path}?name=a b é&sig=%2f%7E~"), times=1, kind="blob")
    asking = start_asking(upstream.url)

    assert await opened(asking, blob) == blob.content
    assert upstream.requests[-1].target.endswith("?name=a%20b%20%C3%A9&sig=%2f%7E~")


async def test_a_relative_location_is_resolved(upstream: FakeRegistry, start_asking: StartAsking, blob: Blob) -> None:
    """Against the URL that answered with it."""
    upstream.fault(ANY, redirect_to(f"../blobs/{blob.digest}?again=1"), times=1, kind="blob")
    asking = start_asking(upstream.url)

    assert await opened(asking, blob) == blob.content


@pytest.mark.parametrize("auth", [Bearer(), Basic({"ci": "secret"})], ids=["bearer", "basic"])
async def test_authorization_stays_at_its_origin(
    upstream: FakeRegistry, start_asking: StartAsking, blob: Blob, auth: Bearer | Basic
) -> None:
    """Another origin does not see it (object stores refuse requests that have both), the same one does."""
    upstream.auth = auth
    login = {"username": "ci", "password": "secret"} if isinstance(auth, Basic) else {}
    upstream.fault(ANY, redirect_to(f"/v2/team/app/blobs/{blob.digest}?once"), times=1, kind="blob")
    upstream.fault(ANY, redirect(), skip=1, kind="blob")
    asking = start_asking(upstream.url, **login)

    assert await opened(asking, blob) == blob.content
    blobs = upstream.select(blob)
    assert [("Authorization" in seen.headers, seen.origin) for seen in blobs] == [
        (True, "registry"),
        (True, "registry"),
        (False, "cdn"),
    ]


async def test_no_cookie_is_kept_and_our_name_is_told(start_asking: StartAsking) -> None:
    """A cookie of one answer does not come back with the next request; every request says who asks."""
    answer = b"HTTP/1.1 404 Not Found\r\nSet-Cookie: a=b; Path=/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    async with raw_server(lambda _: answer) as (url, heads):
        # A name, since cookies of addresses are not kept by default.
        asking = start_asking(url.replace("127.0.0.1", "public.test"), resolver=Names({"public.test": "127.0.0.1"}))
        for _ in range(2):
            with pytest.raises(Exception, match="no manifest"):
                await asking.upstreams.get_manifest(asking.target(), LATEST, soon())

    assert len(heads) == 3
    assert all(f"User-Agent: mirror/{__version__}\r\n" in head for head in heads)
    assert not any("cookie:" in head.lower() for head in heads)


async def test_a_redirect_loop_ends(upstream: FakeRegistry, start_asking: StartAsking, blob: Blob) -> None:
    """After five redirects, and without another try."""
    upstream.fault(ANY, redirect_loop(), kind="blob")
    asking = start_asking(upstream.url)

    error = await failure(asking.upstreams.open_blob(asking.target(), blob.digest, soon()))

    assert error.reason == "redirect"
    assert upstream.requests_for(blob) == 6


@pytest.mark.parametrize(
    "location",
    [
        "",
        "ftp://127.0.0.1/x",
        "http://[::1",
        "http://127.0.0.1:99999/x",
        "http://127.0.0.1:a/x",
        f"http://{'a.' * 128}test/x",
        "http://user:password@127.0.0.1/x",
        "javascript:alert(1)",
        "sha256:abc",
    ],
)
async def test_a_redirect_to_nowhere_is_no_answer(
    upstream: FakeRegistry, start_asking: StartAsking, blob: Blob, location: str
) -> None:
    """Neither a "no" nor a crash; asked for once."""
    upstream.fault(ANY, redirect_to(location), kind="blob")
    asking = start_asking(upstream.url)

    error = await failure(asking.upstreams.open_blob(asking.target(), blob.digest, soon()))

    assert error.reason == "redirect"
    assert upstream.requests_for(blob) == 1


async def test_https_is_not_downgraded(start_upstream: StartUpstream, start_asking: StartAsking) -> None:
    """A redirect from https to http is not followed."""
    upstream = await start_upstream(tls=server_tls())
    blob = upstream.put_blob("team/app", 10_000)
    upstream.fault(ANY, redirect(downgrade=True))
    asking = start_asking(upstream.url, ca_file=CA_FILE)

    error = await failure(asking.upstreams.open_blob(asking.target(), blob.digest, soon()))

    assert (error.reason, upstream.count(origin="cdn")) == ("redirect", 0)
    assert "from https to http" in error.message


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410])
async def test_a_refusal_of_a_redirects_target_is_no_answer(
    upstream: FakeRegistry, start_asking: StartAsking, blob: Blob, code: int
) -> None:
    """It says nothing about the registry: a fresh redirect is asked for once more, then it is no answer, never a "no".

    Its challenge is not answered either.
    """
    upstream.fault(ANY, redirect())
    upstream.fault(ANY, status(code, headers={"WWW-Authenticate": 'Basic realm="x"'}), origin="cdn")
    asking = start_asking(upstream.url, username="ci", password="secret")

    error = await failure(asking.upstreams.open_blob(asking.target(), blob.digest, soon()))

    assert error.reason == "redirect"
    assert (upstream.requests_for(blob), upstream.count(origin="cdn")) == (2, 2)
    assert not any("Authorization" in seen.headers for seen in upstream.requests)


@pytest.mark.parametrize(
    ("code", "kind"),
    [("MANIFEST_UNKNOWN", ManifestUnknown), ("NAME_UNKNOWN", ManifestUnknown), ("", UpstreamUnavailable)],
)
async def test_what_a_registry_behind_a_redirect_does_not_have_is_missing(
    start_upstream: StartUpstream, start_asking: StartAsking, code: str, kind: type[MirrorError]
) -> None:
    """A front such as registry.k8s.io redirects to registries; their 404 is a no, that of anything else is none."""
    front, behind = await start_upstream(), await start_upstream()
    front.fault(ANY, redirect_to(behind.manifest_url("team/app", "latest")), kind="manifest")
    behind.fault(ANY, status(404, error=code) if code else status(404, body=b"no such page"), kind="manifest")
    asking = start_asking(front.url)

    with pytest.raises(kind) as caught:
        await asking.upstreams.get_manifest(asking.target(), LATEST, soon())

    assert type(caught.value) is kind


async def test_an_expired_redirect_is_asked_for_anew(
    upstream: FakeRegistry, start_asking: StartAsking, blob: Blob
) -> None:
    """A signed URL that has expired on the way costs one more round."""
    upstream.fault(ANY, redirect(lifetime=-1), times=1)
    upstream.fault(ANY, redirect(), skip=1)
    asking = start_asking(upstream.url)

    assert await opened(asking, blob) == blob.content
    assert [seen.status for seen in upstream.select(origin="cdn")] == [403, 200]


async def test_a_page_behind_a_redirect_is_no_blob(
    upstream: FakeRegistry, start_asking: StartAsking, blob: Blob
) -> None:
    """Login pages of storage come with 200."""
    upstream.fault(ANY, redirect())
    upstream.fault(ANY, html(), origin="cdn")
    asking = start_asking(upstream.url)

    assert (await failure(asking.upstreams.open_blob(asking.target(), blob.digest, soon()))).reason == "redirect"


async def test_a_target_that_throttles_is_paused(upstream: FakeRegistry, start_asking: StartAsking, blob: Blob) -> None:
    """Its host alone: the registry itself may be asked on."""
    upstream.fault(ANY, redirect(), kind="blob")
    upstream.fault(ANY, status(429, retry_after=60), origin="cdn")
    asking = start_asking(upstream.url)
    image = upstream.add_image("team/app", "latest")

    for _ in range(2):
        error = await failure(asking.upstreams.open_blob(asking.target(), blob.digest, soon()))
        assert isinstance(error, UpstreamThrottled)
    assert upstream.count(origin="cdn") == 1
    assert (await asking.upstreams.get_manifest(asking.target(), LATEST, soon())).digest == image.digest


class TestPrivateAddresses:
    """A public upstream leads us to public addresses only; one in a private network may lead us anywhere."""

    @pytest.fixture
    def names(self) -> Names:
        """`public.test` is where the fakes are, `inside.test` is not public."""
        return Names({"public.test": PUBLIC, "cdn.test": PUBLIC, "inside.test": PRIVATE})

    def url(self, upstream: FakeRegistry, host: str = "public.test") -> str:
        """The fake by a name."""
        return upstream.url.replace("127.0.0.1", host)

    def ask(self, start_asking: StartAsking, url: str, names: Names, **settings: object) -> Asking:
        """An upstream side that knows these names and what is public."""
        return start_asking(url, resolver=names, is_global=is_public, **settings)

    @pytest.mark.parametrize(
        "host", [PRIVATE, "[::1]", "[::ffff:127.0.0.9]", "inside.test", "localhost", "a.localhost", "2130706433"]
    )
    async def test_a_public_upstream_leads_nowhere_private(
        self, upstream: FakeRegistry, start_asking: StartAsking, blob: Blob, names: Names, host: str
    ) -> None:
        """By literal or by name; refused at once, with a message that names what would permit it, nothing sent."""
        upstream.fault(ANY, redirect_to(f"http://{host}:{upstream.cdn_url.rpartition(':')[2]}/x"), kind="blob")
        names.addresses["localhost"] = names.addresses["a.localhost"] = PUBLIC
        asking = self.ask(start_asking, self.url(upstream), names)

        error = await failure(asking.upstreams.open_blob(asking.target(), blob.digest, soon()))

        assert error.reason == "redirect"
        assert (upstream.requests_for(blob), upstream.count(origin="cdn")) == (1, 0)

    async def test_a_public_upstream_leads_to_public_places(
        self, upstream: FakeRegistry, start_asking: StartAsking, blob: Blob, names: Names
    ) -> None:
        """The guard does not stand in the way of an ordinary CDN."""
        upstream.fault(ANY, signed_at("cdn.test"), kind="blob")
        asking = self.ask(start_asking, self.url(upstream), names)

        assert await opened(asking, blob) == blob.content

    async def test_allow_private_permits_it(
        self, upstream: FakeRegistry, start_asking: StartAsking, blob: Blob, names: Names
    ) -> None:
        """The operator's word counts."""
        names.addresses["public.test"] = "127.0.0.1"
        upstream.fault(ANY, signed_at("inside.test"), kind="blob")
        asking = start_asking(self.url(upstream), resolver=names, is_global=lambda _: False, allow_private=True)
        names.addresses["inside.test"] = "127.0.0.1"

        assert await opened(asking, blob) == blob.content

    @pytest.mark.parametrize("name", [None, "localhost", "inside.test"])
    async def test_a_private_upstream_leads_anywhere(
        self, upstream: FakeRegistry, start_asking: StartAsking, blob: Blob, name: str | None
    ) -> None:
        """By its literal, by localhost, or by a name with a private address."""
        names = Names({"localhost": "127.0.0.1", "inside.test": "127.0.0.1"})
        upstream.fault(ANY, redirect())
        asking = start_asking(
            self.url(upstream, name) if name else upstream.url, resolver=names, is_global=lambda _: False
        )

        assert await opened(asking, blob) == blob.content

    async def test_the_address_checked_is_the_address_connected_to(
        self, upstream: FakeRegistry, start_asking: StartAsking, blob: Blob
    ) -> None:
        """A name that changes its address between two look-ups gains nothing: there is one look-up."""
        names = Rebinding()
        upstream.fault(ANY, signed_at("rebinding.test"), kind="blob")
        asking = self.ask(start_asking, self.url(upstream), names)

        assert await opened(asking, blob) == blob.content
        assert names.asked.count("rebinding.test") == 1

    async def test_a_private_redirect_says_what_would_permit_it(
        self, upstream: FakeRegistry, start_asking: StartAsking, blob: Blob, names: Names
    ) -> None:
        """An operator with a private CDN reads what to do."""
        upstream.fault(ANY, redirect_to("http://127.0.0.9/x?signature=planted"), kind="blob")
        asking = self.ask(start_asking, self.url(upstream), names)

        error = await failure(asking.upstreams.open_blob(asking.target(), blob.digest, soon()))

        assert "allow_private" in error.message
        assert "planted" not in error.message


def signed_at(host: str) -> Fault:
    """A redirect to a signed URL of the fake's CDN, by another name of its host."""
    return redirect_to(
        lambda exchange: exchange.registry.signed_url(exchange.seen, lifetime=60).replace("127.0.0.1", host)
    )


class Rebinding(Names):
    """`rebinding.test` is public when first asked for, private afterwards."""

    def __init__(self) -> None:
        super().__init__({"public.test": PUBLIC, "rebinding.test": PUBLIC})

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """As AbstractResolver."""
        found = await super().resolve(host, port, family)
        if host == "rebinding.test":
            self.addresses[host] = PRIVATE
        return found

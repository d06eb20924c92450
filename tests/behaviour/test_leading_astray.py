"""Where strangers would like to lead us: upstreams by redirects and realms, clients by the registry they name."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import ThreadedResolver
from aiohttp.abc import ResolveResult

from mirror.oci.reference import Tag
from tests.asking import FAST, Asking, Names, StartAsking, failure, soon, start_asking, whole
from tests.conftest import StartMirror
from tests.upstream import ANY, Bearer, Blob, FakeRegistry, redirect_to
from tests.upstream.fixtures import start_upstream, upstream

__all__ = ["start_asking", "start_upstream", "upstream"]

PUBLIC = "127.0.0.1"
"""Where the fakes really are; these tests call that address, and no other, public."""
INSIDE = "127.0.0.9"
TRAPPED = (INSIDE, "::1", PUBLIC)
"""Where something inside listens; the last one, since a connection to 0.0.0.0 arrives there."""

HOSTS = (
    "127.0.0.9",
    "127.0.0.9.",
    "127.9",
    "2130706441",
    "0x7f000009",
    "0x7f.9",
    "0177.0.0.011",
    "017700000011",
    "127.0.0.%39",
    "%31%32%37.0.0.9",
    "１２７.0.0.9",  # noqa: RUF001 - the point of it
    "①②⑦.0.0.9",
    "127。0。0。9",
    "0",
    "0.0.0.0",
    "[::]",
    "[::1]",
    "[0:0:0:0:0:0:0:1]",
    "[::1%25lo]",
    "[::1%lo]",
    "[::ffff:127.0.0.9]",
    "[::ffff:7f00:9]",
    "[0:0:0:0:0:ffff:7f00:0009]",
    "[::7f00:9]",
    "[64:ff9b::7f00:9]",
    "[2002:7f00:9::]",
    "[v1.fe80]",
    "localhost",
    "LOCALHOST.",
    "a.localhost",
    "ⓛocalhost",
    "ip6-localhost",
    "inside.test",
    "INSIDE.test.",
    "mixed.test",
    "metadata.google.internal",
    "169.254.169.254",
    "[fd00:ec2::254]",
    "xn--a",
    "xn--docker-.io",
    "no such host",
)


class Resolver(Names):
    """The names of these tests, and what the system makes of numbers and of its own names."""

    def __init__(self) -> None:
        super().__init__(
            {
                "public.test": PUBLIC,
                "cdn.test": PUBLIC,
                "auth.public.test": PUBLIC,
                "inside.test": INSIDE,
                "INSIDE.test.": INSIDE,
                "inside.public.test": INSIDE,
                "metadata.google.internal": "169.254.169.254",
            }
        )
        self._system = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """As AbstractResolver."""
        if host == "mixed.test":
            return [*await self.resolve("public.test", port, family), *await self.resolve("inside.test", port, family)]
        if host in self.addresses:
            return [{**found, "hostname": host} for found in await super().resolve(host, port, family)]
        if "localhost" not in host:
            socket.inet_aton(host)  # raises OSError for names: nobody out there is to be asked
        return await self._system.resolve(host, port, family)


@dataclass
class Trap:
    """Something inside that listens, and what connected to it."""

    port: int
    caught: list[str] = field(default_factory=list)


@pytest.fixture
async def trap() -> AsyncIterator[Trap]:
    """Listens on one port of every address that must not be reached."""
    async with AsyncExitStack() as stack:
        set_up = Trap(0)

        def caught(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            set_up.caught.append(str(writer.get_extra_info("sockname")))
            writer.close()

        for address in TRAPPED:
            try:
                server = await asyncio.start_server(caught, address, set_up.port)
            except OSError:  # a machine without IPv6
                continue
            set_up.port = server.sockets[0].getsockname()[1]
            await stack.enter_async_context(server)
        yield set_up


@pytest.fixture
def blob(upstream: FakeRegistry) -> Blob:
    """A blob in the repository that is asked for."""
    return upstream.put_blob("team/app", 10_000)


@pytest.fixture
async def resolver() -> Resolver:
    """The one of the upstream sides below."""
    return Resolver()


@pytest.fixture
def start_public(upstream: FakeRegistry, start_asking: StartAsking, resolver: Resolver) -> Callable[[], Asking]:
    """Starts upstream sides in front of an upstream that is public, with credentials for it."""
    url = upstream.url.replace(PUBLIC, "public.test")
    options = {
        "timeouts": FAST.model_copy(update={"first_byte": 5.0}),
        "resolver": resolver,
        "is_global": lambda address: address == PUBLIC,
    }
    return lambda: start_asking(url, **options, username="ci", password="planted")


def way_to(trap: Trap, host: str) -> str:
    """A URL that leads there, in the words of somebody who tries."""
    return f"http://{host}:{trap.port}/v2/team/app/latest/meta-data"


WAYS = ("blob", "manifest", "head", "tags", "referrers", "realm", "token", "chain")


def lead(upstream: FakeRegistry, way: str, url: str) -> None:
    """Has the upstream lead there."""
    kinds: dict[str, Any] = {"head": "manifest", "chain": "blob"}
    realm = url if way == "realm" else f"{upstream.url.replace(PUBLIC, 'public.test')}/token"
    upstream.auth = Bearer({"ci": "planted"}, realm=realm)
    if way == "chain":
        upstream.fault(ANY, redirect_to(f"{upstream.cdn_url.replace(PUBLIC, 'cdn.test')}/next"), kind="blob")
        upstream.fault(ANY, redirect_to(url), origin="cdn")
    elif way != "realm":
        upstream.fault(ANY, redirect_to(url), kind=kinds.get(way, way))


async def ask(asking: Asking, way: str, blob: Blob) -> object:
    """The request that is led on."""
    target, upstreams = asking.target(), asking.upstreams
    if way in ("blob", "chain"):
        return await whole(await upstreams.open_blob(target, blob.digest, soon(5)))
    if way == "tags":
        return await upstreams.list_tags(target, "", soon(5))
    if way == "referrers":
        return await upstreams.referrers(target, blob.digest, "", soon(5))
    if way == "head":
        head = await upstreams.head_manifest(target, Tag("latest"), soon(5))
        assert head.digest is None, "a redirected HEAD that is not followed is of no use, and no error"
    return await upstreams.get_manifest(target, Tag("latest"), soon(5))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("way", WAYS)
async def test_nothing_inside_is_reached_however_it_is_spelt(
    upstream: FakeRegistry, start_public: Callable[[], Asking], blob: Blob, trap: Trap, way: str
) -> None:
    """An upstream that is public leads us to no address that is not, whatever leads and whatever the address looks
    like: it is no answer, never a crash, and nobody there has so much as a connection.
    """
    for host in HOSTS:
        upstream.clear_faults()
        lead(upstream, way, way_to(trap, host))

        error = await failure(ask(start_public(), way, blob))

        refused = ("realm",) if way in ("realm", "token") else ("redirect", "dns")
        assert error.reason in (*refused, "timeout"), host  # the last on a machine that is busy with other things
        assert trap.caught == [], host
    assert not any("Authorization" in seen.headers for seen in upstream.select(origin="cdn"))


@pytest.mark.parametrize("way", ["realm", "token"])
async def test_a_domain_of_its_own_does_not_help_an_endpoint_inside(
    upstream: FakeRegistry, start_public: Callable[[], Asking], blob: Blob, trap: Trap, way: str
) -> None:
    """By its name a token endpoint may be the upstream's; its address is looked at all the same."""
    lead(upstream, way, way_to(trap, "inside.public.test"))

    error = await failure(ask(start_public(), way, blob))

    assert (error.reason, trap.caught) == ("realm", [])
    assert "inside.public.test has an address that is not public" in error.message


async def test_an_address_that_changes_is_looked_at_for_every_connection(
    upstream: FakeRegistry, start_public: Callable[[], Asking], blob: Blob, trap: Trap, resolver: Resolver
) -> None:
    """A name that was public when it was first used, and is inside at the next connection, is refused then; a
    connection that is kept stays where it was checked.
    """
    resolver.addresses["changing.test"] = PUBLIC
    asking = start_public()
    upstream.fault(
        ANY,
        redirect_to(
            lambda exchange: exchange.registry.signed_url(exchange.seen, lifetime=60).replace(PUBLIC, "changing.test")
        ),
        kind="blob",
    )

    assert await ask(asking, "blob", blob) == blob.content
    resolver.addresses["changing.test"] = INSIDE
    assert await ask(asking, "blob", blob) == blob.content
    upstream.clear_faults()
    lead(upstream, "blob", way_to(trap, "changing.test"))
    error = await failure(ask(asking, "blob", blob))

    assert (error.reason, trap.caught) == ("redirect", [])


async def test_clients_aim_us_nowhere(upstream: FakeRegistry, start_mirror: StartMirror, trap: Trap) -> None:
    """A registry that is neither configured nor well known is not asked, nor even looked up, wherever a client names
    it: in `ns=`, before `/v2/`, as the first component, as the host that it calls us, or as a proxy would say it.
    """
    names = Names({})
    mirror = await start_mirror(wiring={"resolver": names})
    for host in HOSTS:
        named = f"{host}:{trap.port}"
        for path, headers in (
            (f"/v2/team/app/manifests/1?ns={quote(named)}", {}),
            (f"/v2/team/app/manifests/1?ns={quote(host)}", {}),
            (f"/{quote(named)}/v2/team/app/manifests/1", {}),
            (f"/v2/{quote(named)}/team/app/manifests/1", {}),
            ("/v2/team/app/manifests/1", {"Host": quote(named, safe="[]:%")}),
            ("/v2/team/app/manifests/1", {"X-Forwarded-Host": quote(named, safe="[]:%")}),
            (f"http://{quote(named, safe='[]:%')}/v2/team/app/manifests/1", {}),
        ):
            reply = await mirror.get(path, **headers) if path.startswith("/") else None
            assert reply is None or reply.status in (400, 403, 404), (host, path, headers)
    assert (trap.caught, names.asked) == ([], [])
    assert {seen.repository for seen in upstream.content_requests()} <= {"team/app"}

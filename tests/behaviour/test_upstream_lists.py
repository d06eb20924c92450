"""Pages of lists as upstreams give them: the query of the next one, and what is no list."""

from __future__ import annotations

import json

import pytest

from mirror.oci.digest import Digest
from mirror.oci.errors import NameUnknown, TagsUnknown
from mirror.oci.manifest import OCI_INDEX
from mirror.upstream import ListPage, NoReferrers
from tests.asking import REPOSITORY, StartAsking, failure, raw_server, soon, start_asking
from tests.upstream import ANY, FakeRegistry, Fault, header, html, redirect_to, reset, status
from tests.upstream.fixtures import StartUpstream, start_upstream, upstream

__all__ = ["start_asking", "start_upstream", "upstream"]

SUBJECT = Digest.of(b"subject")
PAGE = f"/v2/{REPOSITORY}/tags/list"


def fill(upstream: FakeRegistry, *tags: str) -> None:
    """Tags of one image."""
    image = upstream.add_image(REPOSITORY)
    for tag in tags:
        upstream.tag(REPOSITORY, tag, image)


async def test_one_page_of_tags(upstream: FakeRegistry, start_asking: StartAsking) -> None:
    """In the upstream's order, with the query by which it goes on; the query that was given is asked as it is."""
    fill(upstream, "b", "a", "c")
    upstream.page_size, upstream.tag_order, upstream.link_style = 2, "pushed", "opaque"
    asking = start_asking(upstream.url)

    first = await asking.upstreams.list_tags(asking.target(), "", soon())
    second = await asking.upstreams.list_tags(asking.target(), "cursor=a&x=%2F%3d", soon())

    assert first == ListPage(["b", "a"], "cursor=a")
    assert second == ListPage(["c"], None)
    assert [seen.target for seen in upstream.select(kind="tags")] == [PAGE, f"{PAGE}?cursor=a&x=%2F%3d"]


@pytest.mark.parametrize(
    "place", ["https://evil.test/v2/x/y?n=1", "http://127.0.0.1:1/?n=1", "//evil.test/?n=1", "?n=1"]
)
async def test_a_link_leads_nowhere_but_on(upstream: FakeRegistry, start_asking: StartAsking, place: str) -> None:
    """Of whatever it points at the query is taken: there is no way to name another host or path."""
    fill(upstream, "a")
    upstream.fault(ANY, header("Link", f'<{place}>; rel="next"'))
    asking = start_asking(upstream.url)

    assert (await asking.upstreams.list_tags(asking.target(), "", soon())).following == "n=1"


async def test_a_link_that_cannot_be_followed_is_no_answer(upstream: FakeRegistry, start_asking: StartAsking) -> None:
    """The list would look complete without what it leads to."""
    fill(upstream, "a")
    upstream.fault(ANY, header("Link", f'<?{"n" * 5000}>; rel="next"'))
    asking = start_asking(upstream.url)

    assert (await failure(asking.upstreams.list_tags(asking.target(), "", soon()))).reason == "content"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (html(), "content"),
        (status(200, b"{}"), "content"),
        (status(200, b""), "content"),
        (status(200, b" " * ((8 << 20) + 1)), "size"),
        (status(400), "page"),
        (status(405), "page"),
        (status(410), "status"),
        (status(500), "status"),
        (reset(), "reset"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
async def test_no_list_of_tags(upstream: FakeRegistry, start_asking: StartAsking, fault: Fault, reason: str) -> None:
    """Pages for people, other JSON, too much, and statuses that say nothing of the repository."""
    fill(upstream, "a")
    upstream.fault(PAGE, fault)
    asking = start_asking(upstream.url)

    assert (await failure(asking.upstreams.list_tags(asking.target(), "n=1", soon()))).reason == reason


async def test_a_404_denies_the_repository_only_by_its_code(upstream: FakeRegistry, start_asking: StartAsking) -> None:
    """Any other one denies the list."""
    asking = start_asking(upstream.url)
    with pytest.raises(NameUnknown):
        await asking.upstreams.list_tags(asking.target(), "", soon())
    with pytest.raises(NameUnknown):
        await asking.upstreams.referrers(asking.target(), SUBJECT, "", soon())
    upstream.fault(ANY, html(404))
    with pytest.raises(TagsUnknown):
        await asking.upstreams.list_tags(asking.target(), "", soon())


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (html(404), NoReferrers.OF_PATH),
        (status(404, ""), NoReferrers.OF_PATH),
        (status(404, error="UNSUPPORTED"), NoReferrers.OF_PATH),
        (status(405), NoReferrers.OF_PATH),
        (status(501), NoReferrers.OF_PATH),
        (status(404, error="MANIFEST_UNKNOWN"), NoReferrers.OF_DIGEST),
        (status(404, error="NOT_FOUND"), NoReferrers.OF_DIGEST),
        (status(400, ""), NoReferrers.UNCLEAR),
        (status(400, error="DIGEST_INVALID"), NoReferrers.UNCLEAR),
        (html(200), NoReferrers.UNCLEAR),
        (redirect_to("https://pages.test/limit", 303), NoReferrers.UNCLEAR),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
async def test_no_api_for_referrers(
    upstream: FakeRegistry, start_asking: StartAsking, fault: Fault, said: NoReferrers
) -> None:
    """It is told of the path only where an upstream says so of that, not of one digest or repository."""
    upstream.add_image(REPOSITORY)
    upstream.fault(ANY, fault, kind="referrers")
    asking = start_asking(upstream.url)

    assert await asking.upstreams.referrers(asking.target(), SUBJECT, "", soon()) is said


async def test_a_front_without_the_api_is_told_from_one_in_trouble(
    upstream: FakeRegistry, start_upstream: StartUpstream, start_asking: StartAsking
) -> None:
    """A registry behind a redirect has no API if it says so; a refusal of the redirect's target is no answer."""
    behind = await start_upstream(referrers=True)
    behind.add_image(REPOSITORY)
    upstream.add_image(REPOSITORY)
    upstream.fault(ANY, redirect_to(lambda exchange: behind.url + exchange.seen.target), kind="referrers")
    asking = start_asking(upstream.url)

    found = await asking.upstreams.referrers(asking.target(), SUBJECT, "", soon())
    assert found == ListPage([], None)
    behind.referrers = False
    found = await asking.upstreams.referrers(asking.target(), SUBJECT, "", soon())
    assert isinstance(found, NoReferrers)
    behind.fault(ANY, status(403))
    assert (await failure(asking.upstreams.referrers(asking.target(), SUBJECT, "", soon()))).reason == "redirect"


async def test_an_index_with_parameters_of_its_type(start_asking: StartAsking) -> None:
    """A charset does not make it another type; descriptors come byte for byte."""
    text = f'{{"digest" : "{SUBJECT}","size":3, "x":[1]}}'
    index = f'{{"schemaVersion":2,"manifests":[{text}]}}'

    def answer(head: str) -> bytes:
        body = b"{}" if "/v2/ " in head else index.encode()
        return (
            f"HTTP/1.1 200 OK\r\nContent-Type: {OCI_INDEX}; charset=utf-8\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\n\r\n"
        ).encode() + body

    async with raw_server(answer) as (url, heads):
        asking = start_asking(url)
        found = await asking.upstreams.referrers(asking.target(), SUBJECT, "", soon())

    assert found == ListPage([text], None)
    assert json.loads(text)["x"] == [1]
    assert f"Accept: {OCI_INDEX}" in heads[-1]


async def test_a_front_s_404_is_heard_where_a_registry_says_it(
    upstream: FakeRegistry, start_upstream: StartUpstream, start_asking: StartAsking
) -> None:
    """A registry behind a redirect may deny the repository; a page that is not found there denies nothing."""
    behind = await start_upstream()
    upstream.fault(ANY, redirect_to(lambda exchange: behind.url + exchange.seen.target), kind="tags")
    asking = start_asking(upstream.url)

    with pytest.raises(NameUnknown):
        await asking.upstreams.list_tags(asking.target(), "", soon())
    behind.fault(ANY, html(404))
    assert (await failure(asking.upstreams.list_tags(asking.target(), "", soon()))).reason == "redirect"

"""Lists of tags: complete and in order whatever the upstream's pages look like, in the pages that a client asks for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import pytest
from pydantic import SecretStr

from mirror.config import UpstreamSettings
from tests.clock import Clock
from tests.conftest import StartMirror
from tests.harness import Reply, RunningMirror, short_timeouts
from tests.upstream import ANY, Basic, FakeRegistry, Fault, delay, html, reset, stall, status, truncate
from tests.upstream.fixtures import StartUpstream

REPOSITORY = "library/demo"
PATH = "/v2/demo/tags/list"
TAGS = ["b", "1.10", "a", "B", "latest", "1.9", "_x", "z"]
LIST_TTL = 30.0
PATIENT = short_timeouts(first_byte=30, try_=15)
"""For lists that have to be gathered on a busy machine before half of the time is over."""
PER_REQUEST = ("Date", "X-Request-ID")


@pytest.fixture
def clock() -> Clock:
    """The mirror's wall clock."""
    return Clock()


@pytest.fixture
async def mirror(start_mirror: StartMirror, clock: Clock) -> RunningMirror:
    """A mirror in front of `upstream` as docker.io."""
    return await start_mirror(clock=clock)


def fill(upstream: FakeRegistry, tags: Sequence[str] = TAGS, repository: str = REPOSITORY) -> None:
    """Gives a repository these tags, all of one image."""
    image = upstream.add_image(repository)
    for tag in tags:
        upstream.tag(repository, tag, image)


def body(text: bytes) -> Fault:
    """200 with these bytes."""
    return status(200, text)


def listed(reply: Reply) -> list[str]:
    """The tags of an answer."""
    assert reply.status == 200, reply.body
    tags: list[str] = json.loads(reply.body)["tags"]
    return tags


def following(reply: Reply) -> str | None:
    """Where the answer's Link leads; it is relative, and to where this client finds us."""
    link = reply.headers.get("Link")
    if link is None:
        return None
    assert link.startswith("</v2/")
    assert link.endswith('>; rel="next"')
    return link[1 : link.index(">")]


async def walk(mirror: RunningMirror, path: str) -> list[list[str]]:
    """All pages, from `path` on by their links."""
    pages = []
    while True:
        reply = await mirror.get(path)
        pages.append(listed(reply))
        after = following(reply)
        if after is None:
            return pages
        path = after


async def test_all_tags_in_order(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """A list has the name that the client used, the tags by their bytes, and the length of its body."""
    fill(upstream)
    upstream.tag_order = "pushed"

    reply = await mirror.get(PATH)

    assert json.loads(reply.body) == {"name": "demo", "tags": sorted(TAGS)}
    assert (reply.cache, reply.headers["Content-Type"]) == ("miss", "application/json")
    assert reply.headers["Content-Length"] == str(len(reply.body))
    assert "Link" not in reply.headers


@pytest.mark.parametrize("style", ["relative", "absolute", "opaque", "elsewhere", "misplaced"])
async def test_upstreams_pages_are_gathered(
    mirror: RunningMirror, start_upstream: StartUpstream, start_mirror: StartMirror, style: str
) -> None:
    """Whatever its links look like, all pages are asked of the upstream, under the path of the list, and of no other
    host."""
    upstream = await start_upstream(page_size=3, link_style=style)
    fill(upstream)
    mirror = await start_mirror(upstreams={"docker.io": upstream}, timeouts=PATIENT)

    assert listed(await mirror.get(PATH)) == sorted(TAGS)
    assert upstream.count(kind="tags", path=f"/v2/{REPOSITORY}/tags/list", status=200) == 3
    assert upstream.count(origin="cdn") == upstream.count(kind="other") == 0


async def test_head_has_the_headers_of_get(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """The same headers, links and all, and no body."""
    fill(upstream)
    await mirror.get(PATH)

    for path in (PATH, f"{PATH}?n=3"):
        head, get = await mirror.get(path, method="HEAD"), await mirror.get(path)
        told = [
            {name: value for name, value in reply.headers.items() if name not in PER_REQUEST} for reply in (head, get)
        ]
        assert told[0] == told[1]
        assert (head.status, head.body) == (200, b"")


class TestPages:
    @pytest.mark.parametrize("n", [1, 3, 8, 9, 1000])
    async def test_links_lead_through_the_whole_list(
        self, mirror: RunningMirror, upstream: FakeRegistry, n: int
    ) -> None:
        """Pages of `n`, the last one excepted, are together the list; the upstream is asked once for all of them."""
        fill(upstream)

        pages = await walk(mirror, f"{PATH}?n={n}")

        assert [tag for page in pages for tag in page] == sorted(TAGS)
        assert {len(page) for page in pages[:-1]} <= {n}
        assert pages[-1]
        assert upstream.count(kind="tags") == 1

    async def test_last_counts_where_the_upstream_ignores_it(
        self, mirror: RunningMirror, start_upstream: StartUpstream, start_mirror: StartMirror
    ) -> None:
        """`last` is exclusive and need not exist; Distribution 2.8 and its proxies list from the start again."""
        upstream = await start_upstream(honours_last=False)
        fill(upstream, ["a", "b", "d", "e"])
        mirror = await start_mirror(upstreams={"docker.io": upstream}, timeouts=PATIENT)

        assert listed(await mirror.get(f"{PATH}?last=b")) == ["d", "e"]
        assert listed(await mirror.get(f"{PATH}?last=c")) == ["d", "e"]
        assert listed(await mirror.get(f"{PATH}?last=c&n=1")) == ["d"]
        assert listed(await mirror.get(f"{PATH}?last=e")) == []

    async def test_an_upstream_that_begins_again_is_asked_for_all_at_once(
        self, start_upstream: StartUpstream, start_mirror: StartMirror
    ) -> None:
        """Pages that come again for ever end nothing: without `n` such an upstream gives the whole list."""
        upstream = await start_upstream(honours_last=False)
        tags = [f"{number:04}" for number in range(1500)]
        fill(upstream, tags)
        mirror = await start_mirror(upstreams={"docker.io": upstream}, timeouts=PATIENT)

        assert listed(await mirror.get(PATH)) == tags
        assert upstream.count(kind="tags") == 3

    async def test_an_upstream_that_refuses_a_count_is_asked_without(
        self, mirror: RunningMirror, upstream: FakeRegistry
    ) -> None:
        """ECR answers 405 to a count that it finds too large, others 400."""
        fill(upstream)
        for code in (400, 405):
            rule = upstream.fault(f"/v2/{REPOSITORY}/tags/list", status(code), when=lambda seen: "n=" in seen.target)
            assert listed(await mirror.get(PATH)) == sorted(TAGS)
            await mirror.restart()
            rule.remove()

    async def test_none_at_all(self, mirror: RunningMirror, upstream: FakeRegistry) -> None:
        """`n=0` is an empty list without a link; whether the repository exists is still the upstream's to say."""
        fill(upstream)

        reply = await mirror.get(f"{PATH}?n=0")

        assert (listed(reply), following(reply)) == ([], None)
        assert (await mirror.get("/v2/nowhere/tags/list?n=0")).code == "NAME_UNKNOWN"

    @pytest.mark.parametrize("n", ["-1", "x", "1.5", "", "%20"])
    async def test_what_is_no_count_is_a_400(self, mirror: RunningMirror, upstream: FakeRegistry, n: str) -> None:
        """The message says what `n` is, and nobody is asked."""
        fill(upstream)

        reply = await mirror.get(f"{PATH}?n={n}")

        assert (reply.status, reply.code) == (400, "UNSUPPORTED")
        assert b"whole number" in reply.body
        assert upstream.count(kind="tags") == 0

    async def test_links_lead_back_to_the_client_s_own_view(
        self, start_mirror: StartMirror, upstream: FakeRegistry
    ) -> None:
        """By `ns=`, by a prefix in the name and by the default: a link keeps the way by which the client came."""
        fill(upstream, repository="team/app")
        fill(upstream)
        mirror = await start_mirror(upstreams={"docker.io": upstream, "registry.test:5000": upstream})
        links = {
            "/v2/team/app/tags/list?n=7&ns=registry.test:5000": (
                "/v2/team/app/tags/list?n=7&last=latest&ns=registry.test%3A5000"
            ),
            "/v2/registry.test:5000/team/app/tags/list?n=7": (
                "/v2/registry.test:5000/team/app/tags/list?n=7&last=latest"
            ),
            "/v2/docker.io/demo/tags/list?n=7": "/v2/docker.io/demo/tags/list?n=7&last=latest",
            "/v2/demo/tags/list?n=7": "/v2/demo/tags/list?n=7&last=latest",
        }
        for path, link in links.items():
            reply = await mirror.get(path)
            assert following(reply) == link
            assert json.loads(reply.body)["name"] == path.partition("/tags/")[0].removeprefix("/v2/")
            assert listed(await mirror.get(link)) == ["z"]


class TestLongLists:
    @pytest.mark.parametrize(("style", "order"), [("relative", "sorted"), ("opaque", "sorted"), ("opaque", "pushed")])
    async def test_a_list_that_is_too_long_to_gather_is_complete_all_the_same(
        self, start_upstream: StartUpstream, start_mirror: StartMirror, style: str, order: str
    ) -> None:
        """Beyond a hundred pages the rest is passed on page by page, in pages of at most `n`, each tag once."""
        upstream = await start_upstream(page_size=2, link_style=style, tag_order=order)
        tags = [f"t{number * 77 % 208:03}" for number in range(208)]
        fill(upstream, tags)
        mirror = await start_mirror(upstreams={"docker.io": upstream}, timeouts=PATIENT)

        for n, lengths in (
            ("", {200, 2}),
            ("?n=150", {150, 50, 2}),
            ("?n=40", {40, 2}),
            ("?n=199&last=t000", {199, 1, 2}),
        ):
            pages = await walk(mirror, PATH + n)
            assert sorted(tag for page in pages for tag in page) == sorted(tags)["last" in n :]
            assert {len(page) for page in pages} <= lengths
        assert upstream.count(kind="tags") == 104, "what was passed on once is held for a while, too"

    async def test_a_tag_far_down_is_found_at_once(
        self, start_upstream: StartUpstream, start_mirror: StartMirror
    ) -> None:
        """A client that goes on by `last` alone gets what follows it, without the pages before it being asked for."""
        upstream = await start_upstream(page_size=1)
        tags = [f"{number:03}" for number in range(140)]
        fill(upstream, tags)
        mirror = await start_mirror(upstreams={"docker.io": upstream}, timeouts=PATIENT)
        await mirror.get(PATH)
        upstream.reset()

        assert [tag for page in await walk(mirror, f"{PATH}?n=1&last=136") for tag in page] == ["137", "138", "139"]
        assert listed(await mirror.get(f"{PATH}?last=139")) == []
        assert upstream.count(kind="tags") == 4

    async def test_a_tag_far_down_is_found_by_tokens_too(
        self, start_upstream: StartUpstream, start_mirror: StartMirror
    ) -> None:
        """Where the upstream's pages begin by tokens, what comes before is passed over, not given."""
        upstream = await start_upstream(page_size=1, link_style="opaque", honours_last=False)
        tags = [f"{number:03}" for number in range(110)]
        fill(upstream, tags)
        mirror = await start_mirror(upstreams={"docker.io": upstream}, timeouts=PATIENT)

        assert [tag for page in await walk(mirror, f"{PATH}?n=1&last=106") for tag in page] == ["107", "108", "109"]

    async def test_a_last_that_is_no_tag_is_passed_on_to_nobody(
        self, start_upstream: StartUpstream, start_mirror: StartMirror
    ) -> None:
        """It is compared with what the upstream lists, however far down; what clients write stays here."""
        upstream = await start_upstream(page_size=1)
        fill(upstream, [f"{number:03}" for number in range(103)])
        mirror = await start_mirror(upstreams={"docker.io": upstream}, timeouts=PATIENT)

        assert listed(await mirror.get(f"{PATH}?last=100~")) == ["101"]
        assert not [seen for seen in upstream.content_requests() if "100~" in seen.target or "%7E" in seen.target]

    async def test_what_follows_a_stretch_is_given_whole(
        self, start_upstream: StartUpstream, start_mirror: StartMirror
    ) -> None:
        """A link's `last` is a place in its own stretch; none of the next is lost where nothing is left."""
        upstream = await start_upstream(page_size=1, tag_order="pushed", link_style="opaque")
        fill(upstream, [*(f"{number:03}" for number in range(100)), "z", "a", "b"])
        mirror = await start_mirror(upstreams={"docker.io": upstream}, timeouts=PATIENT)
        link = following(await mirror.get(PATH))
        assert link is not None

        assert listed(await mirror.get(f"{link}&last=z")) == ["a"]

    async def test_the_rest_is_found_after_a_restart(
        self, start_upstream: StartUpstream, start_mirror: StartMirror
    ) -> None:
        """A link that was given stays good."""
        upstream = await start_upstream(page_size=1)
        tags = [f"{number:03}" for number in range(102)]
        fill(upstream, tags)
        mirror = await start_mirror(upstreams={"docker.io": upstream}, timeouts=PATIENT)
        link = following(await mirror.get(PATH))
        assert link is not None

        await mirror.restart()

        assert [tag for page in await walk(mirror, link) for tag in page] == ["100", "101"]

    async def test_a_link_that_we_never_gave_is_a_400(self, mirror: RunningMirror, upstream: FakeRegistry) -> None:
        """Nobody tells an upstream anything through us: what is not of our making is not passed on."""
        fill(upstream)

        for cursor in ("n=1%26x=y", "0" * 32):
            reply = await mirror.get(f"{PATH}?next={cursor}")
            assert (reply.status, reply.code) == (400, "UNSUPPORTED")
        assert upstream.count(kind="tags") == 0

    async def test_pages_that_take_long_are_passed_on(
        self, start_upstream: StartUpstream, start_mirror: StartMirror
    ) -> None:
        """When half of the time is over, what is there is given, and the rest by its link."""
        upstream = await start_upstream(page_size=3)
        fill(upstream)
        mirror = await start_mirror(upstreams={"docker.io": upstream}, timeouts=short_timeouts(first_byte=2.4, try_=2))
        upstream.fault(REPOSITORY, delay(1.25), times=1, skip=1)

        pages = await walk(mirror, PATH)

        assert [len(page) for page in pages] == [6, 2]
        assert [tag for page in pages for tag in page] == sorted(TAGS)

    async def test_one_deadline_over_all_pages(self, start_upstream: StartUpstream, start_mirror: StartMirror) -> None:
        """A page that does not come is a timeout, not half a list."""
        upstream = await start_upstream(page_size=3)
        fill(upstream)
        mirror = await start_mirror(
            upstreams={"docker.io": upstream}, timeouts=short_timeouts(first_byte=0.5, try_=0.2)
        )
        upstream.fault(REPOSITORY, stall(), skip=2)

        reply = await mirror.get(PATH)

        assert (reply.status, reply.code) == (504, "UNAVAILABLE")


class TestFreshness:
    async def test_a_list_is_good_for_thirty_seconds(
        self, mirror: RunningMirror, upstream: FakeRegistry, clock: Clock
    ) -> None:
        """For so long nobody is asked; afterwards a tag that was pushed is there."""
        fill(upstream, ["a"])
        assert listed(await mirror.get(PATH)) == ["a"]
        fill(upstream, ["b"])

        clock.forward(LIST_TTL - 5)
        assert (await mirror.get(PATH)).cache == "hit"
        assert upstream.count(kind="tags") == 1
        clock.forward(6)
        reply = await mirror.get(PATH)
        assert (reply.cache, listed(reply)) == ("miss", ["a", "b"])

    async def test_no_longer_than_a_tag(self, start_mirror: StartMirror, upstream: FakeRegistry, clock: Clock) -> None:
        """An upstream with a shorter tag_ttl has its lists asked for as often; with 0s, every time."""
        fill(upstream)
        for ttl in (0.0, 10.0):
            upstream.reset()
            settings = UpstreamSettings(url=upstream.url, tag_ttl=ttl)
            mirror = await start_mirror(upstreams={"docker.io": settings}, clock=clock)
            for _ in range(3):
                await mirror.get(PATH)
            assert upstream.count(kind="tags") == (3 if ttl == 0 else 1)
            clock.forward(11)
            assert (await mirror.get(PATH)).cache == "miss"

    async def test_a_hundred_clients_ask_once(self, mirror: RunningMirror, upstream: FakeRegistry) -> None:
        """One question for all of them, and one answer; also where that is a no."""
        fill(upstream)

        replies = await mirror.together(100, PATH)

        assert {reply.body for reply in replies} == {replies[0].body}
        assert {reply.cache for reply in replies} <= {"miss", "joined", "hit"}
        assert upstream.count(kind="tags") == 1
        assert {reply.code for reply in await mirror.together(100, "/v2/nowhere/tags/list")} == {"NAME_UNKNOWN"}
        assert upstream.count(kind="tags") == 2

    @pytest.mark.parametrize(
        "fault",
        [stall(), reset(), status(503), status(429), html(), body(b"[]"), body(b'{"tags":'), truncate(at=10)],
        ids=lambda fault: fault.name,
    )
    async def test_stale_where_the_upstream_gives_no_answer(
        self, mirror: RunningMirror, upstream: FakeRegistry, clock: Clock, fault: Fault
    ) -> None:
        """The list as it was, marked and counted."""
        fill(upstream)
        await mirror.get(PATH)
        clock.forward(3 * 86400)
        upstream.fault(ANY, fault)

        reply = await mirror.get(f"{PATH}?n=2")
        assert (reply.cache, listed(reply)) == ("stale", sorted(TAGS)[:2])
        assert mirror.metric("mirror_stale_served_total", upstream="docker.io") == 1

    async def test_stale_for_as_long_as_a_tag(
        self, mirror: RunningMirror, upstream: FakeRegistry, clock: Clock
    ) -> None:
        """With nobody listening the list is served on, also after a restart; not after stale_if_error."""
        fill(upstream)
        await mirror.get(PATH)
        await upstream.stop()
        clock.forward(6 * 86400)

        await mirror.restart()
        assert (await mirror.get(PATH)).cache == "stale"
        clock.forward(2 * 86400)
        assert (await mirror.get(PATH)).status == 503

    async def test_stale_where_a_later_page_does_not_come(
        self, start_upstream: StartUpstream, start_mirror: StartMirror, clock: Clock
    ) -> None:
        """Half a list is none: the whole one from before is better."""
        upstream = await start_upstream(page_size=3)
        fill(upstream)
        mirror = await start_mirror(upstreams={"docker.io": upstream}, clock=clock)
        await mirror.get(PATH)
        clock.forward(LIST_TTL + 1)
        upstream.fault(REPOSITORY, status(503), skip=1)

        reply = await mirror.get(PATH)

        assert (reply.cache, listed(reply)) == ("stale", sorted(TAGS))

    async def test_a_later_page_that_is_not_there_denies_nothing(
        self, start_upstream: StartUpstream, start_mirror: StartMirror, clock: Clock
    ) -> None:
        """Its address was the upstream's own; that it leads nowhere any more says nothing of the list."""
        upstream = await start_upstream(page_size=3)
        fill(upstream)
        mirror = await start_mirror(upstreams={"docker.io": upstream}, clock=clock)
        await mirror.get(PATH)
        clock.forward(LIST_TTL + 1)
        gone = status(404, "404 page not found\n", content_type="text/plain")
        rules = [upstream.fault(REPOSITORY, gone, skip=skip, times=1) for skip in (1, 3)]

        reply = await mirror.get(PATH)

        assert (reply.cache, listed(reply)) == ("stale", sorted(TAGS))
        assert [rule.hits for rule in rules] == [1, 1]
        assert listed(await mirror.get(PATH)) == sorted(TAGS)

    async def test_without_a_copy_no_answer_is_an_error(self, mirror: RunningMirror, upstream: FakeRegistry) -> None:
        """What is no list is not passed on, nor taken for an empty one; null is one."""
        fill(upstream)
        for fault in (html(), body(b"{}"), body(b'{"tags":"x"}'), body(b"[1]"), body(b" " * (9 << 20))):
            rule = upstream.fault(REPOSITORY, fault)
            reply = await mirror.get(PATH)
            assert (reply.status, reply.code) == (503, "UNAVAILABLE"), fault.name
            rule.remove()
        upstream.fault(REPOSITORY, body(b'{"name":"x","tags":null}'))
        assert listed(await mirror.get(PATH)) == []

    async def test_a_refresh_goes_on_behind(
        self, start_mirror: StartMirror, upstream: FakeRegistry, clock: Clock
    ) -> None:
        """When stale_after is over the old list is given; the new one is there when it comes."""
        fill(upstream, ["a"])
        mirror = await start_mirror(clock=clock, timeouts=short_timeouts(stale_after=0.1))
        await mirror.get(PATH)
        clock.forward(LIST_TTL + 1)
        fill(upstream, ["b"])
        rule = upstream.fault(REPOSITORY, delay(5), times=1)

        assert (await mirror.get(PATH)).cache == "stale"
        rule.release()
        await upstream.until(lambda: upstream.in_flight == 0)
        async with asyncio.timeout(5):
            while (reply := await mirror.get(PATH)).cache != "hit":
                pass
        assert listed(reply) == ["a", "b"]

    async def test_it_may_be_refreshed_behind_from_the_start(
        self, start_mirror: StartMirror, upstream: FakeRegistry, clock: Clock
    ) -> None:
        """Where the operator allows it nobody waits: the old list now, the new one as soon as it is there."""
        fill(upstream, ["a"])
        settings = UpstreamSettings(url=upstream.url, stale_while_revalidate=3600)
        mirror = await start_mirror(upstreams={"docker.io": settings}, clock=clock)
        await mirror.get(PATH)
        clock.forward(LIST_TTL + 1)
        fill(upstream, ["b"])

        reply = await mirror.get(PATH)
        assert (reply.cache, listed(reply)) == ("stale", ["a"])
        assert mirror.metric("mirror_stale_served_total", reason="revalidating") == 1
        async with asyncio.timeout(5):
            while (reply := await mirror.get(PATH)).cache != "hit":
                pass
        assert listed(reply) == ["a", "b"]


class TestNo:
    @pytest.mark.parametrize(
        ("refusal", "code"),
        [(status(401), "DENIED"), (status(403), "DENIED"), (status(404, error="NAME_UNKNOWN"), "NAME_UNKNOWN")],
        ids=["401", "403", "404"],
    )
    async def test_a_refusal_ends_the_list_alone(
        self, mirror: RunningMirror, upstream: FakeRegistry, clock: Clock, refusal: Fault, code: str
    ) -> None:
        """No stale list after it; but what the repository has shown stays: not everybody who may pull may list."""
        image = upstream.add_image(REPOSITORY, "1")
        await mirror.manifest("demo", image.digest)
        await mirror.get(PATH)
        clock.forward(LIST_TTL + 1)
        rule = upstream.fault(REPOSITORY, refusal)

        assert (await mirror.get(PATH)).code == code
        rule.remove()
        upstream.fault(ANY, status(503))
        assert (await mirror.get(PATH)).status in (404, 503)
        assert (await mirror.manifest("demo", image.digest)).cache == "hit"

    async def test_a_refusal_elsewhere_ends_a_list(self, mirror: RunningMirror, upstream: FakeRegistry) -> None:
        """A fresh list of a repository that has just refused a manifest is not served."""
        fill(upstream)
        await mirror.get(PATH)
        rule = upstream.fault(REPOSITORY, status(403))
        assert (await mirror.manifest("demo", "unheard-of")).code == "DENIED"

        assert (await mirror.get(PATH)).code == "DENIED"
        rule.remove()
        assert listed(await mirror.get(PATH)) == sorted(TAGS)

    async def test_an_upstream_without_tag_lists_loses_nothing_else(
        self, mirror: RunningMirror, upstream: FakeRegistry
    ) -> None:
        """A 404 that does not speak of the repository denies the list alone, for a while without asking again."""
        image = upstream.add_image(REPOSITORY, "1")
        await mirror.manifest("demo", image.digest)
        upstream.fault(f"/v2/{REPOSITORY}/tags/list", status(404, "404 page not found\n", content_type="text/plain"))

        for _ in range(3):
            reply = await mirror.get(PATH)
            assert (reply.status, reply.code) == (404, "NAME_UNKNOWN")
        assert upstream.count(kind="tags") == 1
        assert (await mirror.manifest("demo", image.digest)).cache == "hit"

    async def test_lists_stay_with_their_repository(
        self, start_upstream: StartUpstream, start_mirror: StartMirror
    ) -> None:
        """What one repository or upstream lists is not known under another name, whichever was asked first."""
        private = await start_upstream(auth=Basic({"u": "p"}))
        fill(private, ["secret"])
        private.make_private(REPOSITORY)
        public = await start_upstream()
        fill(public, ["open"])
        login = UpstreamSettings(url=private.url, username="u", password=SecretStr("p"))
        mirror = await start_mirror(upstreams={"docker.io": public, "private.test": login})

        assert listed(await mirror.get(f"/v2/private.test/{REPOSITORY}/tags/list")) == ["secret"]
        assert listed(await mirror.get(PATH)) == ["open"]
        assert listed(await mirror.get(f"{PATH}?ns=private.test".replace("demo", REPOSITORY))) == ["secret"]
        assert (await mirror.get("/v2/library/demo2/tags/list")).code == "NAME_UNKNOWN"


async def test_it_is_counted_and_told(mirror: RunningMirror, upstream: FakeRegistry) -> None:
    """Metrics have the kind `tags`, for what clients ask and for what we ask."""
    fill(upstream)
    for _ in range(2):
        await mirror.get(PATH)

    assert mirror.metric("mirror_requests_total", kind="tags", result="miss", upstream="docker.io") == 1
    assert mirror.metric("mirror_requests_total", kind="tags", result="hit", upstream="docker.io") == 1
    assert mirror.metric("mirror_upstream_requests_total", kind="tags", status="200") == 1
    assert mirror.metric("mirror_upstream_bytes_total", kind="tags") > 0
    assert mirror.metric("mirror_served_bytes_total", kind="tags") > 0

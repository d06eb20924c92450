"""Lists of tags: complete and in order whatever the upstream's pages look like, in the pages that a client asks for."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from tests.clock import Clock
from tests.conftest import StartMirror
from tests.harness import Reply, RunningMirror
from tests.upstream import FakeRegistry
from tests.upstream.fixtures import StartUpstream

REPOSITORY = "library/demo"
PATH = "/v2/demo/tags/list"
TAGS = ["b", "1.10", "a", "B", "latest", "1.9", "_x", "z"]
LIST_TTL = 30.0


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
    mirror = await start_mirror(upstreams={"docker.io": upstream})

    assert listed(await mirror.get(PATH)) == sorted(TAGS)
    assert upstream.count(kind="tags", path=f"/v2/{REPOSITORY}/tags/list", status=200) == 3
    assert upstream.count(origin="cdn") == upstream.count(kind="other") == 0

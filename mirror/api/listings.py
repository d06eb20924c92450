"""Lists of tags and referrers: which part of them a request asks for, and the page that answers it."""

from __future__ import annotations

from aiohttp import web

from mirror.api.exchange import Exchange
from mirror.oci.digest import Digest
from mirror.oci.link_header import next_link
from mirror.oci.manifest import OCI_INDEX
from mirror.oci.path import ParsedPath
from mirror.oci.referrers import render_index
from mirror.oci.tag_list import parse_count, render_tags
from mirror.pull import Following, ReferrersPuller, TagsPuller
from mirror.routing import Target

_JSON = "application/json"
_CURSOR = "next"
"""The parameter of our links that only we understand."""


class ListingsApi:
    """Answers GET and HEAD of tag lists and referrers. Every method raises MirrorError."""

    def __init__(self, tags: TagsPuller, referrers: ReferrersPuller) -> None:
        self._tags = tags
        self._referrers = referrers

    async def tags(self, request: web.BaseRequest, target: Target, name: str, exchange: Exchange) -> web.StreamResponse:
        """`tags/list`, with `n` and `last`; `name` is what the client called the repository."""
        n, last = request.query.get("n"), request.query.get("last")
        answer = await self._tags.get(target, parse_count(n), last, request.query.get(_CURSOR, ""))
        exchange.result = answer.source
        path = f"{name}/tags/list"
        link = _link(path, [] if n is None else [("n", n)], answer.following, exchange)
        return _response(render_tags(name, answer.tags), _JSON, answer.source, link)

    async def referrers(
        self, request: web.BaseRequest, target: Target, pull: ParsedPath, exchange: Exchange
    ) -> web.StreamResponse:
        """`referrers/<digest>`, with `artifactType`, by which we filter ourselves and say so."""
        subject = Digest.parse(pull.reference)
        wanted = [text for text in request.query.getall("artifactType", []) if text]
        last, cursor = request.query.get("last"), request.query.get(_CURSOR, "")
        answer = await self._referrers.get(target, subject, wanted, last, cursor)
        exchange.result = answer.source
        path = f"{pull.name}/referrers/{subject}"
        link = _link(path, [("artifactType", text) for text in wanted], answer.following, exchange)
        response = _response(render_index(answer.descriptors), OCI_INDEX, answer.source, link)
        if wanted:
            response.headers["OCI-Filters-Applied"] = "artifactType"
        return response


def _link(path: str, asked: list[tuple[str, str]], following: Following | None, exchange: Exchange) -> str | None:
    """The Link to the next page, as this client has to call it; `asked` is what it asked for, wherever it began."""
    if following is None:
        return None
    parameters = list(asked)
    if following.last is not None:
        parameters.append(("last", following.last))
    if following.cursor:
        parameters.append((_CURSOR, following.cursor))
    if exchange.namespace is not None:
        parameters.append(("ns", exchange.namespace))
    return next_link(f"{exchange.prefix}/v2/{path}", parameters)


def _response(body: bytes, media_type: str, source: str, link: str | None) -> web.Response:
    """A page; for a HEAD the framework leaves the body out."""
    headers = {"Content-Type": media_type, "X-Cache": source, **({} if link is None else {"Link": link})}
    return web.Response(body=body, headers=headers)

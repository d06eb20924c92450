"""The registry API: which upstream, repository and thing a request means; one handler for every path."""

from __future__ import annotations

from aiohttp import web

from mirror.api.content import ContentApi
from mirror.api.exchange import EXCHANGE, Exchange
from mirror.api.listings import ListingsApi
from mirror.api.responses import version_response
from mirror.oci.digest import Digest
from mirror.oci.errors import Unsupported
from mirror.oci.path import ParsedPath
from mirror.oci.reference import Reference
from mirror.routing import Asked, Router, Target, read_reference

_METHODS = ("GET", "HEAD")
_ALLOW = ", ".join(_METHODS)


class RegistryApi:
    """Answers `/v2/…`."""

    def __init__(self, router: Router, content: ContentApi, listings: ListingsApi) -> None:
        self._router = router
        self._content = content
        self._listings = listings

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Any request. Raises MirrorError, for what is around it to answer, and ClientGone."""
        exchange = request[EXCHANGE]
        raw, forwarded = request.raw_path, exchange.forwarded
        wanted = self._router.wanted(raw, forwarded.prefix, request.headers.get("Host"), forwarded.host)
        asked = self._router.read(raw, forwarded.prefix) if wanted is None else wanted.asked
        exchange.prefix, exchange.namespace = asked.prefix, asked.namespace
        if asked.pull is not None:
            exchange.kind = asked.pull.kind
        if asked.is_api:
            _check_method(request)  # a write is refused as a write, not as an unknown path
        if wanted is None:
            return await self._other(request, asked, exchange)
        exchange.upstream, exchange.repository = wanted.target.upstream.entry, str(wanted.target)
        return await self._pull(request, wanted.target, wanted.pull, wanted.reference, exchange)

    async def _other(self, request: web.BaseRequest, asked: Asked, exchange: Exchange) -> web.StreamResponse:
        """What is no pull, or one that is refused: step by step, so that what is known till then is recorded."""
        chosen = self._router.choose(asked, _host(request, asked, exchange))
        if asked.is_version:
            return version_response()
        if asked.pull is None:
            raise Unsupported(
                f"{asked.target.path[:256]!r} is not served here; there are manifests, blobs, tags and referrers"
            )
        target = self._router.target(asked.pull.name, chosen)
        exchange.upstream, exchange.repository = target.upstream.entry, str(target)
        return await self._pull(request, target, asked.pull, read_reference(asked.pull), exchange)

    async def _pull(
        self,
        request: web.BaseRequest,
        target: Target,
        pull: ParsedPath,
        reference: Reference | None,
        exchange: Exchange,
    ) -> web.StreamResponse:
        if reference is None:
            return await self._listings.tags(request, target, pull.name, exchange)
        if pull.kind == "manifest":
            return await self._content.manifest(request, target, reference, exchange)
        assert isinstance(reference, Digest)
        if pull.kind == "referrers":
            return await self._listings.referrers(request, target, pull, exchange)
        return await self._content.blob(request, target, reference, exchange)


def _host(request: web.BaseRequest, asked: Asked, exchange: Exchange) -> str | None:
    """What the client calls us."""
    return exchange.forwarded.host or asked.target.authority or request.headers.get("Host")


def _check_method(request: web.BaseRequest) -> None:
    if request.method not in _METHODS:
        raise Unsupported("this is a pull-through cache: nothing can be pushed or deleted", allow=_ALLOW)

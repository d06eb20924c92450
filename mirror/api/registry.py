"""The registry API: which upstream, repository and thing a request means; one handler for every path."""

from __future__ import annotations

from aiohttp import web

from mirror.api.content import ContentApi
from mirror.api.exchange import EXCHANGE, Exchange
from mirror.api.responses import version_response
from mirror.oci.digest import Digest
from mirror.oci.errors import Unsupported
from mirror.oci.reference import parse_reference
from mirror.routing import ParsedPath, Router, Target, parse_path

_METHODS = ("GET", "HEAD")
_ALLOW = ", ".join(_METHODS)


class RegistryApi:
    """Answers `/v2/…`."""

    def __init__(self, router: Router, content: ContentApi) -> None:
        self._router = router
        self._content = content

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Any request. Raises MirrorError, for what is around it to answer, and ClientGone."""
        path = request.path
        if path in ("/v2", "/v2/"):
            _check_method(request)
            return version_response()
        parsed = parse_path(path)
        exchange = request[EXCHANGE]
        if parsed is not None:
            exchange.kind = parsed.kind
        if path.startswith("/v2/"):
            _check_method(request)  # a write is refused as a write, not as an unknown path
        if parsed is None or parsed.kind not in ("manifest", "blob"):
            raise Unsupported(f"{path[:256]!r} is not served here; a pull-through cache has manifests and blobs")
        target = self._target(request, parsed, exchange)
        if parsed.kind == "manifest":
            return await self._content.manifest(request, target, parse_reference(parsed.reference), exchange)
        return await self._content.blob(request, target, Digest.parse(parsed.reference), exchange)

    def _target(self, request: web.BaseRequest, parsed: ParsedPath, exchange: Exchange) -> Target:
        namespace = request.query.get("ns")
        target = self._router.resolve(parsed.name, namespace)
        exchange.namespace = namespace
        exchange.upstream = target.upstream.entry
        exchange.repository = str(target)
        return target


def _check_method(request: web.BaseRequest) -> None:
    if request.method not in _METHODS:
        raise Unsupported("this is a pull-through cache: nothing can be pushed or deleted", allow=_ALLOW)

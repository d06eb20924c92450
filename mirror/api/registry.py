"""The registry API: what a request asks for, and the answer's headers; one handler for every path."""

from __future__ import annotations

import asyncio

from aiohttp import web

from mirror.api.exchange import EXCHANGE, Exchange
from mirror.api.responses import blob_response, etag, manifest_response, version_response
from mirror.api.sender import ClientGone, Sender, cut_short
from mirror.oci.byte_range import RangeSpec, parse_range
from mirror.oci.digest import Digest
from mirror.oci.errors import MirrorError, Unsupported, UpstreamCorrupt, UpstreamTimeout
from mirror.oci.reference import parse_reference
from mirror.pull import BlobAnswer, BlobPuller, ManifestPuller
from mirror.routing import ParsedPath, Router, Target, parse_path

_METHODS = ("GET", "HEAD")
_ALLOW = ", ".join(_METHODS)


class RegistryApi:
    """Answers `/v2/…`; `first_byte` is how long in seconds a client waits for the first byte of a blob."""

    def __init__(
        self, router: Router, manifests: ManifestPuller, blobs: BlobPuller, sender: Sender, first_byte: float
    ) -> None:
        self._router = router
        self._manifests = manifests
        self._blobs = blobs
        self._sender = sender
        self._first_byte = first_byte

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Any request. Raises MirrorError for the middleware to answer."""
        path = request.path
        if path in ("/v2", "/v2/"):
            _check_method(request)
            return version_response()
        parsed = parse_path(path)
        if parsed is None or parsed.kind not in ("manifest", "blob"):
            _check_write(request)
            raise Unsupported(f"{path[:256]!r} is not served here; a pull-through cache has manifests and blobs")
        _check_method(request)
        exchange = request[EXCHANGE]
        exchange.kind = parsed.kind
        target = self._target(request, parsed, exchange)
        if parsed.kind == "manifest":
            return await self._manifest(request, target, parsed.reference, exchange)
        return await self._blob(request, target, Digest.parse(parsed.reference), exchange)

    def _target(self, request: web.Request, parsed: ParsedPath, exchange: Exchange) -> Target:
        target = self._router.resolve(parsed.name, request.query.get("ns"))
        exchange.upstream = target.upstream.entry
        exchange.repository = str(target)
        exchange.reference = parsed.reference
        return target

    async def _manifest(
        self, request: web.Request, target: Target, reference: str, exchange: Exchange
    ) -> web.StreamResponse:
        spec = _range(request)
        answer = await self._manifests.get(target, parse_reference(reference), head=request.method == "HEAD")
        exchange.result = answer.source
        return manifest_response(answer, spec, not_modified=_not_modified(request, answer.digest))

    async def _blob(
        self, request: web.Request, target: Target, digest: Digest, exchange: Exchange
    ) -> web.StreamResponse:
        if request.method == "HEAD":
            answer = await self._blobs.head(target, digest)
            exchange.result = answer.source
            return blob_response(answer, not_modified=_not_modified(request, digest))
        answer = await self._blobs.get(target, digest, _range(request))
        assert answer.body is not None
        exchange.result = answer.source
        try:
            if _not_modified(request, digest):
                return blob_response(answer, not_modified=True)
            return await self._send(request, answer, exchange)
        finally:
            await answer.body.close()

    async def _send(self, request: web.Request, answer: BlobAnswer, exchange: Exchange) -> web.StreamResponse:
        assert answer.body is not None
        whole = answer.byte_range is None
        start = 0 if answer.byte_range is None else answer.byte_range.start
        end = answer.size if answer.byte_range is None else answer.byte_range.end + 1
        first = None
        if start == end:
            _check_empty(answer.digest)
        elif not answer.at_once:
            left = max(0.0, self._first_byte - exchange.elapsed())
            try:
                async with asyncio.timeout(left):
                    first = await answer.body.at(start)
            except TimeoutError:
                raise UpstreamTimeout(f"no byte of {answer.digest} came in {self._first_byte:g} s") from None
        response = blob_response(answer, not_modified=False)
        await response.prepare(request)
        exchange.status = response.status
        try:
            await self._sender.send(
                request, response, answer.body, start, end, first=first, sent=lambda count: _count(exchange, count)
            )
        except ClientGone:
            raise
        except MirrorError as error:
            exchange.result = "error"
            exchange.failure = f"{'' if whole else 'range '}cut short: {error.message}"
            await cut_short(request, response)
        return response


def _count(exchange: Exchange, count: int) -> None:
    exchange.sent += count


def _check_method(request: web.Request) -> None:
    if request.method not in _METHODS:
        raise Unsupported("this is a pull-through cache: nothing can be pushed or deleted", allow=_ALLOW)


def _check_write(request: web.Request) -> None:
    """A write to a path of the API is refused as a write, not as an unknown path."""
    if request.path.startswith("/v2/"):
        _check_method(request)


def _check_empty(digest: Digest) -> None:
    if not digest.matches(b""):
        raise UpstreamCorrupt(f"the upstream says that {digest} is empty, which it is not")


def _range(request: web.Request) -> RangeSpec | None:
    """The one range that is asked for; a Range has no meaning on HEAD (RFC 9110 §14.2). Raises RangeInvalid."""
    return parse_range(request.headers.get("Range")) if request.method == "GET" else None


def _not_modified(request: web.Request, digest: Digest) -> bool:
    header = request.headers.get("If-None-Match")
    if header is None:
        return False
    tags = {tag.strip().removeprefix("W/") for tag in header.split(",")}
    return "*" in tags or etag(digest) in tags

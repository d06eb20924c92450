"""Manifests and blobs: which part of them a request asks for, and the answer that gives it."""

from __future__ import annotations

import structlog
from aiohttp import web

from mirror.api.connections import ClientGone
from mirror.api.exchange import Exchange
from mirror.api.middleware import Traffic
from mirror.api.responses import blob_response, etag, manifest_response
from mirror.api.sender import Sender, cut_short
from mirror.oci.byte_range import RangeSpec, parse_range
from mirror.oci.digest import Digest
from mirror.oci.errors import MirrorError, UpstreamCorrupt
from mirror.oci.reference import Reference
from mirror.pull import BlobAnswer, BlobPuller, ManifestPuller
from mirror.routing import Target

_log = structlog.get_logger()


class ContentApi:
    """Answers GET and HEAD of manifests and blobs. Every method raises MirrorError and ClientGone."""

    def __init__(self, manifests: ManifestPuller, blobs: BlobPuller, traffic: Traffic, sender: Sender) -> None:
        self._manifests = manifests
        self._blobs = blobs
        self._traffic = traffic
        self._sender = sender

    async def manifest(
        self, request: web.BaseRequest, target: Target, reference: Reference, exchange: Exchange
    ) -> web.StreamResponse:
        """GET or HEAD of a manifest."""
        answer = await self._manifests.get(target, reference, head=request.method == "HEAD")
        exchange.result = answer.source
        spec = _range(request, answer.digest)
        return manifest_response(answer, spec, not_modified=_not_modified(request, answer.digest))

    async def blob(
        self, request: web.BaseRequest, target: Target, digest: Digest, exchange: Exchange
    ) -> web.StreamResponse:
        """GET or HEAD of a blob."""
        spec = _range(request, digest)
        not_modified = _not_modified(request, digest)
        if request.method == "HEAD" or not_modified:  # who has the blob already needs a yes, not its bytes
            answer = await self._blobs.head(target, digest)
            exchange.result = answer.source
            return blob_response(answer, not_modified=not_modified)
        answer = await self._blobs.get(target, digest, spec)
        assert answer.body is not None
        exchange.result = answer.source
        try:
            return await self._send(request, answer, exchange)
        finally:
            await answer.body.close()

    async def _send(self, request: web.BaseRequest, answer: BlobAnswer, exchange: Exchange) -> web.StreamResponse:
        assert answer.body is not None
        start = 0 if answer.byte_range is None else answer.byte_range.start
        end = answer.size if answer.byte_range is None else answer.byte_range.end + 1
        first = None
        if start == end:
            _check_empty(answer.digest)
        elif answer.patience is not None:  # until the first byte is there, there may be an error to answer
            first = await answer.patience.bound(answer.body.at(start), f"the first byte of {answer.digest}")
        response = blob_response(answer, not_modified=False)
        await self._traffic.begin(request, response)
        try:
            await self._sender.send(request, response, answer.body, start, end, exchange, first=first)
        except ClientGone:
            raise
        except Exception as error:  # whatever it is: the headers are out, and no other answer may follow them
            if not isinstance(error, MirrorError):
                _log.exception("a blob could not be sent", digest=str(answer.digest))
            exchange.result = "error"
            exchange.failure = f"cut short: {error}"
            await cut_short(request, response)
        return response


def _check_empty(digest: Digest) -> None:
    if not digest.matches(b""):
        raise UpstreamCorrupt(f"the upstream says that {digest} is empty, which it is not")


def _range(request: web.BaseRequest, digest: Digest) -> RangeSpec | None:
    """The one range that is asked for. Raises RangeInvalid.

    It has no meaning on HEAD (RFC 9110 §14.2), nor where it is the rest of something else (If-Range, §13.1.5).
    """
    if request.method != "GET" or request.headers.get("If-Range", etag(digest)) != etag(digest):
        return None
    return parse_range(request.headers.get("Range"))


def _not_modified(request: web.BaseRequest, digest: Digest) -> bool:
    header = request.headers.get("If-None-Match")
    if header is None:
        return False
    tags = {tag.strip().removeprefix("W/") for tag in header.split(",")}
    return "*" in tags or etag(digest) in tags

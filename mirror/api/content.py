"""Manifests and blobs: which part of them a request asks for, and the answer that gives it."""

from __future__ import annotations

import re

import structlog
from aiohttp import web

from mirror.api.connections import ClientGone
from mirror.api.exchange import Exchange
from mirror.api.middleware import Traffic
from mirror.api.responses import blob_response, etag, manifest_response
from mirror.api.sender import Sender, cut_short
from mirror.download import Body
from mirror.oci.byte_range import RangeSet, parse_ranges
from mirror.oci.digest import Digest
from mirror.oci.errors import MirrorError, UpstreamCorrupt
from mirror.oci.reference import Reference
from mirror.pull import BlobAnswer, BlobPuller, ManifestPuller, Source
from mirror.routing import Target

_ENTITY_TAG = re.compile(r'(?:W/)?("[^"]*")')
"""The opaque part of each tag in a list: If-None-Match compares weakly."""
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
        if exchange.key is not None and answer.source is Source.HIT:
            exchange.lasting = await self._manifests.lasting(target, reference, answer, head=request.method == "HEAD")
        not_modified = _not_modified(request, answer.digest)
        ranges = None if not_modified else _ranges(request, answer.digest)
        return manifest_response(answer, ranges, not_modified=not_modified)

    async def blob(
        self, request: web.BaseRequest, target: Target, digest: Digest, exchange: Exchange
    ) -> web.StreamResponse:
        """GET or HEAD of a blob."""
        not_modified = _not_modified(request, digest)
        if request.method == "HEAD" or not_modified:  # who has the blob already needs a yes, not its bytes
            answer = await self._blobs.head(target, digest)
            exchange.result = answer.source
            return blob_response(answer, not_modified=not_modified)[0]
        answer = await self._blobs.get(target, digest, _ranges(request, digest))
        assert answer.body is not None
        exchange.result = answer.source
        try:
            if answer.content is not None:
                return blob_response(answer, not_modified=False)[0]
            return await self._send(request, answer, answer.body, exchange)
        finally:
            await answer.body.close()

    async def _send(
        self, request: web.BaseRequest, answer: BlobAnswer, body: Body, exchange: Exchange
    ) -> web.StreamResponse:
        first = None
        if not answer.size:
            _check_empty(answer.digest)
        elif answer.patience is not None:  # until the first byte is there, there may be an error to answer
            start = answer.parts[0].start if answer.parts else 0
            first = await answer.patience.bound(body.at(start), f"the first byte of {answer.digest}")
        response, sections = blob_response(answer, not_modified=False)
        await self._traffic.begin(request, response)
        try:
            await self._sender.send(request, response, body, sections, exchange, first=first)
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


def _ranges(request: web.BaseRequest, digest: Digest) -> RangeSet | None:
    """The ranges that are asked for. Raises RangeInvalid.

    They have no meaning on HEAD (RFC 9110 §14.2), nor where they are of something else (If-Range, §13.1.5).
    """
    if request.method != "GET" or request.headers.get("If-Range", etag(digest)) != etag(digest):
        return None
    return parse_ranges(_joined(request, "Range"))


def _not_modified(request: web.BaseRequest, digest: Digest) -> bool:
    """Whether the client has it already, and said so (RFC 9110 §13.1.2); that goes before any range."""
    header = _joined(request, "If-None-Match")
    return header is not None and (header.strip() == "*" or etag(digest) in _ENTITY_TAG.findall(header))


def _joined(request: web.BaseRequest, name: str) -> str | None:
    """All lines of a header as one; where a second line makes no sense, neither does the whole."""
    return ", ".join(request.headers.getall(name, ())) or None

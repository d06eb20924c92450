"""Bytes of blobs from the upstreams of other workers, which ask those; from an upstream itself where one is silent."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack

import msgspec

from mirror.oci.byte_range import ByteRange
from mirror.oci.digest import Digest
from mirror.oci.errors import UpstreamUnavailable
from mirror.peers.messages import AskBytes, AskClaim, StreamHead
from mirror.peers.peers import Lost, Peers, Silent, Talk
from mirror.peers.wire import Kind
from mirror.routing import Target
from mirror.store.shapes import LinkRecord
from mirror.transport import BlobStream, Deadline
from mirror.upstream import Upstreams

_HOP = 0.95
"""Share of the time that the other worker has: its answer has to cross."""


class FarStream:
    """A blob on its way from another worker; the same as transport.BlobStream."""

    def __init__(self, head: StreamHead, talk: Talk, stack: AsyncExitStack) -> None:
        self.start = head.start
        self.size = head.size
        self.partial = head.partial
        self.content_encoding = head.content_encoding
        self.relayed = head.relayed
        self._talk = talk
        self._stack = stack

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """As of BlobStream; a worker that has gone or does not speak is a broken body, which is resumed."""
        try:
            while True:
                kind, payload = await self._talk.hear()
                if kind is Kind.ANSWER:
                    return
                yield payload
        except (Lost, Silent) as error:
            raise UpstreamUnavailable("the worker that fetched it has gone", reason="reset") from error

    async def close(self) -> None:
        """Takes the question back, if there is more to come. May be called again."""
        await self._stack.aclose()


class FarUpstreams:
    """Opens blobs of upstreams that other workers own. Raises as upstream.Upstreams does."""

    def __init__(self, near: Upstreams, peers: Peers) -> None:
        self._near = near
        self._peers = peers

    async def head_blob(self, target: Target, digest: Digest, deadline: Deadline) -> int | None:
        """The blob's size in bytes, as its upstream says; None where it has the blob and tells no size."""
        question = AskClaim(host=target.upstream.host, repository=target.repository, digest=str(digest))
        try:
            return (await deadline.bound(self._peers.ask(question, LinkRecord), f"{target}@{digest}")).size
        except Silent:
            return await self._near.head_blob(target, digest, deadline)
        except UpstreamUnavailable as error:
            if error.reason == "length":
                return None
            raise

    async def open_blob(
        self, target: Target, digest: Digest, deadline: Deadline, byte_range: ByteRange | None = None
    ) -> BlobStream | FarStream:
        """The blob, which others may be reading there, too; or bytes of it."""
        question = AskBytes(
            host=target.upstream.host,
            repository=target.repository,
            within=_HOP * deadline.remaining(),
            digest=str(digest),
            start=byte_range.start if byte_range is not None else None,
            end=byte_range.end if byte_range is not None else None,
        )
        try:
            return await deadline.bound(self._open(question), f"{target}@{digest}")
        except (Silent, Lost):
            return await self._near.open_blob(target, digest, deadline, byte_range)

    async def _open(self, question: AskBytes) -> FarStream:
        async with AsyncExitStack() as stack:
            talk = await stack.enter_async_context(self._peers.talk(question))
            _, payload = await talk.hear()
            return FarStream(msgspec.msgpack.decode(payload, type=StreamHead), talk, stack.pop_all())
        raise AssertionError("unreachable")

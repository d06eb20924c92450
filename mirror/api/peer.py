"""What other workers of this machine ask us, since we own the upstream; answered as a client's request would be.

No client is counted here, and no access line written: the worker to which the client talks does that.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, aclosing
from typing import Any, Protocol

import msgspec
import structlog

from mirror.cache import Cache, ListName
from mirror.download import BytesPiece, Download, Sample, follow
from mirror.oci.byte_range import ByteRange
from mirror.oci.digest import Digest
from mirror.oci.errors import MirrorError
from mirror.oci.reference import parse_reference
from mirror.peers import answering_a_peer
from mirror.peers.messages import (
    AskBytes,
    AskClaim,
    AskFill,
    AskList,
    AskManifest,
    AskProof,
    AskRenewal,
    Failure,
    Held,
    Joined,
    ListFound,
    ManifestFound,
    Question,
    StreamHead,
    Told,
)
from mirror.peers.peers import encode, unexpected
from mirror.peers.wire import Kind, Wire
from mirror.pull import BlobPuller, ManifestPuller, Permissions, ReferrersPuller, TagsPuller
from mirror.routing import Router, Target
from mirror.sockets import is_ours
from mirror.transport import Deadline
from mirror.upstream import Upstreams

_CHUNK = 256 << 10
"""Bytes of one frame of data."""
_BEATS = 4
"""Signs of life within the silence that the others bear."""
_questions = msgspec.msgpack.Decoder(Question)
_told = msgspec.msgpack.Decoder(Told)
_Reading = asyncio.Task[tuple[Kind, bytes] | None]
_log = structlog.get_logger()


class PeerApi:
    """Answers questions, each on a connection that asks one at a time."""

    def __init__(
        self,
        router: Router,
        cache: Cache,
        upstreams: Upstreams,
        manifests: ManifestPuller,
        tags: TagsPuller,
        referrers: ReferrersPuller,
        permissions: Permissions,
        blobs: BlobPuller,
    ) -> None:
        self._router = router
        self._cache = cache
        self._upstreams = upstreams
        self._manifests = manifests
        self._tags = tags
        self._referrers = referrers
        self._permissions = permissions
        self._blobs = blobs
        self._answers: dict[type[Any], Callable[[Any, Asked], Awaitable[Any]]] = {
            AskManifest: self._manifest,
            AskList: self._list,
            AskClaim: self._claim,
            AskProof: self._proof,
            AskRenewal: self._renewal,
            AskFill: self._fill,
            AskBytes: self._bytes,
        }

    async def answer(self, question: Question, asked: Asked) -> Any:
        """What becomes of a question. Raises MirrorError."""
        answering_a_peer.set(True)  # in the task of this question, and whatever that begins
        return await self._answers[type(question)](question, asked)

    def _target(self, question: Question) -> Target:
        return self._router.named(question.host, question.repository)

    async def _manifest(self, question: AskManifest, _: Asked) -> ManifestFound:
        answer = await self._manifests.learn(
            self._target(question), parse_reference(question.reference), head=question.head
        )
        return ManifestFound(str(answer.digest), answer.size, answer.media_type, answer.content, answer.source)

    async def _list(self, question: AskList, _: Asked) -> ListFound:
        target = self._target(question)
        if question.kind == "tags":
            answer = await self._tags.learn(target, ListName("tags", cursor=question.cursor))
        else:
            subject = Digest.parse(question.subject)
            answer = await self._referrers.learn(target, subject, ListName("referrers", subject, question.cursor))
        return ListFound(tuple(answer.items), answer.rest, answer.source)

    async def _claim(self, question: AskClaim, _: Asked) -> Any:
        deadline = Deadline.after(question.within)
        return await self._permissions.claim(self._target(question), Digest.parse(question.digest), deadline)

    async def _proof(self, question: AskProof, _: Asked) -> Any:
        return await self._permissions.prove(
            self._target(question),
            Digest.parse(question.digest),
            question.size,
            Sample(question.offset, question.data),
            Deadline.after(question.within),
        )

    async def _renewal(self, question: AskRenewal, _: Asked) -> bool:
        target, digest = self._target(question), Digest.parse(question.digest)
        if question.kind == "manifest":
            return await self._manifests.renewed(target, digest)
        return await self._permissions.renewed(target, digest)

    async def _fill(self, question: AskFill, asked: Asked) -> None:
        target, digest = self._target(question), Digest.parse(question.digest)
        if question.hint is not None:
            self._cache.hints.offer(target, digest, question.hint)
        lent = await self._blobs.lend(target, digest, background=question.background)
        if not isinstance(lent, tuple):
            try:
                asked.tell(Held(await self._cache.blobs.run(lent.files.inode, lent.fd, holding=lent)))
            finally:
                lent.release()
            return
        download, joined = lent
        targets = [target]
        for repository in question.others:
            self._told(download, targets, Joined(repository))
        asked.listen(lambda told: self._told(download, targets, told))
        await follow(download, targets, joined, self._cache, asked.tell)

    def _told(self, download: Download, targets: list[Target], told: Told) -> None:
        if isinstance(told, Joined):
            targets.append(Target(targets[0].upstream, told.repository))
            download.sources.add(targets[-1])
        else:
            download.keep_on()

    async def _bytes(self, question: AskBytes, asked: Asked) -> None:
        target, digest = self._target(question), Digest.parse(question.digest)
        deadline = Deadline.after(question.within)
        if question.start is None or question.end is None:
            await self._whole(target, digest, deadline, asked)
        else:
            await self._part(target, digest, ByteRange(question.start, question.end), deadline, asked)

    async def _whole(self, target: Target, digest: Digest, deadline: Deadline, asked: Asked) -> None:
        size, body = await self._blobs.pass_on(target, digest, deadline)
        try:
            asked.tell(StreamHead(0, size, False, None, True))
            offset = 0
            while offset < size:
                piece = await body.at(offset)
                if isinstance(piece, BytesPiece):
                    data = piece.data
                else:
                    file, count = piece.file, min(piece.count, _CHUNK)
                    data = await self._cache.blobs.read(file, count, piece.offset)
                await asked.send(memoryview(data)[: size - offset])
                offset += len(data)
        finally:
            await body.close()

    async def _part(self, target: Target, digest: Digest, part: ByteRange, deadline: Deadline, asked: Asked) -> None:
        question = await self._cache.question(target)
        async with self._cache.hearing_no(target, digest, "blob"):
            stream = await self._upstreams.open_blob(target, digest, deadline, part)
        async with stream:
            if stream.size is not None:
                await self._cache.put_link(question, "blob", digest, stream.size, proven=False)
            asked.tell(StreamHead(stream.start, stream.size, stream.partial, stream.content_encoding, False))
            async with aclosing(stream.chunks()) as chunks:
                async for chunk in chunks:
                    await asked.send(memoryview(chunk))


class Asked:
    """A question being answered: news and data go out meanwhile, and whoever asks may have to add something."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._earlier: list[Told] = []
        self._listener: Callable[[Told], None] = self._earlier.append

    def hear(self, told: Told) -> None:
        """Something was added."""
        self._listener(told)

    def listen(self, listener: Callable[[Told], None]) -> None:
        """Has `listener` hear what is added, and was before."""
        self._listener = listener
        for told in self._earlier:
            listener(told)

    def tell(self, news: Any) -> None:
        """Sends news."""
        self._wire.write(Kind.NEWS, encode(news))

    async def send(self, data: memoryview) -> None:
        """Sends data, as fast as they are taken."""
        for start in range(0, len(data), _CHUNK):
            self._wire.write(Kind.DATA, data[start : start + _CHUNK])
            await self._wire.drain()


class Answering(Protocol):
    """Whoever answers by one configuration."""

    peer: PeerApi

    def in_use(self) -> AbstractContextManager[None]:
        """Keeps it open meanwhile."""


class PeerServer:
    """Serves the connections of other workers; `engine` says who answers at the moment.

    `silence` is how long in seconds the others bear to hear nothing.
    """

    def __init__(self, engine: Callable[[], Answering], silence: float) -> None:
        self._engine = engine
        self.adjust(silence)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._active = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def adjust(self, silence: float) -> None:
        """The others bear another silence from now on."""
        self._beat = silence / _BEATS

    async def open(self, listening: socket.socket) -> None:
        """Listens at a Unix socket that is ours from now on."""
        self._server = await Wire.listen(self._connected, listening)

    async def idle(self) -> None:
        """Waits until nobody is being answered."""
        await self._idle.wait()

    async def close(self) -> None:
        """Cuts off whoever is being answered, and listens no more. Idempotent."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = Wire(reader, writer)
        if self._server is None:  # accepted before it was closed
            wire.close()
            return
        # Noted before it runs: else who comes while we close would be cut off by nobody.
        task = asyncio.create_task(self._serve(wire, writer), name="another worker")
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        task.add_done_callback(lambda _: wire.close())

    async def _serve(self, wire: Wire, writer: asyncio.StreamWriter) -> None:
        try:
            if not is_ours(writer.get_extra_info("socket")):
                _log.warning("somebody who is not us has called a worker's socket")
                return
            reading = asyncio.create_task(wire.read())
            try:
                while (frame := await reading) is not None:
                    reading = asyncio.create_task(wire.read())
                    if frame[0] is Kind.ASK:
                        reading = await self._question(wire, frame[1], reading)
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
        except asyncio.CancelledError:
            pass  # we are closing; asyncio would log it
        except ConnectionError:
            pass  # that is how somebody leaves whose clients have left
        except msgspec.MsgspecError as error:
            _log.error("another worker asks what is none of ours", error=str(error))

    async def _question(self, wire: Wire, payload: bytes, reading: _Reading) -> _Reading:
        """Answers, and says meanwhile that we are there; gives up where whoever asks has left.

        `reading` is that of the next frame; the one of the next question is returned.
        """
        asked, question = Asked(wire), _questions.decode(payload)
        self._active += 1
        self._idle.clear()
        answering = asyncio.create_task(self._answer(question, asked))
        try:
            while not answering.done():
                await asyncio.wait((answering, reading), timeout=self._beat, return_when=asyncio.FIRST_COMPLETED)
                if answering.done():
                    break
                if not reading.done():
                    wire.beat()
                    continue
                frame = reading.result()
                if frame is None or frame[0] is not Kind.TELL:
                    return reading
                asked.hear(_told.decode(frame[1]))
                reading = asyncio.create_task(wire.read())
            wire.write(*answering.result())
            await wire.drain()
            return reading
        finally:
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)
            self._active -= 1
            if not self._active:
                self._idle.set()

    async def _answer(self, question: Question, asked: Asked) -> tuple[Kind, bytes]:
        try:
            engine = self._engine()
            with engine.in_use():
                return Kind.ANSWER, encode(await engine.peer.answer(question, asked))
        except MirrorError as error:
            return Kind.FAILED, encode(Failure.of(error))
        except ConnectionError:
            raise
        except Exception as error:
            _log.exception("a question of another worker failed unexpectedly")
            return Kind.FAILED, encode(Failure.of(unexpected(error)))

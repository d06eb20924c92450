"""The store as a worker has it: its files and records are shared, what keeps them in order is another process's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from mirror.channel import Channel, ChannelClosed, Refused
from mirror.config import Storage
from mirror.metrics import Metrics
from mirror.oci.digest import Digest
from mirror.oci.errors import StorageError
from mirror.store.blobs import BlobStore
from mirror.store.files import Files
from mirror.store.generations import Generations
from mirror.store.home import SharedHome
from mirror.store.ledger import Ledger
from mirror.store.part import Part
from mirror.store.records import Records
from mirror.store.remote_budget import RemoteBudget
from mirror.store.trouble import FULL, LOST, Trouble

_HELLO_SECONDS = 30.0
_TELL_SECONDS = 1.0
_ROUND_TURNS = 5
"""Of telling, from one look at the disk to the next."""
_USES_AT_ONCE = 1000
"""In one frame: whoever reads them must not be kept from answering."""
_RECORDS_ROOM = 2 << 20
"""Bytes of blobs that go where records find no room: a few blobs are worth less than all names."""
_log = structlog.get_logger()


class Lodger:
    """Has what a `Keeper` has, for a worker: `open` it, let it `begin`, `close` it. Ends before its channel does."""

    def __init__(
        self,
        storage: Storage,
        metrics: Metrics,
        channel: Channel,
        shared_fd: int,
        slot: int,
        slots: int,
        *,
        files: Files | None = None,
        clock: Callable[[], float] = time.time,
        patience: float = 10.0,
        silence: float | None = None,
    ) -> None:
        """`channel` and `shared_fd` lead to the keeper (`Keeper.shared_fd`), whose worker we are in `slot` of `slots`.

        `silence`: seconds in which it has to show that it is alive where a fill asks for room.
        """
        self.trouble = Trouble(metrics, time.monotonic)
        part = Part(Ledger(shared_fd, slot + 1), slots, slot)
        self.blobs = BlobStore(storage.path, files or Files(), clock, patience=patience, part=part)
        self._home = SharedHome(storage.path, patience=patience)
        self.records = Records(storage.path / "records", self.trouble, check_home=self._home.check, part=part)
        self.generations = Generations(shared_fd)
        self.room = RemoteBudget(channel, before_end=self._tell_leftovers, silence=silence)
        self._channel = channel
        self._told_leftovers = -1  # one before us may have told of others
        self._told_trouble: list[str] = []
        self._opened = False
        self._chore: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.blobs.when_settled(self._note_settled)
        self.records.deletions.tell = lambda key, undone: channel.tell("records.undone", [key, undone])
        self.records.begun_anew = lambda: channel.tell("records.anew", None)
        channel.on("store.home", self._move)
        channel.on("store.settled", lambda text: self.blobs.settle(Digest.parse(text)))
        channel.on("store.drop", self._drop_leftovers)
        channel.on("records.mend", self._mend)
        channel.on("records.undone", self._hide)

    async def open(self) -> None:
        """Opens what the keeper has made ready. Raises StorageError where it cannot be used, or nobody keeps it."""
        self._loop = asyncio.get_running_loop()
        try:
            news = await self._channel.call("store.hello", None, _HELLO_SECONDS)
        except (TimeoutError, ChannelClosed, Refused) as error:
            raise StorageError(f"nobody keeps the store: {error!r}") from error
        self._opened = True  # what has been told before is in there
        self._home.identity = _identity(news)
        await self.blobs.open(_suspects(news))
        self._tell_leftovers()
        self.records.deletions.adopt(map(tuple, news["undone"]))
        await self.records.open()

    def begin(self) -> None:
        """Begins to tell the keeper what is used, and to look after the disk while it is in trouble."""
        self._chore = asyncio.create_task(self._run(), name="Lodger")

    async def close(self) -> None:
        """Writes out what is to be found again; after the last download. Idempotent, also after half an `open`.

        A stop is clean while there is somebody to keep the books: what nobody has counted is looked at next time.
        """
        chore, self._chore = self._chore, None
        if chore is not None:
            chore.cancel()
            await asyncio.wait([chore])
            self._tell_uses()
        try:
            await self.blobs.close(clean=not self._channel.closed.is_set())
        except StorageError as error:
            self.trouble.note("blobs", error)
        await self.records.close()
        self._home.close()

    async def round(self) -> None:
        """Looks whether the disk is there, and works again. Nothing is made in what stands in its place."""
        if not await self._do(self._home.look):
            return
        await self.records.mend()
        if self.trouble.met_by("records") == FULL and await self.room.make_room(_RECORDS_ROOM, "emergency"):
            await self.records.mend()
        reason = self.trouble.met_by("blobs")
        if reason == LOST and await self._do(self.blobs.make_directories):
            self._channel.tell("store.recount", None)
        if reason is not None and await self._do(self.blobs.probe):
            self.trouble.clear("blobs")

    async def _run(self) -> None:
        turns = 0
        while True:
            await asyncio.sleep(_TELL_SECONDS)
            self._tell_uses()
            self._tell_leftovers()
            turns += 1
            if turns % _ROUND_TURNS == 0:
                try:
                    await self.round()
                except Exception:
                    _log.exception("a look at the disk failed; the next one goes on")
            self._tell_trouble()

    async def _do(self, chore: Callable[[], Awaitable[None]]) -> bool:
        try:
            await chore()
        except StorageError as error:
            self.trouble.note("blobs", error)
            return False
        return True

    # Out.

    def _tell_uses(self) -> None:
        while uses := self.blobs.take_uses(_USES_AT_ONCE):
            self._channel.tell("store.uses", [(str(digest), used_at) for digest, used_at in uses])

    def _tell_leftovers(self) -> None:
        """Before the end of a fill whose spool was kept: it counts from then on."""
        left_over = self.blobs.left_over
        if left_over != self._told_leftovers:
            self._told_leftovers = left_over
            self._channel.tell("store.leftovers", left_over)

    def _tell_trouble(self) -> None:
        reasons = self.trouble.reasons
        if reasons != self._told_trouble:
            self._told_trouble = reasons
            self._channel.tell("store.trouble", reasons)

    def _note_settled(self, digest: Digest) -> None:
        """In any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._channel.tell, "store.settled", str(digest))

    # In.

    async def _drop_leftovers(self, need: int) -> int:
        freed = await self.blobs.drop_leftovers(need)
        self._tell_leftovers()
        return freed

    def _hide(self, payload: tuple[list[str], bool]) -> None:
        """What another process has deleted counts as gone here, too, before the database has heard of it."""
        key, undone = tuple(payload[0]), payload[1]
        self.records.deletions.hear(key, undone=undone)
        self.generations.changed(self.generations.stamp(key).slot)

    async def _mend(self, _: None) -> None:
        """Another process has begun the records anew."""
        if self._opened:
            await self.records.mend()

    async def _move(self, news: Any) -> None:
        """The keeper has another directory in the old one's place."""
        if not self._opened:
            return
        self._home.identity = _identity(news)
        if await self._do(lambda: self.blobs.reopen(_suspects(news))):
            self._tell_leftovers()


def _identity(news: Any) -> tuple[int, int]:
    device, inode = news["home"]
    return device, inode


def _suspects(news: Any) -> list[Digest]:
    return [Digest.parse(text) for text in news["suspects"]]

"""The keeper's side of what it shares with workers: it gives them room, hears what they use, and survives each."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from mirror.channel import Channel, ChannelClosed, Refused
from mirror.oci.digest import Digest
from mirror.oci.errors import StorageError
from mirror.store.blobs import BlobStore
from mirror.store.budget import Budget
from mirror.store.database import Key
from mirror.store.home import Home
from mirror.store.records import Records
from mirror.store.room import Reservation
from mirror.store.trouble import Trouble
from mirror.store.upkeep import Upkeep

_SILENCE = 0.05
_DROP_SECONDS = 2.0
_INHERIT_SECONDS = 10.0
"""How long the disk is asked what a dead worker has left, before its room is given to others all the same."""
_log = structlog.get_logger()


class Landlord:
    """Lets workers in by their channels. A worker that is gone leaves its spools, which count until the next one in its
    slot has looked at them, and gives all its room back.
    """

    def __init__(
        self, home: Home, blobs: BlobStore, budget: Budget, records: Records, upkeep: Upkeep, trouble: Trouble
    ) -> None:
        self.home = home
        self.blobs = blobs
        self.budget = budget
        self.records = records
        self.upkeep = upkeep
        self.trouble = trouble
        self.left: dict[int, int] = {}
        """By slot, the bytes in spools that no fill writes to."""
        self.undone: dict[int, set[Key]] = {}
        """By slot, deletions that the database has not heard of; the next worker in it has to see to them."""
        self._tenants: dict[int, Tenant] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        budget.holders.append(self)
        upkeep.moved = self._tell_home
        records.begun_anew = lambda: self.tell("records.mend", None)
        blobs.when_settled(self._hear_settled)

    async def open(self, slots: int) -> None:
        """Counts what workers in so many slots will find. Raises StorageError."""
        self._loop = asyncio.get_running_loop()
        for slot in range(slots):
            self.left[slot] = await self.blobs.spools_of(slot)

    def admit(self, slot: int, channel: Channel) -> None:
        """A worker has begun in this slot: answers whatever its lodger asks."""
        tenant = self._tenants[slot] = Tenant(slot, channel, self)
        channel.when_closed(lambda: self._part_from(tenant))

    async def close(self) -> None:
        """Waits until the books of workers that are gone are closed."""
        while self._leaving:
            await asyncio.wait(self._leaving)

    @property
    def reasons(self) -> list[str]:
        """What troubles with the disk the workers tell of."""
        present = [tenant for _, tenant in sorted(self._tenants.items()) if not tenant.channel.closed.is_set()]
        return [f"worker {tenant.slot}: {reason}" for tenant in present for reason in tenant.reasons]

    # What workers have left over.

    @property
    def left_over(self) -> int:
        """Bytes in spools that no fill writes to."""
        return sum(self.left.values())

    async def drop_leftovers(self, need: int) -> int:
        """Has workers remove some of together `need` bytes, if there are as many; returns what was freed.

        Those of a worker that is gone or silent are left alone: they are its own.
        """
        freed = 0
        for tenant in list(self._tenants.values()):
            if freed < need and self.left.get(tenant.slot):
                freed += await tenant.drop_leftovers(need - freed)
        return freed

    # News.

    def present(self, slot: int | None = None) -> dict[str, Any]:
        """What a worker has to know of the store, and of what one before it in its slot has left."""
        return {
            "home": self.home.identity,
            "suspects": [str(digest) for digest in self.blobs.checks.suspects],
            "undone": list(self.undone.get(slot, ())) if slot is not None else [],
        }

    def tell(self, name: str, payload: Any, but: Tenant | None = None) -> None:
        """Tells all workers, or all but one."""
        for tenant in self._tenants.values():
            if tenant is not but:
                tenant.channel.tell(name, payload)

    def _tell_home(self) -> None:
        self.tell("store.home", self.present())

    def _hear_settled(self, digest: Digest) -> None:
        """In any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.tell, "store.settled", str(digest))

    # The end of a worker.

    def _part_from(self, tenant: Tenant) -> None:
        torn = self.blobs.died(tenant.slot)
        task = asyncio.create_task(self._inherit(tenant, torn=torn), name=f"part from worker {tenant.slot}")
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _inherit(self, tenant: Tenant, *, torn: bool) -> None:
        """What it has left counts before its room is given to others: together they were promised once."""
        try:
            async with asyncio.timeout(_INHERIT_SECONDS):
                left = await self.blobs.spools_of(tenant.slot)
                if self._tenants[tenant.slot] is tenant:
                    self.left[tenant.slot] = left
                if torn:
                    self.upkeep.recount()  # one that is under way may have been there already
                    await self.budget.scan(self.budget.above_watermark)
        except TimeoutError:
            pass
        except StorageError as error:
            self.trouble.note("blobs", error)
        finally:
            tenant.leave()


class Tenant:
    """One worker, and what it was promised."""

    def __init__(self, slot: int, channel: Channel, landlord: Landlord) -> None:
        self.slot = slot
        self.channel = channel
        self.reasons: list[str] = []
        """What it says of its troubles with the disk."""
        self._landlord = landlord
        self._blobs = landlord.blobs
        self._budget = landlord.budget
        self._rooms: dict[int, Reservation | None] = {}
        """By its numbers; None while room is being looked for."""
        handlers: dict[str, Callable[[Any], Any]] = {
            "store.hello": self._welcome,
            "store.uses": self._hear_uses,
            "store.leftovers": self._hear_leftovers,
            "store.trouble": self._hear_trouble,
            "store.settled": self._hear_settled,
            "store.recount": lambda _: landlord.upkeep.recount(),
            "records.undone": self._hear_undone,
            "records.anew": self._hear_anew,
            "room.reserve": self._reserve,
            "room.extend": self._extend,
            "room.written": self._hear_written,
            "room.end": self._end,
            "room.make": self._make_room,
        }
        for name, handler in handlers.items():
            channel.on(name, handler)

    def leave(self) -> None:
        """Gives back all its room."""
        rooms, self._rooms = self._rooms, {}
        for reservation in rooms.values():
            if reservation is not None:
                reservation.end()

    async def drop_leftovers(self, need: int) -> int:
        """As of Landlord."""
        try:
            freed = await self.channel.call("store.drop", need, _DROP_SECONDS, silence=_SILENCE)
        except (TimeoutError, ChannelClosed, Refused) as error:
            _log.info("a worker does not drop what it has left over", slot=self.slot, error=repr(error))
            return 0
        return int(freed)

    # Room. Numbers are noted before anything is waited for: an end may follow at once.

    def _reserve(self, payload: list[int]) -> Awaitable[bool]:
        number, size = payload
        self._rooms[number] = None
        return self._find_room(number, size)

    async def _find_room(self, number: int, size: int) -> bool:
        reservation = None
        try:
            reservation = await self._budget.reserve(size)
        finally:
            wanted = self._rooms.pop(number, self) is None
            if wanted and reservation is not None:
                self._rooms[number] = reservation
            elif reservation is not None:  # who asked has given up meanwhile
                reservation.end()
        return wanted and reservation is not None

    async def _extend(self, payload: list[int]) -> bool:
        number, size = payload
        reservation = self._rooms.get(number)
        return reservation is not None and await self._budget.extend(reservation, size)

    def _hear_written(self, payload: list[int]) -> None:
        number, written = payload
        reservation = self._rooms.get(number)
        if reservation is not None:
            reservation.written = written

    def _end(self, number: int) -> None:
        reservation = self._rooms.pop(number, None)
        if reservation is not None:
            reservation.end()

    async def _make_room(self, payload: tuple[int, str]) -> int:
        need, reason = payload
        try:
            return await self._budget.make_room(need, reason)
        except StorageError as error:
            self._landlord.trouble.note("blobs", error)
            return 0

    # News.

    def _welcome(self, _: None) -> dict[str, Any]:
        for slot, keys in self._landlord.undone.items():
            for key in keys if slot != self.slot else ():
                self.channel.tell("records.undone", [key, True])  # in line with the news of its end
        return self._landlord.present(self.slot)

    def _hear_uses(self, uses: list[tuple[str, float]]) -> None:
        self._blobs.note_uses((Digest(*text.split(":", 1)), used_at) for text, used_at in uses)

    def _hear_leftovers(self, left_over: int) -> None:
        self._landlord.left[self.slot] = left_over
        self._budget.show()

    def _hear_trouble(self, reasons: list[str]) -> None:
        self.reasons = reasons

    def _hear_settled(self, text: str) -> Awaitable[None]:
        return self._blobs.settle(Digest.parse(text))

    def _hear_undone(self, payload: tuple[list[str], bool]) -> None:
        key, undone = tuple(payload[0]), payload[1]
        keys = self._landlord.undone.setdefault(self.slot, set())
        if undone:
            keys.add(key)
        else:
            keys.discard(key)
        self._landlord.tell("records.undone", payload, but=self)

    def _hear_anew(self, _: None) -> Awaitable[None]:
        self._landlord.tell("records.mend", None, but=self)
        return self._landlord.records.mend()

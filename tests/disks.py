"""A mirror over a disk in trouble: what its clients get, and what it tells its operator."""

from __future__ import annotations

import asyncio
import errno
import json

from tests.faulty import FaultyFiles
from tests.harness import RunningMirror, short_timeouts
from tests.upstream import Blob, FakeRegistry

KIB = 1 << 10
MIB = 1 << 20
REASONS = {errno.EIO: "io_error", errno.EROFS: "read_only", errno.ENOSPC: "full"}
PATIENT = short_timeouts(first_byte=10.0, cold_head=10.0, stall=10.0, no_progress=20.0)


class Pair:
    """A mirror over a disk with traps, and blobs at its upstream."""

    def __init__(self, mirror: RunningMirror, disk: FaultyFiles, upstream: FakeRegistry) -> None:
        self.mirror = mirror
        self.disk = disk
        self.upstream = upstream

    def blob(self, size: int = 100 * KIB) -> Blob:
        return self.upstream.put_blob("library/demo", size)

    async def check(self, blob: Blob, *, clients: int = 2) -> list[str | None]:
        """Every client gets every byte; returns what X-Cache said."""
        replies = await self.mirror.together(clients, f"/v2/demo/blobs/{blob.digest}")
        assert {reply.status for reply in replies} == {200}
        assert all(reply.body == blob.content for reply in replies)
        return [reply.cache for reply in replies]

    async def warm(self) -> Blob:
        """A blob that is held."""
        blob = self.blob()
        await self.check(blob, clients=1)
        await self.mirror.quiet()
        assert await self.check(blob, clients=1) == ["hit"]
        return blob

    async def degraded(self) -> list[str]:
        """What /readyz tells of the disk, always with 200."""
        async with self.mirror.session.get(f"{self.mirror.admin_url}/readyz") as answer:
            assert answer.status == 200
            body = json.loads(await answer.read())
        assert body["ready"]
        reasons = [reason.partition(": ")[2] for reason in body["degraded"]]
        for reason in (*REASONS.values(), "lost"):
            assert self.mirror.metric("mirror_storage_degraded", reason=reason) == (reason in reasons)
        return [str(reason) for reason in body["degraded"]]

    async def mend(self) -> None:
        """The disk works again, and upkeep sees it: in its next round, unless a busy machine makes it look slow."""
        self.disk.clear()
        await self.mirror.quiet()
        async with asyncio.timeout(10):
            await self.mirror.app.upkeep.round()
            while (told := await self.degraded()) and told == ["blobs: slow"]:
                await self.mirror.app.upkeep.round()
        assert told == []

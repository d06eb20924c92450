"""Every byte that leaves is the right one, whoever else comes, leaves, stalls or fails; and nothing is left open."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mirror.config import Timeouts
from mirror.oci.digest import Digest
from mirror.store.files import Files
from tests.certificates import SERVER
from tests.conftest import StartMirror
from tests.faulty import FullDisk
from tests.harness import RunningMirror, short_timeouts
from tests.lines import Lines, lines
from tests.raw import RawClient, SecuredClient
from tests.upstream import Blob, FakeRegistry, flip, stall_at

__all__ = ["lines"]

SMALL = 4096
"""A receive buffer so small that a client who does not read is noticed."""


@dataclass(frozen=True, slots=True)
class Wire:
    """How clients come, and what the mirror needs for that."""

    client: type[RawClient]
    settings: dict[str, Any]


@pytest.fixture(params=["plain", "TLS"])
def wire(request: pytest.FixtureRequest) -> Wire:
    """Once as it is, once encrypted."""
    return Wire(SecuredClient, {"tls": SERVER}) if request.param == "TLS" else Wire(RawClient, {})


@pytest.fixture
async def mirror(start_mirror: StartMirror, wire: Wire) -> RunningMirror:
    """A mirror with short time limits."""
    return await start_mirror(**wire.settings)


def descriptors() -> int:
    """How many this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def nothing_left_open(before: int, limit: float = 5.0) -> None:
    """Waits until no more descriptors are open than there were."""
    async with asyncio.timeout(limit):
        while descriptors() > before:  # noqa: ASYNC110 - the kernel sends no events for this
            await asyncio.sleep(0.02)


async def hold(mirror: RunningMirror, upstream: FakeRegistry, size: int) -> Blob:
    """A new blob of library/demo that the mirror holds."""
    blob = upstream.put_blob("library/demo", size)
    assert (await mirror.blob("demo", blob.digest)).body == blob.content
    await mirror.quiet()
    return blob


async def let_go(mirror: RunningMirror) -> None:
    """Waits until everyone has been served or given up, even where the disk still sleeps over somebody's bytes."""
    async with asyncio.timeout(8):
        await mirror.app.traffic.idle()


async def outcome(mirror: RunningMirror, limit: float = 8.0) -> None:
    """Waits until everyone has been served or given up, and that is on record."""
    async with asyncio.timeout(limit):
        await mirror.app.traffic.recorded()


# Whose bytes.


class SlowDisk(Files):
    """10 ms for each step of 16 KiB."""

    def read(self, fd: int, count: int, offset: int) -> bytes:
        time.sleep(0.01)
        return super().read(fd, min(count, 16 << 10), offset)

    def sendfile(self, out: int, fd: int, offset: int, count: int) -> int:
        time.sleep(0.01)
        return super().sendfile(out, fd, offset, min(count, 16 << 10))


async def test_who_leaves_hurts_nobody_who_stays(
    lines: Lines, start_mirror: StartMirror, upstream: FakeRegistry, wire: Wire
) -> None:
    """50 clients reset their connections in the middle of a step of a slow disk while 50 others, whose descriptors take
    the numbers of theirs, go on: each of those gets its own bytes, all of them, and nobody's descriptors stay open.
    """
    mirror = await start_mirror(files=SlowDisk(), **wire.settings)
    blobs = [await hold(mirror, upstream, size) for size in (400_000, 450_000, 500_000, 550_000)]
    before = descriptors()
    chance = random.Random(1)

    async def leave(number: int) -> None:
        async with await wire.client.connect(mirror.app.port) as client:
            await asyncio.sleep(chance.random() * 0.6)
            await client.ask(f"/v2/demo/blobs/{blobs[number % 4].digest}")
            await client.head()
            await client.read(chance.randrange(1, 60_000))
            client.reset()

    async def stay(number: int) -> None:
        await asyncio.sleep(chance.random() * 0.8)
        blob = blobs[(number + 1) % 4]
        async with await wire.client.connect(mirror.app.port) as client:
            await client.ask(f"/v2/demo/blobs/{blob.digest}")
            head, body = await client.answer()
            assert (head.status, body) == (200, blob.content)
            await client.ask("/v2/")
            assert (await client.answer())[1] == b"{}"

    await asyncio.gather(*(leave(number) for number in range(50)), *(stay(number) for number in range(50)))

    await nothing_left_open(before)
    await outcome(mirror)
    assert mirror.metric("mirror_requests_total", kind="blob", status="499") == 50
    assert mirror.metric("mirror_requests_total", kind="blob", status="200") == 50 + len(blobs)
    assert lines.troubles() == []


async def test_bytes_are_right_wherever_they_are(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """Random ranges and wholes of blobs in a file, on their way through a spool, and passing through memory."""
    chance = random.Random(2)
    held_by = await start_mirror(timeouts=Timeouts())
    too_small = await start_mirror(timeouts=Timeouts(), storage={"max_size": 1 << 20})
    upstream.rate = 40 << 20

    async def check(mirror: RunningMirror, blob: Blob) -> None:
        first, last = sorted((chance.randrange(blob.size), chance.randrange(blob.size)))
        for header, content in (
            (None, blob.content),
            (f"bytes={first}-{last}", blob.read(first, last - first + 1)),
            (f"bytes={first}-", blob.read(first, blob.size)),
            (f"bytes=-{blob.size - first}", blob.read(first, blob.size)),
        ):
            reply = await mirror.blob("demo", blob.digest, **({"Range": header} if header else {}))
            assert reply.status == (206 if header else 200)
            assert reply.body == content

    for mirror in (held_by, too_small):
        blobs = [upstream.put_blob("library/demo", chance.randrange(700_000, 2_500_000)) for _ in range(3)]
        for _ in range(2):  # cold and joining, then as warm as it gets
            await asyncio.gather(*(check(mirror, blob) for blob in blobs for _ in range(3)))
            await mirror.quiet()
    assert held_by.metric("mirror_requests_total", kind="blob", result="hit") >= 30
    assert too_small.metric("mirror_requests_total", kind="blob", result="hit") == 0


async def test_an_answer_goes_on_from_the_file_to_memory(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """The disk fills up in the middle: the first part of one body comes from the spool, the rest through memory."""
    mirror = await start_mirror(files=FullDisk(1_500_000), timeouts=Timeouts())
    blob = upstream.put_blob("library/demo", 4_000_000)

    replies = await mirror.together(4, f"/v2/demo/blobs/{blob.digest}")

    assert all(reply.body == blob.content for reply in replies)


class FailingDisk(Files):
    """Sends `good` bytes of files in small steps, then fails once, in the way of `failure`; after that it works."""

    def __init__(self, failure: OSError | None) -> None:
        self.good: int | None = None
        self._failure = failure

    def sendfile(self, out: int, fd: int, offset: int, count: int) -> int:
        count = self._allowed(count)
        moved = super().sendfile(out, fd, offset, count) if count else 0
        self._took(moved)
        return moved

    def read(self, fd: int, count: int, offset: int) -> bytes:
        data = super().read(fd, self._allowed(count), offset)
        self._took(len(data))
        return data

    def _allowed(self, count: int) -> int:
        if self.good is None:
            return count
        if self.good == 0:
            self.good = None
            if self._failure is not None:
                raise self._failure
            return 0
        return min(count, self.good, 10_000)

    def _took(self, count: int) -> None:
        if self.good is not None:
            self.good -= count


@pytest.mark.parametrize("good", [0, 25_000])
@pytest.mark.parametrize("failure", [OSError(errno.EIO, "planted"), None], ids=["EIO", "shorter than it was"])
async def test_a_failing_file_costs_no_byte(
    start_mirror: StartMirror, upstream: FakeRegistry, wire: Wire, failure: OSError | None, good: int
) -> None:
    """A held blob turns out unreadable, or cut off, while it is being sent: the answer goes on from the upstream at the
    very byte that it had reached.
    """
    files = FailingDisk(failure)
    mirror = await start_mirror(files=files, timeouts=Timeouts(), **wire.settings)
    blob = await hold(mirror, upstream, 300_000)
    files.good = good

    reply = await mirror.blob("demo", blob.digest)

    assert reply.status == 200
    assert reply.body == blob.content
    assert files.good is None


class Gate(Files):
    """Sends nothing until it is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.opened.set()

    def sendfile(self, out: int, fd: int, offset: int, count: int) -> int:
        assert self.opened.wait(10)
        return super().sendfile(out, fd, offset, count)

    def read(self, fd: int, count: int, offset: int) -> bytes:
        assert self.opened.wait(10)
        return super().read(fd, count, offset)


class ColdDisk(Files):
    """Blobs in `cold` are never in the page cache, and reading them waits for `awake`."""

    def __init__(self) -> None:
        self.cold: set[str] = set()
        self.awake = threading.Event()
        self.awake.set()
        self.reads = 0
        self._names: dict[int, str] = {}

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        fd = super().open(path, flags, mode)
        self._names[fd] = path.name
        return fd

    def open_at_hand(self, path: Path) -> int | None:
        return None  # as where nobody can tell

    def resident(self, fd: int, offset: int, count: int) -> bool:
        return self._names[fd] not in self.cold

    def read(self, fd: int, count: int, offset: int) -> bytes:
        if self._names[fd] in self.cold:
            self.reads += 1
            self.awake.wait(10)
        return super().read(fd, count, offset)


async def test_cold_bytes_are_read_ahead(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """By threads that touch no socket; also where they never seem to arrive in memory, every byte comes, once."""
    files = ColdDisk()
    mirror = await start_mirror(files=files)
    blob = await hold(mirror, upstream, 2_500_000)
    files.cold = {blob.digest.hex}

    replies = await mirror.together(3, f"/v2/demo/blobs/{blob.digest}")

    assert all((reply.body, reply.cache) == (blob.content, "hit") for reply in replies)
    assert files.reads == 3 * 3


async def test_a_disk_that_hangs_costs_no_byte(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """More clients than threads wait for a file that is not read: warm blobs leave as ever, and when patience ends the
    others get theirs from the upstream.
    """
    files = ColdDisk()
    mirror = await start_mirror(files=files, timeouts=Timeouts(), wiring={"patience": 2.0})
    warm, cold = await hold(mirror, upstream, 500_000), await hold(mirror, upstream, 600_000)
    files.cold = {cold.digest.hex}
    files.awake.clear()

    waiting = asyncio.gather(*(mirror.blob("demo", cold.digest) for _ in range(40)))
    replies = await mirror.together(20, f"/v2/demo/blobs/{warm.digest}")
    assert not waiting.done()

    assert all((reply.body, reply.cache) == (warm.content, "hit") for reply in replies)
    assert all(reply.body == cold.content for reply in await waiting)
    assert mirror.app.trouble.reasons == ["blobs: slow"]
    files.awake.set()
    assert (await mirror.blob("demo", cold.digest)).cache == "hit"  # slow bytes are as right as others


async def test_a_step_that_hangs_is_given_up(start_mirror: StartMirror, upstream: FakeRegistry, wire: Wire) -> None:
    """Bytes that seemed to be in memory and were not: the socket is lost to them, so the answer ends, short."""
    files = Gate()
    mirror = await start_mirror(files=files, **wire.settings, wiring={"patience": 1.0})
    blob = await hold(mirror, upstream, 200_000)
    before = descriptors()
    files.opened.clear()

    async with await wire.client.connect(mirror.app.port) as client:
        await client.ask(f"/v2/demo/blobs/{blob.digest}")
        head = await client.head()
        assert await client.rest() == b""

    assert (head.status, head.length) == (200, 200_000)
    await let_go(mirror)
    assert mirror.app.trouble.reasons == ["blobs: slow"]
    files.opened.set()
    await nothing_left_open(before)


async def test_no_descriptor_to_spare_ends_the_answer(
    lines: Lines, mirror: RunningMirror, upstream: FakeRegistry, monkeypatch: pytest.MonkeyPatch, wire: Wire
) -> None:
    """A process out of descriptors cuts the answer short, says so in one line, and recovers."""

    def dup(number: int) -> int:
        raise OSError(errno.EMFILE, "planted")

    blob = await hold(mirror, upstream, 200_000)
    with monkeypatch.context() as patch:
        patch.setattr(os, "dup", dup)
        async with await wire.client.connect(mirror.app.port) as client:
            await client.ask(f"/v2/demo/blobs/{blob.digest}")
            assert (await client.head()).length == 200_000
            assert await client.rest() == b""
        await outcome(mirror)

    assert (await mirror.blob("demo", blob.digest)).body == blob.content
    await outcome(mirror)
    assert [line["result"] for line in lines.access()] == ["miss", "error", "hit"]
    assert not any("exception" in line for line in lines.all())


# In time.


async def test_the_headers_of_a_held_blob_wait_for_no_disk(
    start_mirror: StartMirror, upstream: FakeRegistry, wire: Wire
) -> None:
    """A client that waits for headers hears at once that they are there; other requests do not wait either."""
    files = Gate()
    mirror = await start_mirror(files=files, **wire.settings)
    blob = await hold(mirror, upstream, 200_000)
    files.opened.clear()

    async with await wire.client.connect(mirror.app.port) as client:
        await client.ask(f"/v2/demo/blobs/{blob.digest}")
        head = await client.head()
        other = await mirror.blob("demo", blob.digest, method="HEAD")
        files.opened.set()
        body = await client.read(head.length)

    assert (head.status, other.status, body) == (200, 200, blob.content)


async def test_who_leaves_while_the_disk_sleeps_is_let_go(
    lines: Lines, start_mirror: StartMirror, upstream: FakeRegistry, wire: Wire
) -> None:
    """The request ends at once; its descriptors only when the disk has answered."""
    files = Gate()
    mirror = await start_mirror(files=files, **wire.settings)
    blob = await hold(mirror, upstream, 200_000)
    before = descriptors()
    files.opened.clear()
    client = await wire.client.connect(mirror.app.port)
    await client.ask(f"/v2/demo/blobs/{blob.digest}")
    await client.head()

    client.reset()
    await let_go(mirror)

    assert descriptors() > before
    files.opened.set()
    await nothing_left_open(before)
    assert lines.troubles() == []


@pytest.mark.parametrize("kind", ["held blob", "blob in memory", "manifest"])
async def test_who_takes_nothing_is_cut_off(
    lines: Lines, start_mirror: StartMirror, upstream: FakeRegistry, kind: str
) -> None:
    """After `timeouts.client` without a byte taken, whatever it is that is not taken; others notice nothing."""
    mirror = await start_mirror(
        timeouts=Timeouts(client=0.4), storage={"max_size": 1 << 20} if kind == "blob in memory" else None
    )
    small = await hold(mirror, upstream, 10_000)
    if kind == "manifest":
        content = b'{"schemaVersion": 2, "x": "' + b"x" * 4_000_000 + b'"}'
        upstream.put_manifest("library/demo", content, "large")
        path = "/v2/demo/manifests/large"
    else:
        blob = upstream.put_blob("library/demo", 16 << 20)
        path = f"/v2/demo/blobs/{blob.digest}"
    if kind == "held blob":
        await mirror.get(path)
        await mirror.quiet()
    before = descriptors()

    async with await RawClient.connect(mirror.app.port, SMALL) as client:
        for _ in range(3 if kind == "manifest" else 1):  # a manifest alone fits into the kernel's buffers
            await client.ask(path)
        await client.head()
        for _ in range(10):
            assert (await mirror.blob("demo", small.digest)).body == small.content
        await outcome(mirror)
        with pytest.raises(ConnectionResetError):
            await client.rest()

    await nothing_left_open(before)
    assert mirror.metric("mirror_requests_total", status="499") == 1
    assert lines.troubles() == []


async def test_who_takes_little_at_a_time_gets_everything(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """The limit is on taking nothing, not on being slow: several times the limit passes, and every byte comes."""
    mirror = await start_mirror(timeouts=Timeouts(client=0.4), storage={"max_size": 15 << 20})
    held, passing = await hold(mirror, upstream, 7 << 20), upstream.put_blob("library/demo", 8 << 20)

    async def take_slowly(blob: Blob) -> None:
        async with await RawClient.connect(mirror.app.port, 256 << 10) as client:
            await client.ask(f"/v2/demo/blobs/{blob.digest}")
            head = await client.head()
            taken = b""
            for _ in range(12):
                taken += await client.read(64 << 10)
                await asyncio.sleep(0.1)
            taken += await client.read(head.length - len(taken))
            assert Digest.of(taken) == blob.digest

    await asyncio.gather(take_slowly(held), take_slowly(passing))


async def test_patience_may_last_for_years(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """Any duration that the configuration takes is one that connections can be made with."""
    mirror = await start_mirror(timeouts=Timeouts(client=10 * 365 * 86400.0))

    assert (await mirror.get("/v2/")).status == 200


# Cut short.


async def test_a_failure_after_the_headers_is_a_fin(
    lines: Lines, mirror: RunningMirror, upstream: FakeRegistry, wire: Wire
) -> None:
    """Wrong bytes: short of Content-Length, no reset, right as far as they were right."""
    blob = upstream.put_blob("library/demo", 300_000)
    upstream.fault(blob, flip(250_000))

    async with await wire.client.connect(mirror.app.port) as client:
        await client.ask(f"/v2/demo/blobs/{blob.digest}")
        head = await client.head()
        body = await client.rest()

    assert head.length == 300_000
    assert len(body) <= 300_000 - 4096
    assert body[:250_000] == blob.content[: min(len(body), 250_000)]
    await outcome(mirror)
    (line,) = lines.access()
    assert (line["status"], line["result"], line["bytes"]) == (200, "error", len(body))
    assert "cut short" in line["failure"]
    assert not any("exception" in line for line in lines.all())


async def test_what_is_pipelined_behind_a_failure_makes_no_reset(
    mirror: RunningMirror, upstream: FakeRegistry, wire: Wire
) -> None:
    """A close over unread bytes would be a reset, after which containerd gives up, and what a slow client had still to
    take would be lost. None of it is answered either.
    """
    blob = upstream.put_blob("library/demo", 1_000_000)
    upstream.fault(blob, flip(900_000))
    request = b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n"
    push = b"POST /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n" + b"x" * 3_000_000

    async def cut_while_sending(behind: bytes) -> None:
        async with await wire.client.connect(mirror.app.port, SMALL) as client:
            await client.ask(f"/v2/demo/blobs/{blob.digest}")
            await client.send(behind)
            head = await client.head()
            await outcome(mirror)  # it takes nothing until our side is closed
            body = await client.rest()
            assert len(body) < head.length
            assert body[:900_000] == blob.content[: min(len(body), 900_000)]

    await asyncio.gather(*(cut_while_sending(behind) for behind in (b"", request, request * 20_000, push)))


# Coming and going.


async def test_who_closes_after_the_last_byte_has_not_left(
    lines: Lines, mirror: RunningMirror, upstream: FakeRegistry, wire: Wire
) -> None:
    """curl and its like close at once: that is a whole answer, with all of its bytes counted."""
    blob = await hold(mirror, upstream, 50_000)

    async def fetch() -> None:
        async with await wire.client.connect(mirror.app.port) as client:
            await client.ask(f"/v2/demo/blobs/{blob.digest}")
            assert (await client.answer())[1] == blob.content

    for _ in range(10):
        await asyncio.gather(*(fetch() for _ in range(20)))
    await outcome(mirror)

    served = lines.access()[1:]
    assert {(line["status"], line["result"], line["bytes"]) for line in served} == {(200, "hit", 50_000)}
    assert len(served) == 200
    assert mirror.metric("mirror_served_bytes_total", kind="blob", result="hit") == 200 * 50_000


async def test_who_leaves_is_counted_once_with_what_it_got(
    lines: Lines, mirror: RunningMirror, upstream: FakeRegistry, wire: Wire
) -> None:
    """One line with 499 and the bytes that went out; one count; nothing that looks like trouble."""
    blob = await hold(mirror, upstream, 32 << 20)

    async with await wire.client.connect(mirror.app.port, 256 << 10) as client:
        await client.ask(f"/v2/demo/blobs/{blob.digest}")
        await client.head()
        await client.read(20 << 20)
    await outcome(mirror)

    line = lines.access()[-1]
    assert (line["status"], line["result"], line["kind"]) == (499, "hit", "blob")
    assert 20 << 20 <= line["bytes"] < 32 << 20
    assert line["failure"] == "the client left"
    assert mirror.metric("mirror_requests_total", kind="blob", status="499") == 1
    assert mirror.metric("mirror_served_bytes_total", result="hit") == line["bytes"]
    assert lines.troubles() == []


async def test_who_leaves_before_the_answer_is_counted_too(
    lines: Lines, mirror: RunningMirror, upstream: FakeRegistry, wire: Wire
) -> None:
    """While the upstream thinks; what it says then is for the next one."""
    image = upstream.add_image("library/demo", "1")
    rule = upstream.fault(image, stall_at(0))
    async with await wire.client.connect(mirror.app.port) as client:
        await client.ask("/v2/demo/manifests/1")
        await rule.reached.wait()
    await outcome(mirror)
    rule.release()

    assert (await mirror.manifest("demo", "1")).body == image.manifest.content
    await outcome(mirror)
    assert [line["status"] for line in lines.access()] == [499, 200]
    assert lines.troubles() == []


@pytest.mark.parametrize("end", ["FIN", "half", "RST"])
async def test_every_way_of_leaving_is_clean(
    lines: Lines, mirror: RunningMirror, upstream: FakeRegistry, end: str, wire: Wire
) -> None:
    """Closed, reset, or closed in one direction only (which we take for leaving): nothing stays, nothing is logged."""
    blob = await hold(mirror, upstream, 16 << 20)
    before = descriptors()

    for _ in range(10):
        client = await wire.client.connect(mirror.app.port, SMALL)
        await client.ask(f"/v2/demo/blobs/{blob.digest}")
        await client.head()
        if end == "half":
            client.end()
            assert blob.content.startswith(await client.rest())
            client.close()
        else:
            client.reset() if end == "RST" else client.close()

    await outcome(mirror)
    await nothing_left_open(before)
    assert mirror.metric("mirror_requests_total", kind="blob", status="499") == 10
    assert lines.troubles() == []


async def test_who_is_served_while_we_drain_is_told_to_go(
    mirror: RunningMirror, upstream: FakeRegistry, wire: Wire
) -> None:
    """Connection: close on everything, and then a FIN after the last byte."""
    blob = await hold(mirror, upstream, 300_000)
    mirror.app.traffic.draining = True

    for path, content in (("/v2/", b"{}"), (f"/v2/demo/blobs/{blob.digest}", blob.content), ("/nothing", None)):
        async with await wire.client.connect(mirror.app.port) as client:
            await client.ask(path)
            head = await client.head()
            assert head.headers["Connection"] == "close"
            assert await client.rest() == content or content is None


async def test_what_is_asked_behind_a_blob_is_answered_behind_it(
    mirror: RunningMirror, upstream: FakeRegistry, wire: Wire
) -> None:
    """Pipelined requests wait, however many bytes they are, until the blob before them has gone out."""
    blob = await hold(mirror, upstream, 12 << 20)
    request = b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX-Padding: %s\r\n\r\n" % (b"x" * 30_000)

    async with await wire.client.connect(mirror.app.port) as client:
        await client.ask(f"/v2/demo/blobs/{blob.digest}")
        await client.head()
        sending = asyncio.create_task(client.send(request * 40))
        first = await client.read(1 << 20)
        assert first + await client.read(blob.size - len(first)) == blob.content
        for _ in range(40):
            assert (await client.answer())[1] == b"{}"
        await sending


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request, and what its answer has to be."""

    method: str
    path: str
    status: int
    content: bytes
    headers: str = ""


async def test_any_mix_on_one_connection_is_answered_in_order(
    start_mirror: StartMirror, upstream: FakeRegistry, wire: Wire
) -> None:
    """Manifests that are ready, others, blobs and parts of them, in one stream that comes in pieces of any size, to
    clients who take it at any pace or leave: each answer is that of its request, and nothing stays open.
    """
    mirror = await start_mirror(timeouts=short_timeouts(client=30, first_byte=20, stale_after=10), **wire.settings)
    image = upstream.add_image("library/demo", "1", layers=[5000, 70_000, 1_500_000])
    upstream.put_manifest("library/demo", b'{"schemaVersion":2,"x":"' + b"y" * 400_000 + b'"}', "large")
    large = (await mirror.manifest("demo", "large")).body
    for reference in ("1", image.digest):
        await mirror.manifest("demo", reference)
    for blob in image.layers:
        await mirror.blob("demo", blob.digest)
    await mirror.quiet()
    before = descriptors()
    chance = random.Random(7)

    def choose() -> Wanted:
        blob = chance.choice(image.layers)
        first = chance.randrange(blob.size)
        last = chance.randrange(first, blob.size)
        method = chance.choice(["GET", "GET", "HEAD"])
        return chance.choice(
            [
                Wanted(method, "/v2/demo/manifests/1", 200, image.manifest.content),
                Wanted(method, f"/v2/demo/manifests/{image.digest}", 200, image.manifest.content),
                Wanted(method, "/v2/demo/manifests/large", 200, large),
                Wanted(method, f"/v2/demo/blobs/{blob.digest}", 200, blob.content),
                Wanted(
                    "GET",
                    f"/v2/demo/blobs/{blob.digest}",
                    206,
                    blob.content[first : last + 1],
                    f"Range: bytes={first}-{last}\r\n",
                ),
                Wanted(method, "/v2/", 200, b"{}"),
            ]
        )

    async def come(number: int) -> None:
        wanted = [choose() for _ in range(15)]
        left = b"".join(
            f"{one.method} {one.path} HTTP/1.1\r\nHost: x\r\nX-Request-Id: {number}-{at}\r\n{one.headers}\r\n".encode()
            for at, one in enumerate(wanted)
        )
        leaves_at = chance.randrange(30)

        async def ask() -> None:
            nonlocal left
            while left:
                count = chance.choice([1, 30, 300, 9000])
                await client.send(left[:count])
                left = left[count:]
                await asyncio.sleep(0)

        async with await wire.client.connect(mirror.app.port, chance.choice([None, SMALL])) as client:
            asking = asyncio.create_task(ask())
            for at, one in enumerate(wanted):
                if at == leaves_at:
                    asking.cancel()
                    await asyncio.wait([asking])
                    client.reset()
                    return
                head = await client.head()
                assert (head.status, head.headers["X-Request-Id"]) == (one.status, f"{number}-{at}")
                assert head.length == len(one.content)
                assert one.method == "HEAD" or await client.read(head.length) == one.content
            await asking

    await asyncio.gather(*(come(number) for number in range(12)))

    assert mirror.app.traffic.ready is not None
    assert mirror.app.traffic.ready.given > 0
    await outcome(mirror, 20)
    await nothing_left_open(before)

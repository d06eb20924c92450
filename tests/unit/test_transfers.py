"""Files on their way to sockets: no client and no disk keeps the threads from the others."""

from __future__ import annotations

import asyncio
import errno
import functools
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from mirror.api.transfers import SEALED, Cold, FileTransfer, PlainTransfer, SecuredTransfer, Transfers
from mirror.store.files import Files, SharedFile

SIZE = 10_000_000
"""More than a turn, and than sockets hold."""


class Pair:
    """A connection: its client's end, and ours."""

    def __init__(self, stack: ExitStack) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.client = stack.enter_context(socket.create_connection(server.getsockname()))
            self.ours = stack.enter_context(server.accept()[0])
        self.client.setblocking(False)
        self.ours.setblocking(False)

    async def read(self, count: int) -> bytes:
        """So many bytes of what arrives; fewer where it ends."""
        data = bytearray()
        while len(data) < count:
            await asyncio.sleep(0)
            piece = await asyncio.get_running_loop().sock_recv(self.client, count - len(data))
            if not piece:
                break
            data += piece
        return bytes(data)


def descriptors() -> int:
    """How many this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What is open at the end is closed."""
    with ExitStack() as opened:
        yield opened


@pytest.fixture
async def one_thread() -> AsyncIterator[Transfers]:
    """Transfers with a single thread."""
    transfers = Transfers(1)
    yield transfers
    transfers.close()


@pytest.fixture
def content() -> bytes:
    """What the file holds."""
    return os.urandom(1000) * (SIZE // 1000)


def share(path: Path, content: bytes, stack: ExitStack, files: Files | None = None) -> SharedFile:
    """A file with this content."""
    path.write_bytes(content)
    fd = os.open(path, os.O_RDONLY)
    stack.callback(os.close, fd)
    return SharedFile(fd, len(content), files or Files(), lambda close, number: None)


def transfer(pair: Pair, file: SharedFile, *, cold: bool = True) -> FileTransfer:
    """All of the file to the pair's client."""
    return PlainTransfer(pair.ours.fileno(), file, 0, file.size, cold=cold)


async def test_clients_who_take_nothing_keep_no_thread(
    one_thread: Transfers, tmp_path: Path, content: bytes, stack: ExitStack
) -> None:
    """With one thread and 9 clients who do not read, the tenth gets all of its bytes, and then each of the others."""
    file = share(tmp_path / "blob", content, stack)
    pairs = [Pair(stack) for _ in range(10)]
    sending = [one_thread.begin(transfer(pair, file)) for pair in pairs]

    for pair, sent in reversed(list(zip(pairs, sending, strict=True))):
        assert await pair.read(SIZE) == content
        assert await sent == SIZE


async def test_a_call_that_hangs_keeps_one_thread(tmp_path: Path, content: bytes, stack: ExitStack) -> None:
    """Others are sent meanwhile, and who waits can see for how long it has been at it."""
    opened = threading.Event()

    class Gate(Files):
        def sendfile(self, out: int, fd: int, offset: int, count: int) -> int:
            opened.wait(10)
            return super().sendfile(out, fd, offset, count)

    transfers = Transfers(2)
    hanging, other = Pair(stack), Pair(stack)
    stuck = transfer(hanging, share(tmp_path / "slow", content, stack, Gate()))
    waiting = transfers.begin(stuck)
    sent = transfers.begin(transfer(other, share(tmp_path / "blob", content, stack)))

    assert await other.read(SIZE) == content
    assert await sent == SIZE
    assert stuck.stuck_for() > 0
    opened.set()
    assert await hanging.read(SIZE) == content
    assert await waiting == SIZE
    assert stuck.stuck_for() == 0
    transfers.close()


async def test_several_clients_are_sent_to_at_the_same_time(tmp_path: Path, content: bytes, stack: ExitStack) -> None:
    """Three threads are inside the kernel at once while the loop turns: that many cores can be at it."""
    together = threading.Barrier(3)

    class Meeting(Files):
        def sendfile(self, out: int, fd: int, offset: int, count: int) -> int:
            if not offset:
                together.wait(10)
            return super().sendfile(out, fd, offset, count)

    transfers = Transfers(3)
    file = share(tmp_path / "blob", content, stack, Meeting())
    pairs = [Pair(stack) for _ in range(3)]
    sending = [transfers.begin(transfer(pair, file)) for pair in pairs]
    for pair, sent in zip(pairs, sending, strict=True):
        assert await pair.read(SIZE) == content
        assert await sent == SIZE
    assert not together.broken
    transfers.close()


async def test_bytes_on_the_disk_are_not_waited_for(
    one_thread: Transfers, tmp_path: Path, content: bytes, stack: ExitStack
) -> None:
    """A transfer ends before what is not in memory; where that is the first byte, it says so."""
    warm = 3 << 20

    class Cooling(Files):
        def resident(self, fd: int, offset: int, count: int) -> bool:
            return offset + count <= warm

    file = share(tmp_path / "blob", content, stack, Cooling())
    pair = Pair(stack)

    sent = one_thread.begin(transfer(pair, file))
    assert await pair.read(warm) == content[:warm]
    assert await sent == warm
    with pytest.raises(Cold):
        await one_thread.begin(PlainTransfer(pair.ours.fileno(), file, warm, 1000, cold=True))
    sent = one_thread.begin(PlainTransfer(pair.ours.fileno(), file, warm, 1000, cold=False))
    assert await pair.read(1000) == content[warm : warm + 1000]
    assert await sent == 1000


async def test_who_has_left_is_an_error_of_its_own(
    one_thread: Transfers, tmp_path: Path, content: bytes, stack: ExitStack
) -> None:
    """Before the first byte it is raised; after some, the transfer ends with those that went out."""
    file = share(tmp_path / "blob", content, stack)
    gone, leaving = Pair(stack), Pair(stack)
    gone.ours.shutdown(socket.SHUT_RDWR)

    with pytest.raises(OSError, match="Broken pipe") as raised:
        await one_thread.begin(transfer(gone, file))
    assert raised.value.errno == errno.EPIPE

    sent = one_thread.begin(transfer(leaving, file))
    await leaving.read(1)
    leaving.client.close()
    assert 0 < await sent < SIZE


async def test_the_end_breaks_off_what_is_under_way(tmp_path: Path, content: bytes, stack: ExitStack) -> None:
    """And leaves no thread and no descriptor."""
    threads, before = threading.active_count(), descriptors()
    with ExitStack() as mine:
        transfers = Transfers(3)
        pair = Pair(mine)
        sent = transfers.begin(transfer(pair, share(tmp_path / "blob", content, mine)))
        await pair.read(1)

        transfers.close()

        assert await sent < SIZE
        with pytest.raises(RuntimeError):
            transfers.begin(transfer(pair, share(tmp_path / "blob", content, mine)))
    async with asyncio.timeout(5):
        while threading.active_count() > threads:  # noqa: ASYNC110 - threads tell nobody of their end
            await asyncio.sleep(0.01)
    assert descriptors() <= before


async def test_what_is_encrypted_goes_out_whole(
    one_thread: Transfers, tmp_path: Path, content: bytes, stack: ExitStack
) -> None:
    """The client gets what `seal` makes of the bytes, in order, and the bytes that it stands for are counted."""

    def seal(data: bytes) -> bytes:
        return b"<" + data.translate(turned) + b">"

    turned = bytes(range(255, -1, -1))
    pair = Pair(stack)
    sent = one_thread.begin(
        SecuredTransfer(seal, pair.ours.fileno(), share(tmp_path / "blob", content, stack), 10, SIZE - 10, cold=True)
    )

    left = content[10:]
    while left:
        piece = seal(left[:SEALED])
        assert await pair.read(len(piece)) == piece
        left = left[SEALED:]
    assert await sent == SIZE - 10


async def test_many_clients_who_take_nothing_keep_little_each(
    one_thread: Transfers, tmp_path: Path, content: bytes, stack: ExitStack
) -> None:
    """What is encrypted for them and waits is bounded in all, and nobody misses a byte for that."""
    file = share(tmp_path / "blob", content, stack)
    pairs = [Pair(stack) for _ in range(200)]
    asked = [0] * len(pairs)
    """Bytes that were encrypted last for each."""

    def seal(number: int, data: bytes) -> bytes:
        asked[number] = len(data)
        return data

    sending = []
    for number, pair in enumerate(pairs):
        of_this = functools.partial(seal, number)
        sending.append(one_thread.begin(SecuredTransfer(of_this, pair.ours.fileno(), file, 0, file.size, cold=True)))
    while not all(asked):  # noqa: ASYNC110 - the thread tells nobody that a socket is full
        await asyncio.sleep(0.01)

    # The first ones may have been as many as there were when their sockets were full.
    assert sum(asked) < 0.75 * SEALED * len(pairs)
    assert await pairs[0].read(SIZE) == content
    assert await sending[0] == SIZE
    for pair in pairs[1:]:
        pair.client.close()
    await asyncio.wait(sending[1:])


async def test_how_long_a_call_takes_is_told_of_that_call_alone(
    one_thread: Transfers, tmp_path: Path, content: bytes, stack: ExitStack
) -> None:
    """A turn is of several, and a disk that takes its time over each of them does answer."""
    ended = [time.monotonic()]
    told: list[bool] = []

    class Calls(Files):
        def sendfile(self, out: int, fd: int, offset: int, count: int) -> int:
            told.append(under_way.stuck_for() <= time.monotonic() - ended[-1])
            time.sleep(0.01)
            try:
                return super().sendfile(out, fd, offset, count)
            finally:
                ended.append(time.monotonic())

    pair = Pair(stack)
    under_way = transfer(pair, share(tmp_path / "blob", content, stack, Calls()))
    sent = one_thread.begin(under_way)

    assert await pair.read(SIZE) == content
    assert await sent == SIZE
    assert all(told)

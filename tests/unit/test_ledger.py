"""What comes and goes is counted exactly, by however many processes; none of them can hold up the rest."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirror.store.blobs import BlobStore
from mirror.store.ledger import DIRECTORIES, Ledger, share
from mirror.store.part import Part
from mirror.store.victims import Oldest
from tests.faulty import FaultyFiles
from tests.storing import bytes_in, content, put

ONE, OTHER = DIRECTORIES[7], DIRECTORIES[300]
LONG = 30.0

HOLDING = """
import sys, time
from mirror.store.ledger import DIRECTORIES, Ledger
with Ledger(int(sys.argv[1]), 1).turn(DIRECTORIES[7]):
    print("mine", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def shared() -> Iterator[int]:
    """Memory for three writers."""
    fd = share(3)
    yield fd
    os.close(fd)


def test_all_rows_count(shared: int) -> None:
    """What one writer counts every other one sees, also when the first is gone; directories are told apart."""
    first, second = Ledger(shared, 0), Ledger(shared, 2)
    first.count(ONE, 10)
    second.count(ONE, -4)
    second.count(OTHER, 1 << 50)
    first.close()

    third = Ledger(shared, 0)
    third.count(ONE, 1)

    for ledger in (second, third):
        assert (ledger.balance(ONE), ledger.balance(OTHER), ledger.net) == (7, 1 << 50, 7 + (1 << 50))
        ledger.close()
        ledger.close()


def test_who_is_alone_shares_with_nobody() -> None:
    """Without shared memory each has its own."""
    one, other = Ledger(), Ledger()
    one.count(ONE, 5)
    assert (one.net, one.balance(ONE), other.net) == (5, 5, 0)


def test_a_turn_is_exclusive(shared: int) -> None:
    """Of two writers one waits for the other in the same directory, in no other one."""
    first, second = Ledger(shared, 0), Ledger(shared, 1)
    order: list[str] = []

    def change() -> None:
        with second.turn(ONE):
            order.append("second")

    with first.turn(ONE):
        with second.turn(OTHER):
            waiting = threading.Thread(target=change)
            waiting.start()
        waiting.join(0.05)
        order.append("first")
    waiting.join(LONG)

    assert order == ["first", "second"]
    first.close()
    second.close()


def test_a_turn_ends_with_its_process(shared: int) -> None:
    """Who is killed in its turn, by a descriptor that it has inherited, keeps nobody from theirs."""
    there = subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(shared)], pass_fds=[shared], stdout=subprocess.PIPE, cwd=Path.cwd()
    )
    assert there.stdout is not None
    assert there.stdout.readline() == b"mine\n"
    ledger, got = Ledger(shared, 0), threading.Event()

    def change() -> None:
        with ledger.turn(ONE):
            got.set()

    waiting = threading.Thread(target=change)
    waiting.start()
    assert not got.wait(0.05)
    there.send_signal(signal.SIGKILL)
    assert got.wait(LONG)
    waiting.join()
    there.wait()
    there.stdout.close()
    assert ledger.died(1)
    assert not ledger.died(1)
    ledger.close()


def test_who_dies_between_turns_leaves_its_row_in_order(shared: int) -> None:
    """Its balances are what it did, and their sum is right, even if it died before it had added it up."""
    ledger, dead = Ledger(shared, 0), Ledger(shared, 1)
    with dead.turn(ONE):
        dead.count(ONE, 70)
    with pytest.raises(OSError, match="full"), dead.turn(OTHER):
        raise OSError("full")
    assert not ledger.died(1)

    dead._numbers[dead._ours + DIRECTORIES.index(ONE)] += 5  # its last act
    assert (ledger.balance(ONE), ledger.net) == (75, 70)
    assert not ledger.died(1)
    assert (ledger.balance(ONE), ledger.net) == (75, 75)
    for each in (ledger, dead):
        each.close()


async def test_a_survey_counts_what_others_bring_and_remove(shared: int, tmp_path: Path) -> None:
    """Base and net are what is on the disk, whoever wrote it, and whenever the survey was made."""
    keeper, worker = (BlobStore(tmp_path, FaultyFiles(), part=Part(Ledger(shared, writer))) for writer in range(2))
    for store in (keeper, worker):
        await store.open()
    first = await put(worker, content(1))
    await put(keeper, content(2))
    half, rest = DIRECTORIES[:128], DIRECTORIES[128:]

    _, base = await keeper.survey(half, Oldest(0))
    for number in range(3, 40):
        await put(worker, content(number, 10 * number))
    await worker.remove(first)
    base += (await keeper.survey(rest, Oldest(0)))[1]
    await put(worker, content(99))

    assert base + keeper.net == base + worker.net == bytes_in(tmp_path / "blobs")
    for store in (worker, keeper):
        await store.close()

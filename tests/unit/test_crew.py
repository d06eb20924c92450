"""Workers of any program: begun, begun again, and ended, whatever they do."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable

import pytest
import structlog

from mirror.aggregate import Totals
from mirror.channel import Channel
from mirror.crew import Crew, Tools
from mirror.metrics import Metrics
from tests.storing import until

BEGIN = """
import json, os, signal, socket, sys, time
fd = int(sys.argv[1])
os.lseek(fd, 0, 0)
handover = json.loads(os.read(fd, 1 << 20))
channel = socket.socket(fileno=handover["channel"])
def tell(name, text):
    body = bytes([0x94, 1, 0, 0xa0 + len(name)]) + name.encode() + bytes([0xa0 + len(text)]) + text.encode()
    channel.sendall(len(body).to_bytes(4, "little") + body)
"""
"""A program that speaks as a worker does."""

PATIENCE = 30.0
Hire = Callable[[str], Crew]
admitted: list[tuple[int, Channel]] = []


@pytest.fixture
async def hire() -> AsyncIterator[Hire]:
    """Makes a crew of one that runs some code; it is ended in the end."""
    crews: list[Crew] = []
    admitted.clear()
    metrics = Metrics()
    shared = os.memfd_create("test")
    asked, listening = socket.socket(), socket.socket()

    def make(code: str) -> Crew:
        tools = Tools(["\0x"], [asked], [listening], shared, lambda: shared, shared)
        crews.append(
            Crew(
                tools,
                "settings",
                Totals(metrics.registry),
                metrics,
                admit=lambda slot, channel: admitted.append((slot, channel)),
                program=(sys.executable, "-c", BEGIN + code),
            )
        )
        return crews[-1]

    yield make
    for crew in crews:
        await crew.stop()
    asked.close()
    listening.close()
    os.close(shared)


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for a worker that does not end."""
    monkeypatch.setattr("mirror.crew._EXTRA_SECONDS", 0.5)


async def test_a_start_fails_with_the_reason_of_the_worker(hire: Hire) -> None:
    """In its own words where it has any, else by how it ended."""
    with pytest.raises(ChildProcessError, match=r"^the disk is gone$"):
        await hire('tell("failed", "the disk is gone"); sys.exit(1)').start()
    with pytest.raises(ChildProcessError, match=r"^worker 0 does not start: exit status 3$"):
        await hire("sys.exit(3)").start()
    with pytest.raises(ChildProcessError, match=r"^worker 0 does not start: signal SIGKILL$"):
        await hire("os.kill(os.getpid(), 9)").start()


async def test_a_worker_is_given_what_it_needs_and_nothing_else(hire: Hire) -> None:
    """It finds its descriptors open, no others, and settings that are not in its environment."""
    check = """
there = {int(name) for name in os.listdir("/proc/self/fd")}
given = {0, 1, 2, fd, *handover["listening"]}
given |= {handover[key] for key in ("asked", "channel", "shared", "lock", "turns")}
extra = there - given
wrong = handover["settings"] != "settings" or len(extra) > 1 or "settings" in os.environ.values()  # one: the directory
if wrong: sys.exit(4)
tell("serving", "")
time.sleep(60)
"""
    crew = hire(check)
    await crew.start()
    assert crew.serving == 1
    assert [slot for slot, _ in admitted] == [0]


async def test_a_signal_to_all_ends_no_worker_that_is_too_young_to_ignore_it(hire: Hire) -> None:
    """It waits until the worker lets it through; nothing waits in the supervisor afterwards."""
    code = """
os.kill(os.getpid(), signal.SIGTERM)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
tell("serving", "")
time.sleep(60)
"""
    crew = hire(code)
    await crew.start()
    assert crew.serving == 1
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


async def test_a_worker_that_dies_again_and_again_is_begun_again(hire: Hire) -> None:
    """Each one has a channel of its own, by which what it shares is shared again."""
    crew = hire('tell("serving", ""); time.sleep(0.05); sys.exit(1)')
    await crew.start()
    await until(lambda: len(admitted) >= 4, PATIENCE)
    assert {slot for slot, _ in admitted} == {0}
    assert len({id(channel) for _, channel in admitted}) == len(admitted)


def test_it_is_begun_again_later_each_time_until_it_has_lived() -> None:
    """0.1 s, doubled to half a minute; a worker that has lived for a minute is begun again as if for the first time."""
    pause, pauses = 0.0, []
    for _ in range(12):
        pause = Crew.after(pause, 0.5)
        pauses.append(pause)
    assert pauses[:4] == [0.1, 0.2, 0.4, 0.8]
    assert pauses[-1] == 30.0
    assert Crew.after(pause, 60.0) == 0.1


async def test_a_worker_that_hangs_is_ended(hire: Hire, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that serves and is not heard for too long hangs: another one takes its place."""
    monkeypatch.setattr("mirror.crew._ROUND_SECONDS", 0.02)
    crew = hire('tell("serving", ""); signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)')
    await crew.start()
    await until(lambda: len(admitted) >= 2, PATIENCE)


async def test_a_worker_that_does_not_end_is_ended(hire: Hire) -> None:
    """A stop is bounded, whatever a worker does."""
    crew = hire('tell("serving", ""); time.sleep(1000)')
    await crew.start()
    async with asyncio.timeout(PATIENCE):
        await crew.stop(grace=0.1)
    assert crew.serving == 0


async def test_a_worker_that_dies_while_it_stops_is_named(hire: Hire) -> None:
    """What its clients have lost must have left a trace; one that ends as it was told to leaves none."""
    well, killed = (
        hire('tell("serving", ""); channel.recv(100); ' + end) for end in ("sys.exit(0)", "os.kill(os.getpid(), 9)")
    )
    with structlog.testing.capture_logs() as lines:
        for crew in (well, killed):
            await crew.start()
            await crew.stop(grace=PATIENCE)
    told = [line["end"] for line in lines if line["event"] == "a worker died while it stopped"]
    assert told == ["signal SIGKILL"]

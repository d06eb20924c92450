"""The worker processes: one in each slot, begun again when it dies, told what there is to do, and listened to."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import sysconfig
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

import mirror
from mirror.aggregate import Account, Totals
from mirror.channel import Channel, ChannelClosed, Refused
from mirror.handover import Handover
from mirror.metrics import Metrics

_SHORTEST_BREAK = 0.1
_LONGEST_BREAK = 30.0
_LONG_LIFE = 60.0
"""Seconds after which a death has nothing to do with the one before."""
_ROUND_SECONDS = 1.0
_SILENT_ROUNDS = 20
"""Rounds of ours in which a worker that serves is not heard, until it is ended: its loop hangs, and with it whoever it
serves. Counted, not measured: where the whole machine stood still nobody is to blame. No healthy one was ever silent
for as long, however busy the machine; and meanwhile the others do without it (`timeouts.peer`)."""
_SILENT_START_ROUNDS = 120
_REPORT_SECONDS = 0.25
"""That a scrape waits for the numbers of a worker; else those of a second ago are used."""
_EXTRA_SECONDS = 20.0
"""For a worker to write out what it has when its grace is over."""
WORKERS_IGNORE = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""What is sent to the whole group is for the supervisor to hear, and to tell them."""
_WELL = "exit status 0"
_PROGRAM = (sys.executable, "-P", "-m", "mirror", "worker")
"""Gets the number of its `Handover`. -P: whatever stands in the working directory is nothing that we import."""
_log = structlog.get_logger()


@dataclass(frozen=True)
class Tools:
    """What all workers get: `sockets` by slot, the registry port's, and descriptors as in `Handover`."""

    peers: list[str]
    sockets: list[socket.socket]
    listening: list[socket.socket]
    shared: int
    lock: Callable[[], int]
    turns: int


class Worker:
    """One process, from its start to its end."""

    def __init__(self, slot: int, process: asyncio.subprocess.Process, channel: Channel, account: Account) -> None:
        self.slot = slot
        self.process = process
        self.channel = channel
        self.failure: str | None = None
        """Why it cannot serve, in its own words."""
        self.serving = asyncio.Event()
        self.silent = 0
        """Rounds since it was last heard."""
        self._account = account
        channel.on("serving", lambda _: self.serving.set())
        channel.on("failed", self._hear_failure)
        channel.on("report", self._hear_report)

    async def over(self) -> str:
        """Waits for its end, and until all that it said is heard; how it ended, in words."""
        code = await self.process.wait()
        try:
            async with asyncio.timeout(1):
                await self.channel.closed.wait()
        except TimeoutError:
            pass  # somebody else has its end of the channel
        self.serving.clear()
        await self.channel.close()
        self._account.close()
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"

    def listen(self) -> None:
        """A round has passed; a process that was not heard for too many of them is ended."""
        self.silent += 1
        if self.silent == (_SILENT_ROUNDS if self.serving.is_set() else _SILENT_START_ROUNDS):
            _log.error("a worker hangs; it is ended", slot=self.slot, pid=self.process.pid)
            self.kill()

    def kill(self) -> None:
        """Ends it wherever it is."""
        try:
            self.process.kill()
        except ProcessLookupError:
            pass

    async def report(self) -> None:
        """Has it say what it has counted; what it says is heard as whatever it tells by itself."""
        try:
            await self.channel.call("report", None, _REPORT_SECONDS)
        except (TimeoutError, ChannelClosed, Refused):
            pass

    def _hear_failure(self, reason: Any) -> None:
        self.failure = str(reason)

    def _hear_report(self, said: Any) -> None:
        self.silent = 0
        self._account.hear(said)


class Crew:
    """Workers in `slots` slots. `admit` is told of each one's channel; `settings` (packed) is what they begin with."""

    def __init__(
        self,
        tools: Tools,
        settings: str,
        totals: Totals,
        metrics: Metrics,
        *,
        admit: Callable[[int, Channel], None],
        program: Sequence[str] = _PROGRAM,
    ) -> None:
        self.slots = len(tools.sockets)
        self._tools = tools
        self._settings = settings
        self._totals = totals
        self._metrics = metrics
        self._admit = admit
        self._program = program
        self._workers: dict[int, Worker] = {}
        self._keeping: list[asyncio.Task[None]] = []
        self._listening: asyncio.Task[None] | None = None
        self._leaving = False
        self._beginning = asyncio.Lock()

    @property
    def serving(self) -> int:
        """How many workers serve."""
        return sum(worker.serving.is_set() for worker in self._workers.values())

    async def start(self) -> None:
        """Begins all workers; returns when all serve. Raises ChildProcessError with the reason where one cannot."""
        self._listening = asyncio.create_task(self._listen(), name="listen to workers")
        for slot in range(self.slots):
            await self._begin(slot)
        await asyncio.gather(*(self._first(worker) for worker in list(self._workers.values())))
        self._keeping = [asyncio.create_task(self._keep(slot), name=f"worker {slot}") for slot in range(self.slots)]

    def tell(self, name: str, payload: Any = None) -> None:
        """Tells all workers."""
        for worker in self._workers.values():
            worker.channel.tell(name, payload)

    def reload(self, settings: str) -> None:
        """Has all workers, and those to come, serve by other settings (packed)."""
        self._settings = settings
        self.tell("settings", settings)

    async def report(self) -> None:
        """Has all workers say what they have counted; waits a moment for it."""
        await asyncio.gather(*(worker.report() for worker in self._workers.values()))

    async def stop(self, *, drain: float = 0.0, grace: float = 0.0) -> None:
        """Has all workers stop as `Mirror.stop` does, and waits for their ends. Idempotent."""
        self._leaving = True
        for task in self._keeping:
            task.cancel()
        await asyncio.gather(*self._keeping, return_exceptions=True)
        self.tell("stop", [drain, grace])
        workers, self._workers = dict(self._workers), {}
        ends = [asyncio.create_task(self._see_off(worker)) for worker in workers.values()]
        if ends:
            self._workers = workers  # they still report
            _, late = await asyncio.wait(ends, timeout=drain + grace + _EXTRA_SECONDS)
            if late:
                _log.error("some workers did not end in time", workers=len(late))
                for worker in workers.values():
                    worker.kill()
                await asyncio.wait(late)
            self._workers = {}
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)

    async def _see_off(self, worker: Worker) -> None:
        """Waits for the end of a worker that was told to stop, and says so where it was another one."""
        end = await worker.over()
        if end != _WELL:
            _log.error("a worker died while it stopped", slot=worker.slot, pid=worker.process.pid, end=end)

    # One slot.

    async def _begin(self, slot: int) -> Worker:
        """Raises OSError where no process can be begun."""
        tools = self._tools
        ours, theirs = socket.socketpair()
        handover = Handover(
            slot=slot,
            peers=tools.peers,
            listening=[one.fileno() for one in tools.listening],
            asked=tools.sockets[slot].fileno(),
            channel=theirs.fileno(),
            shared=tools.shared,
            lock=tools.lock(),
            turns=tools.turns,
            settings=self._settings,
        )
        fd = handover.put_down()
        try:
            async with self._beginning:  # one after the other: they all change what this process holds back
                with _held_back(WORKERS_IGNORE):
                    process = await asyncio.create_subprocess_exec(
                        *self._program,
                        str(fd),
                        stdin=asyncio.subprocess.DEVNULL,
                        env=_environment(),
                        pass_fds=(fd, *handover.descriptors),
                    )
        except BaseException:
            ours.close()
            raise
        finally:
            os.close(fd)
            theirs.close()
        channel = Channel(ours)
        worker = self._workers[slot] = Worker(slot, process, channel, self._totals.open())
        self._admit(slot, channel)
        _log.info("a worker begins", slot=slot, pid=process.pid)
        return worker

    async def _first(self, worker: Worker) -> None:
        """Waits until it serves. Raises ChildProcessError."""
        serving, over = asyncio.ensure_future(worker.serving.wait()), asyncio.ensure_future(worker.process.wait())
        try:
            await asyncio.wait((serving, over), return_when=asyncio.FIRST_COMPLETED)
            if not worker.serving.is_set():
                end = await worker.over()
                raise ChildProcessError(worker.failure or f"worker {worker.slot} does not start: {end}")
        finally:
            serving.cancel()
            over.cancel()
            await asyncio.gather(serving, over, return_exceptions=True)

    async def _keep(self, slot: int) -> None:
        """Begins a worker whenever there is none, for ever."""
        began, pause = time.monotonic(), 0.0
        while True:
            worker = self._workers[slot]
            end = await worker.over()
            pause = self.after(pause, time.monotonic() - began)
            _log.error(
                "a worker died; another one takes its place",
                slot=slot,
                pid=worker.process.pid,
                end=end,
                reason=worker.failure,
                after=pause,
            )
            await asyncio.sleep(pause)
            began = time.monotonic()
            while not await self._begun(slot):
                pause = self.after(pause, 0)
                await asyncio.sleep(pause)
            self._metrics.worker_restarts.inc()

    async def _begun(self, slot: int) -> bool:
        # Shielded: a process that is begun while we are told to stop is one that has to be told, too.
        beginning = asyncio.ensure_future(self._begin(slot))
        try:
            await asyncio.shield(beginning)
        except Exception as error:  # whatever it is: a slot that is given up would stay empty for good
            _log.error("no process can be begun", slot=slot, error=f"{type(error).__name__}: {error}")
            return False
        except asyncio.CancelledError:
            await asyncio.gather(beginning, return_exceptions=True)
            raise
        return True

    @staticmethod
    def after(pause: float, lived: float) -> float:
        """Seconds to wait before another try, after `pause` before the last one."""
        return _SHORTEST_BREAK if lived >= _LONG_LIFE or not pause else min(_LONGEST_BREAK, 2 * pause)

    async def _listen(self) -> None:
        while True:
            await asyncio.sleep(_ROUND_SECONDS)
            for worker in self._workers.values():
                worker.listen()


@contextmanager
def _held_back(numbers: Collection[int]) -> Iterator[None]:
    """Signals wait inside, and in a process that is begun there, until it lets them through: one that is sent to the
    whole group must not end those that are too young to ignore it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _environment() -> dict[str, str]:
    """Ours, with the way to ourselves where we are not installed."""
    ours = Path(mirror.__file__).parents[1]
    if str(ours) in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        return dict(os.environ)
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(ours), os.environ.get("PYTHONPATH"))))}

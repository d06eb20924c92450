"""Programs in the background: started with a log, awaited until they serve, stopped by their process id."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

_START = 10.0  # seconds that a program may take to serve
_STOP = 10.0  # seconds that it may take to end
_TAIL = 4000  # bytes of a log that are worth showing

_given: set[int] = set()  # by free_port


class Process:
    """A running program; what it prints is in `log`, which it adds to."""

    def __init__(self, argv: Sequence[str | Path], *, log: Path, env: Mapping[str, str]) -> None:
        self.log = log
        with log.open("ab") as out:
            # A session of its own, so that Ctrl-C reaches pytest alone, which then stops everything in order.
            self._running = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=env, start_new_session=True
            )

    @property
    def pid(self) -> int:
        return self._running.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._running.poll()

    def wait_until(self, ready: Callable[[], bool], *, seconds: float = _START) -> None:
        """Returns when `ready` says so. Raises, with the log's end, if the program ends before or time runs out."""
        came = eventually(lambda: self._running.poll() is not None or ready(), seconds=seconds)
        if (code := self._running.poll()) is not None:
            raise RuntimeError(f"exited {code} at its start:\n{tail(self.log)}")
        if not came:
            self.stop()
            raise TimeoutError(f"not ready in {seconds:g} s:\n{tail(self.log)}")

    def wait(self, *, seconds: float = _STOP) -> int:
        """The exit code, once the program has ended by itself. Raises TimeoutExpired."""
        return self._running.wait(seconds)

    def stop(self, *, seconds: float = _STOP) -> int:
        """Asks the program to end and returns its exit code; one that stays is killed and returns -9."""
        if self._running.poll() is None:
            self._running.send_signal(signal.SIGTERM)
            try:
                self._running.wait(seconds)
            except subprocess.TimeoutExpired:
                self._running.kill()
        return self._running.wait()

    def kill(self) -> None:
        """Ends the program without a chance to tidy up."""
        self._running.kill()
        self._running.wait()


def eventually(condition: Callable[[], bool], *, seconds: float = 5, every: float = 0.01) -> bool:
    """Whether `condition` came true within `seconds`; for what another program does in its own time.

    It is asked `every` so many seconds.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every)
    return True


def tail(log: Path) -> str:
    """The end of a log, or the words that there is none."""
    return log.read_bytes()[-_TAIL:].decode(errors="replace") if log.exists() else "(no log)"


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on or holds, and that neither a client nor another call here gets."""
    for port in random.sample(range(20_000, 32_000), 200):  # Linux takes clients' ports from 32768 up
        if port in _given:  # to something that may be between two starts
            continue
        try:
            # Without SO_REUSEADDR, so that a port which another run of the tests holds is none for us.
            with socket.socket() as candidate:
                candidate.bind(("127.0.0.1", port))
        except OSError:
            continue
        _given.add(port)
        return port
    raise RuntimeError("no free port found")


@contextmanager
def held_port() -> Iterator[int]:
    """A free port for what starts again and again: whoever looks for one meanwhile, in any process, gets another."""
    port = free_port()
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", port))
        # Bound and not listening, it is in nobody's way who asks for the same, as all servers do.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        yield port


def listens(port: int) -> bool:
    """Whether a connection to 127.0.0.1:`port` is accepted."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def state_of(pid: int) -> str:
    """Of a process, as `ps` has it; X where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def is_there(pid: int) -> bool:
    """Whether the process has not ended."""
    return state_of(pid) not in "ZX"


def remove_state(top: Path) -> None:
    """Removes a daemon's directory, after ending what the daemon has left: a shim outlives it where a container does.

    It is known by its arguments, of which one is a path in there.
    """
    left = [process for process in Path("/proc").glob("[0-9]*") if _is_given(process, f"{top}/")]
    for process in left:
        with suppress(ProcessLookupError):
            os.kill(int(process.name), signal.SIGKILL)
    eventually(lambda: not any(_is_given(process, f"{top}/") for process in left))
    remove_tree(top)


def _is_given(process: Path, beginning: str) -> bool:
    """Whether an argument of a process, a directory in /proc, begins so; not of one that has ended."""
    try:
        arguments = (process / "cmdline").read_text(errors="replace").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return any(argument.removeprefix("unix://").startswith(beginning) for argument in arguments)


def remove_tree(top: Path) -> None:
    """Removes a directory after undoing what a container daemon left mounted in it, innermost first."""
    mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for point in sorted((point for point in mounted if Path(point).is_relative_to(top)), reverse=True):
        subprocess.run(["umount", "--lazy", point], check=True)
    shutil.rmtree(top)

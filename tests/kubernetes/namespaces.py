"""A machine of its own for the node: namespaces for processes, mounts and the network, whose end takes all along.

What runs inside sees its own /etc, /var and /run, interfaces, rules and ports. The kernel ends every process inside
when the first of them ends, and that one ends with the thread that started it, however that one ends.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from tests.e2e.processes import Process, eventually, is_there
from tests.e2e.programs import environment
from tests.kubernetes.inside import READY

Result = TypeVar("Result")

_TOP = Path(__file__).resolve().parents[2]
_AT_ONCE = 8  # threads that are inside: commands that can run at the same time
_START, _END = 30.0, 30.0  # seconds

_CLONE_FS = 0x00000200  # from <sched.h>; os.setns came with Python 3.12
_ENTERED = {"pid": 0x20000000, "net": 0x40000000, "mnt": 0x00020000}  # mounts last: after them /proc is another


class Namespaces:
    """The namespaces, with their first process; `state` takes what is written inside, and its log."""

    def __init__(self, state: Path, addresses: Sequence[str] = ()) -> None:
        self.state = state
        self.log = state / "namespaces.log"
        argv: list[str | Path] = [
            "setpriv", "--pdeathsig", "KILL",
            "unshare", "--mount", "--propagation", "private", "--net", "--pid", "--mount-proc",
            "--fork", "--kill-child=KILL",
            sys.executable, "-m", "tests.kubernetes.inside", state, *addresses,
        ]  # fmt: skip
        self._first = Process(argv, log=self.log, env={**environment(state), "PYTHONPATH": str(_TOP)})
        try:
            self._first.wait_until(lambda: self.log.read_text().endswith(f"{READY}\n"), seconds=_START)
        except BaseException:
            self._first.kill()
            raise
        child = Path(f"/proc/{self._first.pid}/task/{self._first.pid}/children").read_text().split()
        self._pid = int(child[0])
        self._threads = ThreadPoolExecutor(_AT_ONCE, "inside", initializer=self._enter)
        self._started: list[Process] = []

    def call(self, function: Callable[[], Result]) -> Result:
        """What `function` returns or raises, called in a thread that is inside: what it starts and opens is, too."""
        return self._threads.submit(function).result()

    def start(self, argv: Sequence[str | Path], *, log: Path, env: Mapping[str, str]) -> Process:
        """Starts a program inside. It also ends with the namespaces."""
        process = self.call(lambda: Process(argv, log=log, env=env))
        self._started.append(process)
        return process

    def run(
        self, *argv: str | Path, env: Mapping[str, str], seconds: float, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs a program inside to its end, whatever it exits with. Raises TimeoutExpired."""
        return self.call(
            lambda: subprocess.run(
                argv, env=env, timeout=seconds, input=stdin or "", capture_output=True, text=True, check=False
            )
        )

    @property
    def entrance(self) -> tuple[str, ...]:
        """In front of a command, runs it inside: for a person's terminal."""
        return ("nsenter", f"--target={self._pid}", "--mount", "--net", "--pid")

    def enter_network(self) -> None:
        """Makes the calling thread open its sockets inside from now on."""
        self._set("net")

    def close(self) -> None:
        """Ends everything inside, at once; returns when nothing is left. Raises OSError where something stays."""
        self._threads.shutdown()
        self._first.kill()  # and with it, by --kill-child, the first process inside, and with that one all
        for process in self._started:
            process.wait()  # a process inside that nobody has asked for its end would hold up the first one's
        if not eventually(lambda: not is_there(self._pid), seconds=_END):
            raise OSError(f"process {self._pid} does not end")

    def _enter(self) -> None:
        # A thread that shares its working directory with others cannot go where there are other mounts.
        _check(_libc.unshare(_CLONE_FS))
        self._set(*_ENTERED)

    def _set(self, *kinds: str) -> None:
        opened = {kind: os.open(f"/proc/{self._pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in kinds}
        try:
            for kind, namespace in opened.items():
                _check(_libc.setns(namespace, _ENTERED[kind]))
        finally:
            for namespace in opened.values():
                os.close(namespace)


_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

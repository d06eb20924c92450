"""One mirror after the other on one data directory: real processes, each of which ends by SIGKILL; its workers, too."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.crash.dying import Moment
from tests.e2e.processes import free_port, is_there, listens, tail
from tests.samples import total
from tests.storing import until

_START = 30.0
"""Seconds that a process may take to serve, and to be gone after its end."""


class Life:
    """One process, from its start to its end, with its workers where it has any."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path, admin: str | None) -> None:
        """`admin`: the URL that says how many workers serve; None where there are none."""
        self.ending = False
        """Whether somebody has asked it to end: from then on it may break off what it does."""
        self.deaths = 0
        """Of workers: with each of them some answers may break off."""
        self._process = process
        self._log = log
        self._begins_at = log.stat().st_size
        self._admin = admin

    @property
    def is_over(self) -> bool:
        """Whether the process is gone."""
        return self._process.returncode is not None

    async def serves(self, port: int) -> bool:
        """Waits until connections are accepted at `port`; False where it is killed before."""
        async with asyncio.timeout(_START):
            while not self.is_over:
                if await asyncio.to_thread(listens, port) and await self._is_whole():
                    return True
                await asyncio.sleep(0.01 if self._admin is None else 0.05)
        assert self._process.returncode == -signal.SIGKILL, f"it does not start:\n{tail(self._log)}"
        return False

    async def over(self) -> None:
        """Waits for its end."""
        async with asyncio.timeout(_START):
            await self._process.wait()

    async def ends_within(self, seconds: float) -> bool:
        """Whether the process ends by itself in that time."""
        try:
            async with asyncio.timeout(seconds):
                await self._process.wait()
        except TimeoutError:
            return False
        return True

    def terminate(self) -> None:
        """Asks it to end (SIGTERM)."""
        self.ending = True
        if not self.is_over:
            self._process.terminate()

    async def kill(self) -> None:
        """Ends it and all its workers (SIGKILL), wherever they are, and waits until they are gone."""
        self.ending = True
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        await self._process.wait()
        await until(lambda: not any(map(is_there, self._workers().values())), _START)

    def kill_worker(self, slot: int) -> None:
        """Ends the worker in a slot (SIGKILL), if there is one; another one will take its place."""
        self.deaths += 1
        try:
            os.kill(self._workers()[slot], signal.SIGKILL)
        except ProcessLookupError:
            pass

    async def kill_supervisor(self) -> None:
        """Ends the process (SIGKILL), and waits until its workers have left by themselves."""
        self.ending = True
        if not self.is_over:
            self._process.kill()
        await self._process.wait()
        await until(lambda: not any(map(is_there, self._workers().values())), _START)

    async def _is_whole(self) -> bool:
        """Whether all its workers serve."""
        if self._admin is None:
            return True
        try:
            async with aiohttp.request("GET", f"{self._admin}/readyz") as answer:
                workers = (await answer.json())["workers"]
        except aiohttp.ClientError:
            return False
        return bool(workers["serving"] == workers["of"])

    def _workers(self) -> dict[int, int]:
        """The process of the last worker in each slot."""
        if self._admin is None:
            return {}
        said = self._log.read_bytes()[self._begins_at :].splitlines()
        begun = [json.loads(line) for line in said if b'"a worker begins"' in line]
        return {line["slot"]: line["pid"] for line in begun}


class Home:
    """A data directory, and the configuration for those who live there. `port` is the registry API's."""

    def __init__(self, home: Path, port: int, settings: Mapping[str, Any]) -> None:
        self.data = home / "data"
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.log = home / "mirror.log"
        self._config = home / "mirror.yaml"
        self._admin_port = free_port()
        document = {"listen": f"127.0.0.1:{port}", "admin_listen": f"127.0.0.1:{self._admin_port}", **settings}
        document["storage"] = {"path": str(self.data), **settings["storage"]}
        self._has_workers = settings.get("workers", 1) > 1
        self._config.write_text(json.dumps(document))  # JSON is YAML

    async def begin(self, moment: Moment | None = None) -> Life:
        """Starts a process; with a `moment` one that kills itself when that comes."""
        program = ["mirror", "serve", "--config", str(self._config)]
        if moment is not None:
            program = ["tests.crash.dying", str(self._config), str(moment)]
        env = {name: value for name, value in os.environ.items() if not name.startswith("MIRROR_")}
        with self.log.open("ab") as out:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", *program, stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=out, env=env,
                start_new_session=True,
            )  # fmt: skip
        return Life(process, self.log, f"http://127.0.0.1:{self._admin_port}" if self._has_workers else None)

    @asynccontextmanager
    async def life(self, moment: Moment | None = None) -> AsyncIterator[Life]:
        """The same, killed at the end."""
        begun = await self.begin(moment)
        try:
            yield begun
        finally:
            await begun.kill()

    async def counted(self, metric: str) -> float:
        """The sum of all samples of `metric`, as the living process tells."""
        async with aiohttp.request("GET", f"http://127.0.0.1:{self._admin_port}/metrics") as answer:
            return total(await answer.text(), metric)

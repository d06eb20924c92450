"""One mirror after the other on one data directory: real processes, each of which ends by SIGKILL."""

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
from prometheus_client.parser import text_string_to_metric_families

from tests.crash.dying import Moment
from tests.e2e.processes import free_port, listens, tail

_START = 15.0
"""Seconds that a process may take to serve, and to be gone after its end."""


class Life:
    """One process, from its start to its end."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.ending = False
        """Whether somebody has asked it to end: from then on it may break off what it does."""
        self._process = process
        self._log = log

    @property
    def is_over(self) -> bool:
        """Whether the process is gone."""
        return self._process.returncode is not None

    async def serves(self, port: int) -> bool:
        """Waits until connections are accepted at `port`; False where it is killed before."""
        async with asyncio.timeout(_START):
            while not self.is_over:
                if await asyncio.to_thread(listens, port):
                    return True
                await asyncio.sleep(0.01)
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
        """Ends it (SIGKILL), wherever it is, and waits until it is gone."""
        self.ending = True
        if not self.is_over:
            self._process.kill()
        await self._process.wait()


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
        self._config.write_text(json.dumps(document))  # JSON is YAML

    async def begin(self, moment: Moment | None = None) -> Life:
        """Starts a process; with a `moment` one that kills itself when that comes."""
        program = ["mirror", "serve", "--config", str(self._config)]
        if moment is not None:
            program = ["tests.crash.dying", str(self._config), str(moment)]
        env = {name: value for name, value in os.environ.items() if not name.startswith("MIRROR_")}
        with self.log.open("ab") as out:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", *program, stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=out, env=env
            )
        return Life(process, self.log)

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
            families = text_string_to_metric_families(await answer.text())
        return sum(sample.value for family in families for sample in family.samples if sample.name == metric)

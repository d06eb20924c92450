"""`python -m mirror serve` in a process of its own, driven from the test's loop."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp

from tests.e2e.processes import free_port
from tests.storing import until
from tests.upstream import FakeRegistry


class Served:
    """`python -m mirror serve` in a process of its own, in front of a fake upstream, with its lines."""

    def __init__(
        self,
        home: Path,
        upstream: FakeRegistry,
        *,
        program: Sequence[str] = ("-m", "mirror"),
        options: Sequence[str] = (),
        **settings: Any,
    ) -> None:
        self._options = options
        self._program = program
        self.port, self.admin_port = free_port(), free_port()
        self.data = home / "data"
        self.lines: list[str] = []
        self.process: asyncio.subprocess.Process
        self._config = home / f"mirror-{self.port}.yaml"
        self._settings = {
            "listen": f"127.0.0.1:{self.port}",
            "admin_listen": f"127.0.0.1:{self.admin_port}",
            "storage": {"path": str(self.data), "min_free": "0%"},
            "upstreams": {"docker.io": {"url": upstream.url}},
            **settings,
        }
        self._reading: asyncio.Task[None] | None = None

    async def begin(self) -> Served:
        """Starts the process and returns at once."""
        self._config.write_text(json.dumps(self._settings))
        self.lines = []
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, *self._program, "serve", "--config", self._config, *self._options,
            env={name: value for name, value in os.environ.items() if not name.startswith("MIRROR_")},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        self._reading = asyncio.create_task(self._read())
        return self

    async def start(self) -> Served:
        """Starts the process and returns when it serves."""
        await self.begin()
        await self.told("serving")
        return self

    async def reload(self, **changes: Any) -> None:
        """Writes another configuration, and says so."""
        self.rewrite(**changes)
        self.process.send_signal(signal.SIGHUP)

    def rewrite(self, **changes: Any) -> None:
        """Writes another configuration."""
        self._settings |= changes
        self._config.write_text(json.dumps(self._settings))

    async def told(self, event: str) -> None:
        """Waits until it has logged an event."""
        await until(lambda: any(json.loads(line)["event"] == event for line in self.lines if line.startswith("{")), 60)

    async def ended(self, limit: float = 15.0) -> int:
        """Its exit code, once it has ended and all its lines are here."""
        async with asyncio.timeout(limit):
            code = await self.process.wait()
            assert self._reading is not None
            await self._reading
        return code

    async def stop(self) -> None:
        """Whatever state it is in; its workers, too."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        await self.ended()

    def workers(self) -> dict[int, int]:
        """The process of the last worker in each slot."""
        begun = (json.loads(line) for line in self.lines if '"a worker begins"' in line)
        return {line["slot"]: line["pid"] for line in begun}

    async def get(self, path: str, port: int | None = None) -> tuple[int, str, bytes]:
        """Status, Connection header and body of a GET on a connection of its own."""
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{port or self.port}{path}") as reply,
        ):
            return reply.status, reply.headers.get("Connection", ""), await reply.read()

    async def deaf(self) -> None:
        """Waits until it accepts no connection."""
        for _ in range(1000):
            try:
                await self.get("/v2/")
            except aiohttp.ClientConnectorError:
                return
            await asyncio.sleep(0.02)
        raise AssertionError("it still listens")

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.lines.append(line.decode().rstrip())

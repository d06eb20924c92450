"""The configuration, read again while we serve: taken up whole, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import structlog

from mirror.config import ConfigError, Settings, warnings

_log = structlog.get_logger()


class Reloading:
    """Has the configuration taken up once for as many as asked meanwhile, one time after the other.

    `read` gives it, in a thread, or raises ConfigError; `adopt` goes on under it, and returns the keys that need a
    restart. Whatever goes wrong, the configuration before stays in force, and a line says what is wrong.
    """

    def __init__(self, read: Callable[[], Settings], adopt: Callable[[Settings], Awaitable[list[str]]]) -> None:
        self._read = read
        self._adopt = adopt
        self._asked = asyncio.Event()

    def ask(self) -> None:
        """Has it read again; may be called from a signal's handler."""
        self._asked.set()

    async def run(self) -> None:
        """Does so whenever somebody asks, until it is cancelled."""
        pool = ThreadPoolExecutor(1, "configuration")
        try:
            while True:
                await self._asked.wait()
                self._asked.clear()
                await self._once(pool)
        finally:
            pool.shutdown(wait=False)

    async def _once(self, pool: ThreadPoolExecutor) -> None:
        try:
            settings, doubts = await asyncio.get_running_loop().run_in_executor(pool, self._look)
            restart = await self._adopt(settings)
        except ConfigError as error:
            for problem in error.problems:
                _log.error("the configuration cannot be used; the one before stays in force", problem=problem)
        except Exception as error:
            _log.exception("the configuration was not taken up; the one before stays in force", problem=str(error))
        else:
            for doubt in doubts:
                _log.warning("the configuration is hardly meant so", problem=doubt)
            if restart:
                _log.warning("some changes of the configuration need a restart", keys=", ".join(restart))
            _log.info("the configuration was read again")

    def _look(self) -> tuple[Settings, list[str]]:
        settings = self._read()
        return settings, warnings(settings)

"""Files that are looked at every now and then, for whoever cannot send a signal when one has changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import structlog

from mirror.config import Settings

EVERY_SECONDS = 5.0
_Identity = tuple[int, int, int, int] | None
_log = structlog.get_logger()


class Watching:
    """Calls `changed` when a file is another one than at the last look, or has come or gone.

    `files` names them anew for each look, and is called in a thread. Links are followed: Kubernetes changes what a
    mounted ConfigMap or Secret holds by turning one round.
    """

    def __init__(
        self, files: Callable[[], Iterable[Path]], changed: Callable[[], None], *, every: float = EVERY_SECONDS
    ) -> None:
        """`every`: seconds between two looks."""
        self._files = files
        self._changed = changed
        self._every = every

    async def run(self) -> None:
        """Looks until it is cancelled."""
        loop = asyncio.get_running_loop()
        # Of its own: a file on a disk that does not answer keeps nobody else waiting.
        pool = ThreadPoolExecutor(1, "watching")
        try:
            before = await loop.run_in_executor(pool, self._look)
            while True:
                await asyncio.sleep(self._every)
                now = await loop.run_in_executor(pool, self._look)
                news = sorted(str(path) for path in before.keys() & now.keys() if before[path] != now[path])
                if news:
                    _log.info("files of the configuration have changed", files=" ".join(news))
                    self._changed()
                before = now
        finally:
            pool.shutdown(wait=False)

    def _look(self) -> dict[Path, _Identity]:
        return {path: _identity(path) for path in self._files()}


def named_files(settings: Settings) -> list[Path]:
    """The files that are read with the configuration; those of credentials are read again by themselves."""
    tls = settings.tls
    named = [tls.certificate, tls.key, tls.client_ca] if tls is not None else []
    named += [upstream.ca_file for upstream in settings.upstreams.values()]
    return [path for path in named if path is not None]


def _identity(path: Path) -> _Identity:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size

"""Staying on a node: applies at the start and tries again while that fails, tells how it went, restores at the end.

If asked to, it also finds out whether the node's pulls now go through the mirror.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

import structlog
from aiohttp import web
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from mirror.config import Address
from mirror.nodes.errors import NodeError
from mirror.nodes.verify import Check
from mirror.nodes.works import Outcome

_AGAIN_SECONDS = 60.0
_log = structlog.get_logger()


class NodeMetrics:
    """What is told of one node."""

    def __init__(self, runtime: str, *, verifies: bool = False) -> None:
        self.is_configured = False
        self.registry = CollectorRegistry()
        self.configured = self._gauge("configured", "1 while the runtime's files send pulls to the mirror.", runtime)
        self.advice = self._gauge("advice", "Things in the log that somebody has to do on the node.", runtime)
        # Who is not asked has nothing to say: a 0 would be an alarm.
        self.seen = self._gauge("seen", "1 once the mirror saw a pull of the node.", runtime) if verifies else None

    def _gauge(self, name: str, text: str, runtime: str) -> Gauge:
        return Gauge(f"mirror_node_{name}", text, ["runtime"], registry=self.registry).labels(runtime=runtime)

    def tell(self, outcome: Outcome | None) -> None:
        """How `apply` ended; None where its work has been undone."""
        self.is_configured = outcome is not None
        self.configured.set(self.is_configured)
        self.advice.set(len(outcome.advice) if outcome is not None else 0)

    def tell_seen(self, seen: bool) -> None:
        """Whether the mirror saw the node's pull."""
        if self.seen is not None:
            self.seen.set(seen)


async def hold(
    apply: Callable[[], Outcome],
    restore: Callable[[], Outcome],
    metrics: NodeMetrics,
    listen: Address | None,
    *,
    check: Check | None = None,
    again: float = _AGAIN_SECONDS,
) -> int:
    """Applies, waits for SIGTERM or SIGINT, and restores; returns the exit code, 1 where that could not be done whole.

    `check` is run in between, every `again` seconds until the mirror has seen a pull, and is stopped here.
    Raises OSError where `listen` cannot be bound.
    """
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, over.set)
    runner = await _serve(metrics, listen) if listen is not None else None
    checking: asyncio.Task[None] | None = None
    try:
        await _apply_until_over(apply, metrics, over, again)
        if check is not None:
            checking = asyncio.create_task(_check_until_over(check, metrics, over, again))
        await over.wait()
        return await _restore(restore, metrics)
    finally:
        if check is not None:
            check.stop()
        if checking is not None:
            await checking
        if runner is not None:
            await runner.cleanup()


async def _apply_until_over(
    apply: Callable[[], Outcome], metrics: NodeMetrics, over: asyncio.Event, again: float
) -> None:
    while not over.is_set():
        try:
            outcome = await asyncio.to_thread(apply)
        except NodeError as error:
            _log.error("the node is not configured; it is tried again", error=str(error), seconds=again)
            try:
                await asyncio.wait_for(over.wait(), again)
            except TimeoutError:
                continue
        else:
            _tell("node configured", outcome)
            metrics.tell(outcome)
            return


async def _check_until_over(check: Check, metrics: NodeMetrics, over: asyncio.Event, again: float) -> None:
    while not over.is_set():
        try:
            verdict = await asyncio.to_thread(check.run)
        except NodeError as error:
            if not over.is_set():
                _log.error(
                    "whether the mirror sees pulls is not known; it is tried again", error=str(error), seconds=again
                )
        else:
            metrics.tell_seen(verdict.seen)
            if verdict.seen:
                _log.info(
                    "the mirror saw a pull", image=verdict.image, runtime=verdict.runtime, answers=verdict.answers
                )
                return
            _log.error("the mirror did not see a pull", image=verdict.image, runtime=verdict.runtime, seconds=again)
        try:
            await asyncio.wait_for(over.wait(), again)
        except TimeoutError:
            continue


async def _restore(restore: Callable[[], Outcome], metrics: NodeMetrics) -> int:
    try:
        outcome = await asyncio.to_thread(restore)
    except NodeError as error:
        _log.error("the node's files could not be put back", error=str(error))
        return 1
    _tell("node restored", outcome)
    metrics.tell(None)
    return 1 if outcome.foreign else 0


def _tell(event: str, outcome: Outcome) -> None:
    _log.info(event, changed=" ".join(outcome.changed))
    for path in outcome.foreign:
        _log.error("a file was changed by somebody else since it was written; it is left as it is", file=path)
    for advice in outcome.advice:
        _log.warning("something is left to do on the node", advice=advice)


async def _serve(metrics: NodeMetrics, listen: Address) -> web.AppRunner:
    async def show(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def ready(_: web.Request) -> web.Response:
        if metrics.is_configured:
            return web.Response(text="configured\n")
        return web.Response(text="not configured: the log says why\n", status=503)

    app = web.Application()
    app.add_routes([web.get("/metrics", show), web.get("/readyz", ready)])
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    await web.TCPSite(runner, listen.host, listen.port).start()
    return runner

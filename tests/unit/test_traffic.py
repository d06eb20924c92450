"""Every request is recorded once, with what it got, however it ends."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from mirror.api.exchange import EXCHANGE
from mirror.api.forwarded import Proxies
from mirror.api.middleware import Traffic
from mirror.metrics import Metrics
from tests.lines import Lines, lines

__all__ = ["lines"]


@pytest.mark.parametrize("over", [True, False], ids=["over", "running"])
async def test_bytes_count_that_a_step_sent_while_its_client_left(lines: Lines, over: bool) -> None:
    """A client that has everything may leave in the very turn in which the step is over that sent it, before anyone has
    heard of that, or while it still runs: it has its bytes all the same.
    """
    metrics = Metrics()
    traffic = Traffic(metrics, Proxies(()))
    step: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        exchange = request[EXCHANGE]
        exchange.status, exchange.promised, exchange.step = 200, 5, step
        step.add_done_callback(lambda done: setattr(exchange, "sent", done.result()))
        if over:
            step.set_result(5)
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await traffic.around(answer)(make_mocked_request("GET", "/v2/a/blobs/b"))
    await traffic.idle()
    if not over:
        step.set_result(5)
    await traffic.recorded()

    (line,) = lines.access()
    assert (line["status"], line["bytes"]) == (200, 5)
    assert "failure" not in line

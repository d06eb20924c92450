"""Questions that are shared: one at a time, and nobody is cut short by another one's deadline."""

from __future__ import annotations

import asyncio

import pytest

from mirror.oci.errors import UpstreamTimeout, UpstreamUnavailable
from mirror.pull.questions import Questions
from mirror.transport import Deadline


class Upstream:
    """Answers each question when it is told to, with what it is told to."""

    def __init__(self) -> None:
        self.asked: list[asyncio.Future[str]] = []

    async def __call__(self) -> str:
        self.asked.append(asyncio.get_running_loop().create_future())
        return await self.asked[-1]


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_who_joins_hears_the_same_and_knows_it() -> None:
    """One question for all who ask at once; only the first of them has asked it."""
    questions, upstream = Questions(), Upstream()
    later = Deadline.after(60)
    callers = [asyncio.create_task(questions.ask("key", upstream, later, "it")) for _ in range(3)]
    await turns()
    upstream.asked[0].set_result("answer")

    assert await asyncio.gather(*callers) == [("answer", False), ("answer", True), ("answer", True)]
    assert len(upstream.asked) == 1


async def test_who_has_time_left_asks_anew_when_the_joined_question_is_over() -> None:
    """A question that was asked long ago runs out of time: those who joined it late ask once more, together."""
    questions, upstream = Questions(), Upstream()
    first = asyncio.create_task(questions.ask("key", upstream, Deadline.after(60), "it"))
    await turns()
    late = [asyncio.create_task(questions.ask("key", upstream, Deadline.after(60), "it")) for _ in range(3)]
    await turns()
    upstream.asked[0].set_exception(UpstreamTimeout("no answer in time"))
    with pytest.raises(UpstreamTimeout):
        await first
    await turns()
    upstream.asked[1].set_result("answer")

    assert {answer for answer, _ in await asyncio.gather(*late)} == {"answer"}
    assert len(upstream.asked) == 2


async def test_who_has_no_time_left_does_not() -> None:
    """The deadline is the end, and says what was waited for; the question goes on."""
    questions, upstream = Questions(), Upstream()
    questions.start("key", upstream)
    await turns()

    with pytest.raises(UpstreamTimeout, match="the tag"):
        await questions.ask("key", upstream, Deadline.after(0.01), "the tag")

    assert len(upstream.asked) == 1
    assert not upstream.asked[0].done()
    await questions.close()
    assert upstream.asked[0].cancelled()


async def test_any_other_failure_is_an_answer_to_all() -> None:
    """A reset is as fresh for whoever joined as for whoever asked: nobody asks again for it."""
    questions, upstream = Questions(), Upstream()
    callers = [asyncio.create_task(questions.ask("key", upstream, Deadline.after(60), "it")) for _ in range(2)]
    await turns()
    upstream.asked[0].set_exception(UpstreamUnavailable("reset", reason="reset"))

    for outcome in await asyncio.gather(*callers, return_exceptions=True):
        assert isinstance(outcome, UpstreamUnavailable)
    assert len(upstream.asked) == 1

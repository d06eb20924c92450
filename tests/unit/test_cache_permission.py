"""Whatever happens in whatever order: a digest is permitted where it was shown since the last no, and nowhere else."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from mirror.cache import Cache, Question
from mirror.oci.digest import Digest
from mirror.oci.errors import BlobUnknown, NameUnknown, UpstreamRefused
from mirror.routing import Target
from tests.books import Book
from tests.clock import Clock
from tests.unit.test_cache import make_cache, make_router

DIGEST, SIZE = Digest.of(b"content"), 7
TARGETS = [make_router().resolve(name, None) for name in ("a.test/app", "a.test/copy", "b.test/app")]
HOSTS = ("a.test", "b.test")
NOS = {"refused": UpstreamRefused("no"), "nameless": NameUnknown("no"), "gone": BlobUnknown("no")}

targets = st.sampled_from(TARGETS)
events = st.one_of(
    st.tuples(st.sampled_from(["claim", "proof", *NOS, "ask", "late-claim", "late-proof", "wrong"]), targets),
    st.tuples(st.just("origin"), st.sampled_from(HOSTS)),
    st.tuples(st.sampled_from(["restart", "day"]), st.just("")),
)


@dataclass
class Model:
    """What is expected: per repository how well the digest was shown, and which questions are still good."""

    shown: dict[Target, str] = field(default_factory=dict)
    asked: dict[Target, Question] = field(default_factory=dict)
    origin: str | None = None

    def show(self, target: Target, how: str) -> None:
        """A proof stays one."""
        if self.shown.get(target) != "proof":
            self.shown[target] = how

    def may(self, target: Target) -> bool:
        """Whether the mirror may give it without asking."""
        how = self.shown.get(target)
        return how == "proof" or (how == "claim" and self.origin == target.upstream.host)


async def step(cache: Cache, model: Model, event: str, what: Target | str) -> None:
    """Lets one thing happen, to the cache and to the model."""
    if isinstance(what, str):
        model.origin = what
        await cache.put_origin(DIGEST, what)
    elif event in ("claim", "proof"):
        model.show(what, event)
        question = await cache.question(what)
        await cache.put_link(question, "blob", DIGEST, SIZE, proven=event == "proof")
    elif event == "ask":
        model.asked[what] = await cache.question(what)
    elif event.startswith("late-") and what in model.asked:
        current = await cache.question(what)
        if current == model.asked[what]:
            model.show(what, event.removeprefix("late-"))
        await cache.put_link(model.asked[what], "blob", DIGEST, SIZE, proven=event == "late-proof")
    elif event == "wrong":
        if model.shown.get(what) == "claim":
            del model.shown[what]
        await cache.drop_claim(what, "blob", DIGEST)
    elif event in NOS:
        model.shown.pop(what, None)
        before = await cache.question(what)
        await cache.heard_no(what, DIGEST, "blob", NOS[event])
        assert (await cache.question(what) == before) is (event == "gone")


async def play(history: list[tuple[str, Target | str]]) -> None:
    """Checks after each event what every repository may have."""
    book, clock, model = Book(), Clock(), Model()
    cache = make_cache(book, clock=clock)
    for event, what in history:
        if event == "restart":
            await cache.close()
            cache = make_cache(book, clock=clock)
            model.asked.clear()  # nobody waits for an answer over a restart
        elif event == "day":
            clock.forward(90_000)
        else:
            await step(cache, model, event, what)
        for target in TARGETS:
            link = await cache.link(target, "blob", DIGEST)
            permitted = link is not None and await cache.permits(target, DIGEST, link, SIZE)
            assert permitted is model.may(target), (event, str(target))
    await cache.close()


@settings(max_examples=60)
@given(st.lists(events, max_size=25))
def test_a_digest_is_permitted_where_it_was_shown_since_the_last_no(history: list[tuple[str, Target | str]]) -> None:
    """Claims, proofs, refusals, 404s, answers that come late, restarts and days that pass."""
    asyncio.run(play(history))

"""One row, played: an upstream with its trouble, a mirror in front of it, clients, and a look at what is left."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from mirror.config import Timeouts, UpstreamSettings
from mirror.store.budget import Budget
from tests.clock import Clock
from tests.crowd import PATIENT, Crowd
from tests.faults.clients import Client, Heard, Shelf
from tests.faults.expectations import WRONG, rule_of
from tests.faults.grammar import KINDS, MANY, SIZE, Row
from tests.faults.stage import Stage
from tests.faults.troubles import TROUBLES
from tests.harness import RunningMirror, short_timeouts
from tests.reading import left_behind, settled
from tests.upstream import ANY, Bearer, FakeRegistry, Rule, stall

HOST = "registry.test"
TTL = 300.0
_PATIENCE = 15.0
_APOLOGIES = ("429", "503", "504", "stale")
_RESTARTED = 4
"""One row in so many also restarts the mirror."""
_WRONG_BYTES = (*WRONG, "flip-once", "range-shifted", "gzip")


def timeouts() -> Timeouts:
    """Time limits at 1/20, but where a busy machine would have a healthy upstream miss them."""
    return short_timeouts(try_=2.0, first_byte=6.0, cold_head=5.0, stale_after=3.0, stall=1.0, no_progress=3.0)


@dataclass
class Story:
    """What came of a row."""

    row: Row
    heard: Counter[str] = field(default_factory=Counter)
    """How many clients heard which word, see `clients.Heard`."""
    requests: int = 0
    """How often the upstream was asked while it was in trouble."""
    sent: int = 0
    """Bytes of content that it sent meanwhile."""
    recovered_after: float = 0.0
    """Seconds until an answer was right again after the trouble had ended."""
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def words(self) -> frozenset[str]:
        """What clients heard."""
        return frozenset(self.heard)


class Scene:
    """Use `play`."""

    def __init__(self, row: Row, path: Path, *, workers: int = 1) -> None:
        """`workers`: where there are more than one, they are asked by turns, beginning with one that has to ask another
        one, which alone asks the upstream.
        """
        self.row = row
        self.kind = KINDS[row.kind]
        self.trouble = TROUBLES[row.trouble]
        self.story = Story(row)
        self.clock = Clock()
        self._path = path
        self._workers = workers
        self._crowd: Crowd | None = None
        self.upstream: FakeRegistry
        self.mirrors: tuple[RunningMirror, ...]
        self.stage: Stage
        self.client: Client

    async def play(self) -> Story:
        """Plays the row."""
        began = time.monotonic()
        async with self._built():
            if self.kind.is_old:
                await self._age()
            await self._suffer()
            await self._settle("after the trouble")
            self._count()
            self._look("after the trouble")
            await self.stage.clear()
            await self._recover("once the trouble is over")
            if sum(map(ord, self.row.id)) % _RESTARTED == 0:
                await self._restart()
                await self._recover("after a restart")
            await self._settle("in the end")
            self._look("in the end")
        self.story.seconds = time.monotonic() - began
        return self.story

    @contextlib.asynccontextmanager
    async def _built(self) -> AsyncIterator[None]:
        is_token = self.kind.asked == "token"
        auth = Bearer({"ci": "secret"}, anonymous=False) if is_token else None
        login: dict[str, Any] = {"username": "ci", "password": SecretStr("secret")} if is_token else {}
        async with FakeRegistry(referrers=True, auth=auth) as self.upstream:
            self.stage = Stage(self.row, self.upstream)
            self.shelf = Shelf(self.upstream)
            asked = "blob" if is_token and self.row.moment == "resume" else "tag" if is_token else self.row.kind
            self.client = Client(asked, self.shelf, prefix_holds=self.row.trouble not in _WRONG_BYTES)
            settings = UpstreamSettings(url=self.upstream.url, **login)
            options: dict[str, Any] = {
                "clock": self.clock,
                "tag_ttl": TTL,
                "default_upstream": HOST,
                "abandon_below": SIZE // 8,
            }
            try:
                async with self._running({HOST: settings}, options):
                    await self._find_room()
                    yield
            finally:
                self.upstream.clear_faults()

    @contextlib.asynccontextmanager
    async def _running(self, upstreams: dict[str, UpstreamSettings], options: dict[str, Any]) -> AsyncIterator[None]:
        if self._workers == 1:
            async with RunningMirror(self._path, upstreams, timeouts=timeouts(), **options) as mirror:
                self.mirrors = (mirror,)
                yield
            return
        limits = timeouts().model_copy(update={"peer": PATIENT})
        async with Crowd(self._path, upstreams, workers=self._workers, timeouts=limits, **options) as crowd:
            self._crowd = crowd
            self.mirrors = (crowd.other, *(worker for worker in crowd.workers if worker is not crowd.other))
            yield

    async def _restart(self) -> None:
        await (self._crowd or self.mirrors[0]).restart()

    @property
    def _budget(self) -> Budget:
        return self._crowd.keeper.budget if self._crowd is not None else self.mirrors[0].app.budget

    async def _find_room(self) -> None:
        """Lets the mirror look at its disk now: on a busy one the first download would not wait for it."""
        async with asyncio.timeout(_PATIENCE):
            while (room := await self._budget.reserve(1)) is None:
                pass
        room.end()

    # The trouble.

    async def _age(self) -> None:
        heard = await self.client.ask(self.mirrors[0])
        assert heard.word == "right", f"the copy came as {heard}"
        self.clock.forward(TTL + 1)
        self.shelf.renew()
        self.upstream.reset()

    async def _suffer(self) -> None:
        """Brings the trouble on, has the clients ask, and notes what they hear."""
        gate = self._gate()
        rule = await self.stage.bring_on()
        clients = MANY if self.row.audience == "many" else 1
        asked = itertools.islice(itertools.cycle(self.mirrors), clients)
        asking = [asyncio.create_task(self.client.ask(mirror)) for mirror in asked]
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._all_there(clients, gate)
                if self.row.audience == "nobody":
                    await self._leave(asking[0], rule)
                if gate is not None:
                    gate.release()
                if self.row.audience != "nobody":
                    self._note(await asyncio.gather(*asking))
        except TimeoutError:
            self.story.problems.append(f"clients still waited after {_PATIENCE:g} s")
        finally:
            for task in asking:
                task.cancel()

    def _gate(self) -> Rule | None:
        """Holds the first request until everybody is there, or gone; a broken connection can hold nothing."""
        if self.row.audience == "one" or (self.trouble.spoils is None and self.row.moment == "before"):
            return None
        return self.upstream.fault(ANY, stall(), kind=self.kind.asked, times=1)

    async def _all_there(self, clients: int, gate: Rule | None) -> None:
        if self.row.audience == "one":
            return
        if gate is not None:
            await gate.reached.wait()
        while sum(mirror.app.traffic.active for mirror in self.mirrors) < clients:  # noqa: ASYNC110 - nobody is told of those who join others
            await asyncio.sleep(0.005)

    async def _leave(self, asking: asyncio.Task[Heard], rule: Rule | None) -> None:
        if rule is not None and self.row.moment != "before":
            reached = asyncio.create_task(rule.reached.wait())
            await asyncio.wait([reached, asking], return_when=asyncio.FIRST_COMPLETED)
            reached.cancel()
        asking.cancel()
        await asyncio.wait([asking])

    def _note(self, heard: Sequence[Heard]) -> None:
        for one in heard:
            self.story.problems += one.problems
            self.story.heard[one.word] += 1
            if one.word == "right" and one.cache not in self._sources():
                self.story.problems.append(f"a right answer came as a {one.cache}")

    def _sources(self) -> set[str]:
        """What X-Cache may say: nothing was in hand, or only what had expired; of many the last may find it there."""
        found = {"miss", "joined"}
        if self.row.kind == "range":
            found.add("bypass")
        if self.kind.is_old:
            found.add("revalidated")
        if self.row.audience == "many":
            found.add("hit")
        return found

    # Afterwards.

    async def _settle(self, when: str) -> None:
        try:
            for mirror in self.mirrors:
                await asyncio.wait_for(mirror.app.traffic.recorded(), _PATIENCE)
                await settled(mirror, _PATIENCE)
        except TimeoutError:
            self.story.problems.append(f"{when} something went on for {_PATIENCE:g} s")

    def _count(self) -> None:
        asked = self.upstream.select(kind=self.kind.asked)
        self.story.requests = len(asked)
        self.story.sent = sum(seen.bytes_sent for seen in asked if seen.status in (200, 206))

    def _look(self, when: str) -> None:
        """Whatever is visible under a digest has it, and nothing is left of what came to nothing."""
        for path in (self._path / "blobs").glob("*/*/*"):
            if hashlib.new(path.parts[-3], path.read_bytes()).hexdigest() != path.name:
                self.story.problems.append(f"{when} wrong bytes are held as {path.name}")
        if when == "in the end" and self.row.kind in ("blob", "range") and not self._holds_the_blob():
            self.story.problems.append(f"{when} the blob is not held")
        for mirror in self.mirrors:
            if left := left_behind(mirror, self._budget):
                self.story.problems.append(f"{when} there is left {left}")

    def _holds_the_blob(self) -> bool:
        return any((self._path / "blobs").glob(f"*/*/{self.shelf.first.layers[0].digest.hex}"))

    async def _recover(self, when: str) -> None:
        """Soon there is a right answer, and until then nothing but apologies."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(_PATIENCE):
                while (heard := await self.client.ask(self.mirrors[0])).word != "right":
                    if heard.word in rule_of(self.row).afterwards:
                        await self._outlive(heard.word)
                    elif heard.word not in _APOLOGIES:
                        self.story.problems.append(f"{when} a client heard {heard}")
                        return
                    await asyncio.sleep(0.05)
        except TimeoutError:
            self.story.problems.append(f"{when} no answer was right for {_PATIENCE:g} s")
            return
        self.story.problems += heard.problems
        self.story.recovered_after = max(self.story.recovered_after, time.monotonic() - began)

    async def _outlive(self, word: str) -> None:
        """What was an answer is believed for a while; a claim until there are bytes."""
        if word != "claim":
            self.clock.forward(TTL + 31)
            return
        kind = {"head-manifest": "tag", "head-blob": "blob"}[self.row.kind]
        if (heard := await Client(kind, self.shelf).ask(self.mirrors[0])).word != "right":
            self.story.problems.append(f"after a claim the bytes came as {heard}")

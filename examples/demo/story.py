"""What the demonstration does, act by act, and what has to come out of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from examples.demo.client import Client, Fetched, total
from examples.demo.stage import Asked, Stage

IMAGE, HERD_IMAGE = ("library/demo", "1"), ("library/herd", "1")


class PromiseBroken(Exception):
    """The mirror did not do what it is for."""


@dataclass(frozen=True, slots=True)
class Act:
    """One act: what each client got, in how many seconds all of it, and what the upstream was asked meanwhile."""

    name: str
    pulls: tuple[tuple[Fetched, ...], ...]
    seconds: float
    asked: Asked

    @property
    def bytes(self) -> int:
        """That clients got."""
        return sum(total(pull) for pull in self.pulls)

    @property
    def requests(self) -> int:
        """That clients made."""
        return sum(len(pull) for pull in self.pulls)


def play(stage: Stage, clients: int, told: Callable[[str], None]) -> list[Act]:
    """All four acts; `told` hears of each as it begins. Raises PullFailed, PromiseBroken, TimeoutError."""
    told("first pull: nothing is held yet")
    first = _act(stage, "first pull", IMAGE, 1)
    told("second pull: everything is held")
    second = _act(stage, "second pull", IMAGE, 1)
    told(f"{clients} clients pull another image at the same moment; nothing of it is held yet")
    herd = _act(stage, f"{clients} at once", HERD_IMAGE, clients)
    told("the upstream is gone")
    stage.stop_upstream()
    outage = _act(stage, "upstream gone", HERD_IMAGE, 1)
    acts = [first, second, herd, outage]
    _check(acts)
    return acts


def _act(stage: Stage, name: str, image: tuple[str, str], clients: int) -> Act:
    before, started = stage.asked(), time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        try:
            pulls = tuple(pool.map(lambda _: tuple(Client(stage.port).pull(*image)), range(clients)))
        except BaseException:
            stage.close(abort=True)  # else the clients that go on would be waited for
            raise
    seconds = time.perf_counter() - started
    stage.settle()
    return Act(name, pulls, seconds, stage.asked().since(before))


def _check(acts: list[Act]) -> None:
    first, second, herd, outage = acts
    for act in (second, outage):
        if act.asked.requests or {thing.source for pull in act.pulls for thing in pull} != {"hit"}:
            raise PromiseBroken(f"{act.name}: the upstream was asked {act.asked.requests} times for what is held")
    for act in (first, herd):
        # Less, where the images share a layer.
        if act.asked.bytes > total(act.pulls[0]):
            raise PromiseBroken(f"{act.name}: {act.asked.bytes} bytes came for an image of {total(act.pulls[0])}")

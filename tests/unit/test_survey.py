"""A survey of any number of blobs looks closely at few of them, and never for long."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable
from pathlib import Path

import pytest

from mirror.oci.digest import Digest
from mirror.store.blobs import BlobStore
from mirror.store.files import Files
from mirror.store.ledger import Ledger
from mirror.store.rests import Rests
from mirror.store.shelves import BlobEntry, Shelves
from mirror.store.survey import Everyone, Guide
from mirror.store.unsettled import Unsettled
from mirror.store.victims import Oldest

CROWD = 20_000
SIZE = 1000
NOW = 3_000_000_000.0
DIRECTORY = ("sha256", "ab")


def digest(number: int) -> Digest:
    """A digest in DIRECTORY."""
    return Digest("sha256", f"ab{hashlib.sha256(str(number).encode()).hexdigest()[2:]}")


class Crowd(Files):
    """A directory of CROWD blobs, each used at another second, in no order; there is no such disk."""

    def __init__(self) -> None:
        self.listed = 0
        self._ages = list(range(CROWD))
        random.Random(6).shuffle(self._ages)

    def scan(self, path: Path) -> Iterable[tuple[str, int, float]]:
        if path.parts[-2:] != DIRECTORY:
            return
        for number, age in enumerate(self._ages):
            self.listed = number + 1
            yield digest(age).hex, SIZE, NOW - 1 - age


class Watched(Oldest):
    """Counts who is offered."""

    def __init__(self, need: int) -> None:
        super().__init__(need)
        self.offered = 0

    def offer(self, entry: BlobEntry) -> None:
        self.offered += 1
        super().offer(entry)


@pytest.fixture
def crowd() -> Crowd:
    return Crowd()


async def test_a_crowd_is_counted_without_a_look_at_each(crowd: Crowd, tmp_path: Path) -> None:
    """What nobody wants to hear of is a name, a length and a time, and no object of ours."""
    store, watched = BlobStore(tmp_path, crowd, lambda: NOW), Watched(0)

    assert await store.survey([DIRECTORY], watched) == (CROWD, CROWD * SIZE)

    assert watched.offered == 0
    await store.close()


async def test_victims_among_a_crowd_are_found_with_few_looks(crowd: Crowd, tmp_path: Path) -> None:
    """The oldest hundred cost some hundred looks, not one for each of the rest."""
    store, watched = BlobStore(tmp_path, crowd, lambda: NOW), Watched(100 * SIZE)

    await store.survey([DIRECTORY], watched)

    assert [entry.digest for entry in watched.chosen()] == [digest(CROWD - 1 - number) for number in range(100)]
    assert watched.offered < CROWD / 10
    await store.close()


async def test_a_use_that_is_only_noted_counts(crowd: Crowd, tmp_path: Path) -> None:
    """The file's time is the earliest that the last use can have been."""
    store, oldest = BlobStore(tmp_path, crowd, lambda: NOW), Oldest(2 * SIZE)
    store.touch(digest(CROWD - 1))

    await store.survey([DIRECTORY], oldest)

    assert [entry.digest for entry in oldest.chosen()] == [digest(CROWD - 2), digest(CROWD - 3)]
    await store.close()


def test_a_scan_looks_at_the_time_often(crowd: Crowd, tmp_path: Path) -> None:
    """It can rest after every few blobs, and so gives way also in the middle of a directory."""
    steps: list[int] = []

    class Watch(Rests):
        def step(self) -> None:
            steps.append(crowd.listed)

    shelves = Shelves(tmp_path, crowd, Unsettled(tmp_path / "unsettled", crowd), lambda _fd, _size: None, Ledger())  # type: ignore[arg-type, return-value]  # nothing is opened

    shelves.scan(DIRECTORY, Guide(Everyone(), {}, lambda _: None, NOW), Watch(lambda: False))

    assert max(after - before for before, after in zip([0, *steps], [*steps, CROWD], strict=True)) <= 100


def test_a_time_to_come_is_put_right() -> None:
    """The clock was set back: else the blob would stay the youngest of all."""
    entry, put_right = BlobEntry(digest(1), SIZE, NOW + 1000), dict[Digest, float]()
    everyone = Everyone()

    Guide(everyone, {}, put_right.update, NOW).look(entry)

    assert everyone.entries == [BlobEntry(entry.digest, SIZE, NOW)]
    assert put_right == {entry.digest: NOW}

"""Who is evicted: the least recently used, enough of them, and no more."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from mirror.oci.digest import Digest
from mirror.store.shelves import BlobEntry
from mirror.store.victims import MOST, Oldest

entries = st.lists(st.tuples(st.integers(0, 100), st.floats(0, 1e9, allow_nan=False)), max_size=40).map(
    lambda rows: [
        BlobEntry(Digest.of(str(number).encode()), size, used_at) for number, (size, used_at) in enumerate(rows)
    ]
)


def choose_victims(held: list[BlobEntry], need: int, most: int = MOST) -> list[BlobEntry]:
    """The victims among `held`, offered in that order."""
    oldest = Oldest(need, most)
    for entry in held:
        oldest.offer(entry)
    return list(oldest.chosen())


@given(entries, st.integers(0, 3000))
def test_victims_suffice_or_are_all_there_is(held: list[BlobEntry], need: int) -> None:
    """Together they hold what is needed, unless everything together does not."""
    victims = choose_victims(held, need)

    assert sum(entry.size for entry in victims) >= min(need, sum(entry.size for entry in held))
    assert set(victims) <= set(held)
    assert len(set(victims)) == len(victims)


@given(entries, st.integers(0, 3000))
def test_nobody_goes_before_somebody_older(held: list[BlobEntry], need: int) -> None:
    """Whoever is spared was used no earlier than whoever goes; the oldest goes first."""
    victims = choose_victims(held, need)
    spared = set(held) - set(victims)

    assert [entry.used_at for entry in victims] == sorted(entry.used_at for entry in victims)
    if victims and spared:
        assert max(entry.used_at for entry in victims) <= min(entry.used_at for entry in spared)


@given(entries, st.integers(0, 3000))
def test_nobody_goes_in_vain(held: list[BlobEntry], need: int) -> None:
    """Without the youngest victim the others would not suffice."""
    victims = choose_victims(held, need)

    if victims:
        assert sum(entry.size for entry in victims[:-1]) < need


@given(entries, st.integers(1, 3000), st.integers(1, 10))
def test_memory_is_bounded(held: list[BlobEntry], need: int, most: int) -> None:
    """Never more than `most` are remembered; where that is too few, they are the oldest of all."""
    oldest = Oldest(need, most)
    for entry in held:
        oldest.offer(entry)
        assert len(oldest.chosen()) <= most

    victims = list(oldest.chosen())
    enough = choose_victims(held, need, most=10_000)
    assert [entry.used_at for entry in victims] == [entry.used_at for entry in enough[: len(victims)]]
    assert len(victims) == min(most, len(enough))


@given(entries, st.integers(0, 3000), st.randoms(use_true_random=False))
def test_the_order_of_the_scan_does_not_matter(held: list[BlobEntry], need: int, chance: random.Random) -> None:
    """Where times differ, the same blobs go, whatever directory they were met in."""
    if len({entry.used_at for entry in held}) < len(held):
        return
    shuffled = list(held)
    chance.shuffle(shuffled)

    assert choose_victims(shuffled, need) == choose_victims(held, need)


@given(entries, st.integers(0, 3000), st.integers(1, 10))
def test_whoever_need_not_be_offered_would_not_be_chosen(held: list[BlobEntry], need: int, most: int) -> None:
    """A scan may pass over those that were used too lately, as far as it knows by then."""
    oldest = Oldest(need, most)
    for entry in held:
        if entry.used_at < oldest.until:
            oldest.offer(entry)

    assert [entry.used_at for entry in oldest.chosen()] == [entry.used_at for entry in choose_victims(held, need, most)]


def test_nothing_is_chosen_where_nothing_is_needed() -> None:
    """A scan that only counts remembers nobody."""
    assert choose_victims([BlobEntry(Digest.of(b""), 5, 1.0)], 0) == []

"""mirror.store.owners: one owner for each upstream host."""

from __future__ import annotations

from collections import Counter

from mirror.store.owners import owner_of
from mirror.store.spools import origin_of

ORIGINS = [origin_of(f"registry{number}.test") for number in range(1000)]


def test_every_slot_has_its_share() -> None:
    """Hosts are spread over the slots about evenly."""
    shares = Counter(owner_of(origin, 4) for origin in ORIGINS)

    assert set(shares) == {0, 1, 2, 3}
    assert min(shares.values()) > 150


def test_one_slot_more_moves_no_host_between_the_others() -> None:
    """It takes over its own share, a fourth of four; everything else stays where it was."""
    moved = [origin for origin in ORIGINS if owner_of(origin, 3) != owner_of(origin, 4)]

    assert {owner_of(origin, 4) for origin in moved} == {3}
    assert 150 < len(moved) < 350


def test_one_worker_owns_everything() -> None:
    """There is nobody else."""
    assert {owner_of(origin, 1) for origin in ORIGINS} == {0}

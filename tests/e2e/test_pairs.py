"""Which clients meet which kind of upstream."""

from __future__ import annotations

from itertools import product

from tests.e2e.clients import CLIENTS
from tests.e2e.registries import KINDS
from tests.e2e.test_pull import COVERED
from tests.pairs import pairs, pairwise


def test_chosen_rows_hold_every_pair() -> None:
    """Of a full table of three columns a small part is chosen, and no two values miss each other in it."""
    rows = list(product("abcd", "12", "xyz"))

    chosen = pairwise(rows)

    assert set().union(*map(pairs, chosen)) == set().union(*map(pairs, rows))
    assert len(chosen) <= 14  # a pair of the widest two columns per row is the least that is possible: 12


def test_pulls_cover_clients_stores_and_upstreams_in_pairs() -> None:
    """Each client, generation and store meets each kind of upstream, and each client in each of its forms pulls."""
    met = {(name, kind) for name, kind in COVERED}

    assert {name for name, _ in met} == CLIENTS.keys()
    for column in ("client", "generation", "store"):
        values = {getattr(choice, column) for choice in CLIENTS.values()}
        assert {(getattr(CLIENTS[name], column), kind) for name, kind in met} == set(product(values, KINDS))

"""The table itself: what is in it, what is left out and why, and that the documentation has the same."""

from __future__ import annotations

import inspect
from itertools import product

import pytest

from tests import upstream
from tests.faults import troubles
from tests.faults.constraints import CONSTRAINTS, covering_rows, every_row
from tests.faults.expectations import RULES, Rule, rule_of
from tests.faults.grammar import AUDIENCES, KINDS, MOMENTS, Row
from tests.faults.table import cells, read_table
from tests.pairs import pairs

_HELPERS = {"ranged", "tar_layer", "client_tls", "server_tls", "retry_after_forms", "then"}
"""Of the fake upstream: what is no fault. What a tag that moves meanwhile comes to is in tests/behaviour."""


def test_rows_in_the_gate_hold_every_pair() -> None:
    """Each two values of two factors that can meet at all do meet in a row that the gate plays."""
    few, all_rows = covering_rows(), every_row()

    assert set().union(*(pairs(row.values) for row in few)) == set().union(*(pairs(row.values) for row in all_rows))
    assert len(few) < len(all_rows) / 4
    assert covering_rows() == few


def test_every_value_of_every_factor_occurs() -> None:
    """No constraint leaves out a fault, a moment, an audience or a kind altogether."""
    found = [set(values) for values in zip(*(row.values for row in every_row()), strict=True)]

    assert found == [set(troubles.TROUBLES), set(MOMENTS), set(AUDIENCES), set(KINDS)]


def test_every_constraint_leaves_something_out() -> None:
    """None is there for nothing, or hidden behind those before it."""
    table = [Row(*values) for values in product(troubles.TROUBLES, MOMENTS, AUDIENCES, KINDS)]
    left_out = [row for row in table if any(row in constraint for constraint in CONSTRAINTS)]
    reasons = {next(constraint.reason for constraint in CONSTRAINTS if row in constraint) for row in left_out}

    assert reasons == {constraint.reason for constraint in CONSTRAINTS}
    assert len(left_out) + len(every_row()) == len(table)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.because)
def test_every_rule_is_somebodys(rule: Rule) -> None:
    """No rule is hidden behind those before it."""
    assert any(rule_of(row) is rule for row in every_row())


def test_everything_that_the_upstream_can_do_is_in_the_table() -> None:
    """A switch that the fake upstream gets is a fault of the table as well."""
    switches = {name for name in upstream.__all__ if inspect.isfunction(getattr(upstream, name))} - _HELPERS

    assert switches <= vars(troubles).keys()


def test_the_noted_table_is_that_of_the_rules() -> None:
    """Its last whole run has seen every row there is; `make faults-all` notes it anew."""
    rows = every_row()
    noted = read_table()
    told = {name: {kind: found[kind] for kind in found if kind != "does"} for name, found in noted["troubles"].items()}

    assert noted["figures"]["rows"] == len(rows)
    assert told == cells(rows)

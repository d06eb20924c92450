"""How many connections a process has descriptors for."""

from __future__ import annotations

import resource

import pytest

from mirror.api.admission import places


@pytest.mark.parametrize(
    ("files", "wanted", "given"),
    [(1 << 20, 10_000, 10_000), (20_000, 10_000, 5813), (1024, 10_000, 170), (1024, 100, 100), (4, 10, 1)],
)
def test_places_leave_descriptors_for_the_work(
    monkeypatch: pytest.MonkeyPatch, files: int, wanted: int, given: int
) -> None:
    """As many as are wanted where the limit on open files allows it, else what it allows, and never none."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    assert places(wanted) == given


def test_no_limit_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Infinity is a number to the system, and a small one."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert places(10_000) == 10_000

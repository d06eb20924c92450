"""Fixtures for every test: fake upstreams, and mirrors in front of them."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import settings

from tests.harness import RunningMirror
from tests.upstream import FakeRegistry
from tests.upstream.fixtures import start_upstream, upstream

__all__ = ["mirror", "start_mirror", "start_upstream", "upstream"]

# Their clients compare what they got; where that fails the message shall say with what.
pytest.register_assert_rewrite("tests.e2e", "tests.disks")

# A busy machine is no fault of the code: no test asserts on speed, hypothesis' default deadline would.
settings.register_profile("mirror", deadline=None)
settings.load_profile("mirror")

# Every mirror would tell of every request; a test that looks at lines sets up its own.
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("warning"))

StartMirror = Callable[..., Awaitable[RunningMirror]]


@pytest.fixture
async def start_mirror(upstream: FakeRegistry, tmp_path: Path) -> AsyncIterator[StartMirror]:
    """Starts mirrors in front of `upstream` as docker.io, or of `upstreams=`; options as of RunningMirror."""
    numbers = itertools.count(1)
    async with AsyncExitStack() as stack:

        async def start(**options: Any) -> RunningMirror:
            upstreams = options.pop("upstreams", {"docker.io": upstream})
            path = options.pop("path", tmp_path / f"data{next(numbers)}")
            return await stack.enter_async_context(RunningMirror(path, upstreams, **options))

        yield start


@pytest.fixture
async def mirror(start_mirror: StartMirror) -> RunningMirror:
    """A mirror in front of `upstream` as docker.io, with short time limits."""
    return await start_mirror()

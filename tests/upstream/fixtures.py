"""pytest fixtures: `upstream`, one fake registry, and `start_upstream`, for several or for other options.

Import them where they are wanted: `from tests.upstream.fixtures import start_upstream, upstream`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.upstream.registry import FakeRegistry

StartUpstream = Callable[..., Awaitable[FakeRegistry]]


@pytest.fixture
async def start_upstream() -> AsyncIterator[StartUpstream]:
    """Starts fake registries with the options of FakeRegistry; each is stopped, its faults released, after the test."""
    async with AsyncExitStack() as stack:

        async def start(**options: Any) -> FakeRegistry:
            registry = await stack.enter_async_context(FakeRegistry(**options))
            stack.callback(registry.clear_faults)
            return registry

        yield start


@pytest.fixture
async def upstream(start_upstream: StartUpstream) -> FakeRegistry:
    """A fake registry without content."""
    return await start_upstream()

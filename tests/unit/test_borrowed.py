"""What another worker fetches is let go of in order, whoever leaves meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import cast

import pytest

from mirror.download.borrowed import Borrowed
from mirror.download.fetch import Tools
from mirror.download.sources import Sources
from mirror.oci.digest import Digest
from mirror.oci.errors import UpstreamUnavailable
from mirror.peers import Peers
from mirror.peers.messages import Broken
from mirror.peers.peers import encode
from mirror.routing import Target, UpstreamName
from mirror.store.hints import Hints


class Neighbour:
    """Another worker that says that it has failed, and does not come to its end."""

    def __init__(self) -> None:
        self.closing = asyncio.Event()
        self.closed = False

    @asynccontextmanager
    async def talk(self, *_: object, **__: object) -> AsyncIterator[Neighbour]:
        """Itself."""
        try:
            yield self
        finally:
            self.closed = True

    async def hear(self) -> tuple[None, bytes]:
        """Its only news."""
        return None, encode(Broken({}, again=False))

    async def end(self) -> None:
        """Never comes."""
        self.closing.set()
        await asyncio.Event().wait()


class Records:
    """No size is known, and any question may be asked."""

    hints = Hints()

    async def question(self, target: Target) -> SimpleNamespace:
        """One to that repository."""
        return SimpleNamespace(target=target)


async def test_who_is_stopped_while_it_hears_the_other_out_lets_go_of_it() -> None:
    """The last reader leaves just then: the connection is given back all the same."""
    source = Target(UpstreamName("docker.io", "docker.io"), "library/demo")
    tools = cast(Tools, SimpleNamespace(cache=Records()))
    neighbour = Neighbour()
    borrowed = Borrowed(Digest.of(b"x"), Sources(source), tools, cast(Peers, neighbour), background=False)
    with pytest.raises(UpstreamUnavailable):
        await borrowed.open(lambda: True)
    closing = asyncio.create_task(borrowed.close(keep=False))
    await neighbour.closing.wait()

    closing.cancel()
    await asyncio.gather(closing, return_exceptions=True)

    assert neighbour.closed

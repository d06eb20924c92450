"""Whom to ask for a blob, in the order in which they joined, and what each of them said."""

from __future__ import annotations

import time
from collections.abc import Callable

from mirror.oci.errors import MirrorError
from mirror.routing import Target

_MOST = 32
"""Repositories that one download asks; whoever joins later is not asked, only served."""


class Sources:
    """Repositories that may show the blob; a refusal moves on to the next, only the last one ends the asking."""

    def __init__(self, first: Target) -> None:
        self._joined: dict[Target, float] = {}
        self._said: dict[Target, MirrorError] = {}
        self.on_added: Callable[[Target], None] | None = None
        """Hears of one more."""
        self.add(first)

    def __contains__(self, target: Target) -> bool:
        return target in self._joined

    @property
    def all(self) -> tuple[Target, ...]:
        """Those that have not said no."""
        return tuple(self._joined)

    def add(self, target: Target) -> None:
        """One more, asked last."""
        if target in self._joined or len(self._joined.keys() | self._said.keys()) >= _MOST:
            return
        self._joined[target] = time.monotonic()
        if self.on_added is not None:
            self.on_added(target)

    def refused(self, target: Target, no: MirrorError) -> None:
        """One that said no; it is not asked again."""
        self._joined.pop(target, None)
        self._said[target] = no

    def failed(self, target: Target, error: MirrorError) -> None:
        """One that gave no answer this time."""
        self._said[target] = error

    def said(self, target: Target) -> MirrorError | None:
        """The last refusal or failure of `target`."""
        return self._said.get(target)

    def joined_at(self, target: Target) -> float:
        """When it joined, on the monotonic clock."""
        return self._joined[target]

    def rotate(self) -> None:
        """The first becomes the last: it sent wrong bytes."""
        if self._joined:
            first = next(iter(self._joined))
            self._joined[first] = self._joined.pop(first)

"""Whom to ask for a blob, in the order in which they joined."""

from __future__ import annotations

from mirror.routing import Target


class Sources:
    """Repositories that may show the blob; a refusal moves on to the next, only the last one ends the asking."""

    def __init__(self, first: Target) -> None:
        self._targets = [first]

    def __contains__(self, target: Target) -> bool:
        return target in self._targets

    @property
    def all(self) -> tuple[Target, ...]:
        """Those that have not said no."""
        return tuple(self._targets)

    def add(self, target: Target) -> None:
        """One more, asked last."""
        if target not in self._targets:
            self._targets.append(target)

    def drop(self, target: Target) -> None:
        """One that said no."""
        if target in self._targets:
            self._targets.remove(target)

    def rotate(self) -> None:
        """The first becomes the last: it sent wrong bytes."""
        self._targets.append(self._targets.pop(0))

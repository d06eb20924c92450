"""What a worker is given at its start: numbers of the descriptors that it inherits, and the settings, by neither its
arguments nor its environment, which others can read.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Handover:
    """For the worker in `slot`; numbers are of descriptors."""

    slot: int
    peers: list[str]
    """By slot: names of the Unix sockets on which workers hear each other."""
    listening: list[int]
    """The registry port's sockets."""
    asked: int
    """The worker's own Unix socket."""
    channel: int
    """Its end of what it shares with the supervisor."""
    shared: int
    """The store's memory that all processes have."""
    lock: int
    """The data directory is locked for as long as anybody has it open: while a worker lives nobody else may come."""
    turns: int
    """The file that is locked while log lines are written."""
    settings: str
    """See `config.unpack`."""

    @property
    def descriptors(self) -> tuple[int, ...]:
        """All that are inherited."""
        return (*self.listening, self.asked, self.channel, self.shared, self.lock, self.turns)

    def put_down(self) -> int:
        """Writes it into memory of which the descriptor is returned: to be inherited, then closed."""
        fd = os.memfd_create("mirror-handover")
        with os.fdopen(os.dup(fd), "wb") as file:
            file.write(json.dumps(asdict(self)).encode())
        return fd

    @classmethod
    def pick_up(cls, fd: int) -> Self:
        """Reads what was put down, and closes it; no program that we start inherits the descriptors."""
        with os.fdopen(fd, "rb") as file:
            file.seek(0)
            handover = cls(**json.loads(file.read()))
        for descriptor in handover.descriptors:
            os.set_inheritable(descriptor, False)
        return handover

"""`mirror worker`, which `mirror serve` runs."""

from __future__ import annotations

import click


@click.command(hidden=True)
@click.argument("fd", type=int)
def worker(fd: int) -> None:
    """Serve as one of several processes, with what is given at the descriptor FD; not for people."""
    from mirror.worker import work

    raise SystemExit(work(fd))

"""`mirror verify`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from mirror.cli.config import load_or_exit
from mirror.store.verification import Finding, Verification

_INTERRUPTED = 130
"""As a shell has it for a program that Ctrl-C ended."""


@click.command()
@click.option("--config", "file", metavar="FILE", type=click.Path(path_type=Path), help="Configuration in YAML.")
@click.option("--jobs", type=click.IntRange(1, 64), help="Blobs to read at a time; one per CPU, and four at most.")
def verify(file: Path | None, jobs: int | None) -> None:
    """Hash all held blobs, and remove the rotten ones.

    A server may be at work on the same data: it fetches again what is wanted of them. Prints one line for each blob
    that is not right, and exits with 1 if there was one.
    """
    root = load_or_exit(file).storage.path
    verification = Verification(root, jobs=jobs or min(4, os.cpu_count() or 1))
    with _stopped_by_ctrl_c(verification):
        code = _verify(root, verification)
    if verification.is_stopped():
        click.echo(f"mirror: interrupted after {verification.read:,} bytes", err=True)
    raise SystemExit(code)


@contextmanager
def _stopped_by_ctrl_c(verification: Verification) -> Iterator[None]:
    """The first Ctrl-C ends it in order, the second one at once.

    A KeyboardInterrupt would be raised wherever the program happens to be, where it may be swallowed, too.
    """

    def stop(*_: object) -> None:
        if verification.is_stopped():
            raise KeyboardInterrupt
        verification.stop()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _verify(root: Path, verification: Verification) -> int:
    """Does it, and tells of it; returns the exit code."""
    try:
        count, size = verification.survey()
    except FileNotFoundError:
        click.echo(f"mirror: there is nothing to verify: {root} has no blobs; is storage.path right?", err=True)
        return 2
    except OSError as error:
        click.echo(f"mirror: cannot read {root / 'blobs'}: {error.strerror}", err=True)
        return 1
    if verification.is_stopped():
        return _INTERRUPTED
    click.echo(f"verifying {count:,} blobs, {size:,} bytes", err=True)
    with _display(size) as display:
        verification.run(display.found, lambda: display.progressed(verification.read))
    if verification.is_stopped():
        return _INTERRUPTED
    verdict = f"{display.wrong:,} not right" if display.wrong else "all right"
    click.echo(f"{verification.blobs:,} blobs, {verification.read:,} bytes: {verdict}")
    return 1 if display.wrong else 0


class _Lines:
    """What is wrong, on standard output; what is merely strange, and each tenth of the way, on standard error."""

    def __init__(self, size: int) -> None:
        self.wrong = 0
        self._size = size
        self._tenth = 0

    def found(self, finding: Finding) -> None:
        """Tells of it."""
        self.wrong += not finding.harmless
        click.echo(f"{finding.name} {finding.size:,} bytes: {finding.what}", err=finding.harmless)

    def progressed(self, read: int) -> None:
        """So many bytes have been read."""
        tenth = 10 * read // max(1, self._size)
        if tenth > self._tenth:
            self._tenth = tenth
            click.echo(f"{10 * tenth}% verified", err=True)


class _Bar(_Lines):
    """The same with a bar, for those who watch."""

    def __init__(self, size: int, bar: Any) -> None:
        super().__init__(size)
        self._bar = bar

    def found(self, finding: Finding) -> None:
        click.echo("\r\033[K", err=True, nl=False)  # the bar gives way, and comes again below
        super().found(finding)

    def progressed(self, read: int) -> None:
        self._bar.update(min(read, self._size) - self._bar.pos)


@contextmanager
def _display(size: int) -> Iterator[_Lines]:
    if size == 0 or not sys.stderr.isatty():
        yield _Lines(size)
        return
    with click.progressbar(length=size, file=sys.stderr) as bar:
        yield _Bar(size, bar)

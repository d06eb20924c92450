"""Configuration on the command line: reading it for every command, and `mirror check-config`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from mirror.config import ConfigError, Settings, effective, load, warnings


def load_or_exit(path: Path | None) -> Settings:
    """The settings of `path` and the environment; prints what is wrong with them and exits with 2."""
    try:
        return load(path, os.environ)
    except ConfigError as exc:
        for problem in exc.problems:
            click.echo(f"mirror: {problem}", err=True)
        raise SystemExit(2) from None


@click.command("check-config")
@click.argument("file", type=click.Path(path_type=Path))
def check_config(file: Path) -> None:
    """Check FILE together with the MIRROR_* variables, and print the effective configuration.

    Secrets are masked. Exits with 2, and one line per mistake, where it cannot be used.
    """
    settings = load_or_exit(file)
    for doubt in warnings(settings):
        click.echo(f"mirror: warning: {doubt}", err=True)
    click.echo(effective(settings), nl=False)

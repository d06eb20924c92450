"""`mirror serve`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from mirror import log
from mirror.cli.config import load_or_exit
from mirror.config import Settings, load
from mirror.oci.errors import MirrorError


@click.command()
@click.option("--config", "file", metavar="FILE", type=click.Path(path_type=Path), help="Configuration in YAML.")
@click.option("--watch", is_flag=True, help="Take a change of FILE, or of a certificate that it names, as a SIGHUP.")
def serve(file: Path | None, watch: bool) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP has the configuration read again.

    Without a configuration: Docker Hub and the well-known public registries on 127.0.0.1:5000, kept in ./data.
    """
    if watch and file is None:
        raise click.UsageError("--watch needs --config")
    settings = load_or_exit(file)
    # Here, so that the other commands need not wait for the whole application to be imported.
    from mirror import server, supervisor

    slots = supervisor.slots_of(settings)

    def read() -> Settings:
        return load(file, os.environ)

    try:
        watched = file if watch else None
        if slots == 1:
            code = server.serve(settings, read, watched=watched)
        else:
            code = supervisor.serve(settings, slots, read, watched=watched)
    except (MirrorError, OSError) as exc:
        # What an operator can mend: a port in use, a data directory that is locked or not ours.
        log.close()
        click.echo(f"mirror: {exc}", err=True)
        code = 1
    finally:
        log.close()
    raise SystemExit(code)

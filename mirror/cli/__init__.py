"""The command line, one module per group of commands. Exit codes: 0 ok, 1 failed, 2 bad usage or settings."""

import click

from mirror import __version__
from mirror.cli.config import check_config
from mirror.cli.node_config import node_config
from mirror.cli.serve import serve
from mirror.cli.verify import verify
from mirror.cli.worker import worker


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="mirror")
def main() -> None:
    """A caching pull-through proxy for container registries."""


main.add_command(serve)
main.add_command(verify)
main.add_command(check_config)
main.add_command(node_config)
main.add_command(worker)

__all__ = ["main"]

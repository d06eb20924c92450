"""`mirror node-config`: the files that make a node's container runtime pull through the mirror."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mirror import log
from mirror.config import Address
from mirror.config.names import parse_host

if TYPE_CHECKING:
    from mirror.nodes import Outcome, Runtime
    from mirror.nodes.root import Root

F = TypeVar("F", bound=Callable[..., Any])
_NAMES = ("containerd", "crio", "k3s", "rke2", "docker")


def _parsed(parse: Callable[[str], object]) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """Reads an option, or each of many, by a function that raises ValueError with what was expected."""

    def read(_: click.Context, __: click.Parameter, value: Any) -> Any:
        try:
            return tuple(parse(text) for text in value) if isinstance(value, tuple) else value and parse(value)
        except ValueError as error:
            raise click.BadParameter(f"{value!r}; expected {error}") from None

    return read


def _parse_mirror(text: str) -> str:
    from mirror.nodes import parse_mirror

    return parse_mirror(text)


def _parse_image(text: str) -> str:
    from mirror.nodes.verify import parse_image

    return parse_image(text)


def _parse_endpoint(text: str) -> str:
    from mirror.nodes.cri import parse_endpoint

    return parse_endpoint(text)


def _whom_to_ask(command: F) -> F:
    """The options of every command that pulls through the runtime."""
    for option in (
        click.option(
            "--admin", metavar="URL", callback=_parsed(_parse_mirror),
            help="The mirror's admin port (default: port 5001 of the mirror's host, by http).",
        ),
        click.option(
            "--cri", "endpoint", metavar="SOCKET", default="unix:///run/containerd/containerd.sock",
            callback=_parsed(_parse_endpoint),
            help="The runtime's socket (default unix:///run/containerd/containerd.sock).",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def _where(command: F) -> F:
    """The options of every command that touches files."""
    for option in (
        click.option(
            "--root", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path), default=Path("/"),
            help="Where the node's file system is mounted (default /).",
        ),
        click.option(
            "--runtime", "name", type=click.Choice(_NAMES), help="The container runtime (default: what is found)."
        ),
    ):  # fmt: skip
        command = option(command)
    return command


@click.group("node-config")
def node_config() -> None:
    """Have a node's container runtime pull through the mirror, and undo it."""


@node_config.command()
@click.option(
    "--mirror", required=True, metavar="URL", callback=_parsed(_parse_mirror), help="Where nodes reach the mirror."
)
@click.option(
    "--registry",
    "registries",
    multiple=True,
    metavar="NAME",
    callback=_parsed(parse_host),
    help="A registry to pull through the mirror, again for each; all of them by default.",
)
@click.option(
    "--ca", metavar="FILE", type=click.Path(path_type=Path), help="Who signs the mirror's certificate, in PEM."
)
@click.option("--add-config-path", is_flag=True, help="Add config_path to containerd's config.toml where it lacks.")
@click.option("--hold", is_flag=True, help="Stay, and restore on SIGTERM or SIGINT.")
@click.option(
    "--metrics-listen",
    "listen",
    metavar="HOST:PORT",
    callback=_parsed(Address.parse),
    help="With --hold: serve /metrics and /readyz there.",
)
@click.option(
    "--verify-image",
    metavar="IMAGE",
    callback=_parsed(_parse_image),
    help="With --hold: pull it, and tell whether the mirror saw that, as `verify` does.",
)
@_whom_to_ask
@_where
def apply(
    mirror: str,
    registries: tuple[str, ...],
    ca: Path | None,
    add_config_path: bool,
    hold: bool,
    listen: Address | None,
    verify_image: str | None,
    endpoint: str,
    admin: str | None,
    name: str | None,
    root: Path,
) -> None:
    """Write the files that have the runtime ask the mirror first, and the registry itself where it does not answer.

    Exits with 1 where that failed, and with 2 where something was found that cannot be worked with: then nothing was
    touched.
    """
    from mirror import nodes
    from mirror.nodes.hold import NodeMetrics
    from mirror.nodes.hold import hold as stay
    from mirror.nodes.root import Root
    from mirror.nodes.verify import Check, default_admin

    if listen is not None and not hold:
        raise click.UsageError("--metrics-listen needs --hold")
    if verify_image is not None and not hold:
        raise click.UsageError("--verify-image needs --hold")
    with _explained():
        node = Root(root)
        runtime = _runtime(name, node)
        wanted = nodes.Wanted(mirror, registries, _read_ca(ca), add_config_path)
        work, undo = partial(nodes.apply, runtime, wanted, node), partial(nodes.restore, runtime, node)
        if not hold:
            _say(work(), "written")
            return
        check = Check(verify_image, admin or default_admin(mirror), endpoint) if verify_image is not None else None
        metrics = NodeMetrics(runtime.name, verifies=check is not None)
        log.configure()
        try:
            raise SystemExit(asyncio.run(stay(work, undo, metrics, listen, check=check)))
        finally:
            log.close()


@node_config.command()
@_where
def restore(name: str | None, root: Path) -> None:
    """Put back what was there before `apply`.

    Exits with 1 where somebody has changed what we wrote: that is left, and named.
    """
    from mirror import nodes
    from mirror.nodes.root import Root

    with _explained():
        node = Root(root)
        outcome = nodes.restore(_runtime(name, node), node)
        _say(outcome, "put back")
        if outcome.foreign:
            raise nodes.Foreign(f"{', '.join(outcome.foreign)}: changed since by somebody else, and left as it is")


@node_config.command()
@click.option(
    "--mirror", required=True, metavar="URL", callback=_parsed(_parse_mirror), help="Where nodes reach the mirror."
)
@click.option(
    "--image", required=True, metavar="IMAGE", callback=_parsed(_parse_image), help="What to pull, with its registry."
)
@_whom_to_ask
@click.option("--clean", is_flag=True, help="Remove the image afterwards where it was not there before.")
def verify(mirror: str, image: str, endpoint: str, admin: str | None, clean: bool) -> None:
    """Pull an image as the kubelet does, and tell whether the mirror saw it.

    Nothing is removed before: a runtime that holds an image asks anew what its tag means. Exits with 1 where the mirror
    did not see it, or that cannot be told.
    """
    from mirror.nodes.cri import Cri
    from mirror.nodes.verify import default_admin
    from mirror.nodes.verify import verify as try_it

    with _explained(), Cri(endpoint) as cri:
        verdict = try_it(image, admin or default_admin(mirror), cri, clean=clean)
        click.echo(verdict.text)
        raise SystemExit(0 if verdict.seen else 1)


def _runtime(name: str | None, root: Root) -> Runtime:
    from mirror.nodes import RUNTIMES, find_runtime

    return RUNTIMES[name] if name is not None else find_runtime(root)


def _read_ca(path: Path | None) -> str | None:
    from mirror.nodes import Unusable

    if path is None:
        return None
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Unusable(f"--ca {path} cannot be read: {error}") from None
    if "-----BEGIN CERTIFICATE-----" not in text:
        raise Unusable(f"--ca {path} has no certificate in PEM")
    return text


def _say(outcome: Outcome, done: str) -> None:
    for path in outcome.changed:
        click.echo(f"{done}: {path}")
    if not outcome.changed:
        click.echo("nothing to do")
    for advice in outcome.advice:
        click.echo(f"mirror: {advice}", err=True)


@contextmanager
def _explained() -> Iterator[None]:
    """Prints what is wrong with a node, and exits as it deserves."""
    from mirror.nodes import NodeError, Unusable

    try:
        yield
    except (NodeError, OSError) as error:
        click.echo(f"mirror: {error}", err=True)
        raise SystemExit(2 if isinstance(error, Unusable) else 1) from None

"""Serves a small demo registry on loopback until SIGTERM: `python -m tests.upstream --help`."""

from __future__ import annotations

import argparse
import asyncio
import re
import signal
from typing import NamedTuple

from tests.upstream.auth import Basic, Bearer, NoAuth
from tests.upstream.content import tar_layer
from tests.upstream.lies import redirect
from tests.upstream.registry import FakeRegistry
from tests.upstream.rules import ANY

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
_USERS = {"demo": "demo"}


class _Named(NamedTuple):
    repository: str
    tag: str


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and serves."""
    asyncio.run(_serve(_parser().parse_args(arguments)))


async def _serve(options: argparse.Namespace) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    async with FakeRegistry(
        port=options.port, auth=_auth(options.auth), latency=options.latency, rate=options.rate
    ) as registry:
        for name in options.image or [_Named("library/demo", "1")]:
            layers = [options.layer_size, options.layer_size // 10, tar_layer({"hello": b"#!/bin/sh\necho hello\n"})]
            registry.add_image(name.repository, name.tag, layers=layers)
        if options.redirect:
            registry.fault(ANY, redirect(), kind="blob")
        print(_describe(registry, options.auth), flush=True)
        await stopped.wait()


def _describe(registry: FakeRegistry, auth: str | None) -> str:
    names = [f"{home.name}:{tag}" for home in registry.repositories.values() for tag in home.tags]
    size = sum(blob.size for home in registry.repositories.values() for blob in home.blobs.values())
    return f"{registry.url} serves {' '.join(names)} ({size} bytes){f' with {auth}, demo:demo' if auth else ''}"


def _auth(kind: str | None) -> NoAuth:
    if kind == "basic":
        return Basic(_USERS)
    return Bearer(_USERS) if kind == "bearer" else NoAuth()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.upstream", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="where to listen on 127.0.0.1 (0: any free port)")
    parser.add_argument(
        "--image", type=_image, action="append", metavar="NAME:TAG", help="an image to serve; may repeat"
    )
    parser.add_argument("--layer-size", type=_size, default=8 << 20, help="the large layer's, such as 64MiB")
    parser.add_argument("--rate", type=_size, help="bytes per second of all answers together, such as 10MiB/s")
    parser.add_argument("--latency", type=float, default=0.0, metavar="SECONDS", help="wait before each answer")
    parser.add_argument("--auth", choices=("basic", "bearer"), help="ask for a credential; there is demo:demo")
    parser.add_argument("--redirect", action="store_true", help="redirect blobs to signed URLs of a second port")
    return parser


def _image(text: str) -> _Named:
    repository, _, tag = text.rpartition(":")
    if not repository or "/" in tag:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME:TAG")
    return _Named(repository, tag)


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+)\s*([A-Za-z]*)(?:/s)?", text)
    if match is None or match[2].upper() not in _UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 500, 64KiB or 10MB")
    return int(match[1]) * _UNITS[match[2].upper()]


if __name__ == "__main__":
    main()

"""Putting blobs into a store without an upstream, and looking at what is really on its disk."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

from mirror.oci.digest import Digest
from mirror.store.blobs import BlobStore
from mirror.store.spools import Spool

HOST = "registry.example"


def content(number: int, size: int = 1000) -> bytes:
    """Bytes that differ from number to number."""
    return random.Random(number).randbytes(size)


async def spool(store: BlobStore, data: bytes) -> Spool:
    """A spool with `data` written and not committed. The caller releases its file."""
    made = await store.create_spool(Digest.of(data), HOST)
    await store.append(made, [data])
    return made


async def put(store: BlobStore, data: bytes) -> Digest:
    """Stores `data` as a blob."""
    made = await spool(store, data)
    try:
        await store.commit(made)
    finally:
        made.file.release()
    return made.digest


async def read(store: BlobStore, digest: Digest) -> bytes | None:
    """The blob's bytes as a client would get them; None where it is not held."""
    file = await store.open_blob(digest)
    if file is None:
        return None
    try:
        return await store.read(file, file.size + 1, 0)
    finally:
        file.release()


def path_of(root: Path, digest: Digest) -> Path:
    """Where the blob's file is."""
    return root / "blobs" / digest.algorithm / digest.hex[:2] / digest.hex


def bytes_in(*tops: Path) -> int:
    """The lengths of all files below, added up. Files may go away meanwhile."""
    total = 0
    for top in tops:
        for path in top.rglob("*"):
            try:
                if path.is_file():
                    total += path.stat().st_size
            except FileNotFoundError:
                continue
    return total


async def until(condition: Callable[[], bool], limit: float = 5.0) -> None:
    """Waits at most `limit` seconds for what a thread or another process does in its own time."""
    for _ in range(int(limit * 1000)):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never came true")

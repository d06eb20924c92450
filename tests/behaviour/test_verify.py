"""`mirror verify` as an operator runs it: beside a server that serves, at a terminal, and with Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from mirror.oci.digest import Digest
from tests.e2e.mirrors import MirrorProcess
from tests.e2e.processes import free_port
from tests.storing import path_of
from tests.upstream import FakeRegistry

pytestmark = pytest.mark.timeout(60)  # processes start, on a machine that may be busy

SIZE = 3_000_000


@pytest.fixture
async def server(tmp_path: Path, upstream: FakeRegistry) -> AsyncIterator[MirrorProcess]:
    """A mirror as a process, in front of `upstream`. Its own scrub is off: it would be faster, now and then."""
    server = MirrorProcess(tmp_path, free_port())
    storage = {"path": str(server.data), "scrub_rate": 0}
    await asyncio.to_thread(server.start, {"docker.io": {"url": upstream.url}}, storage=storage)
    yield server
    await asyncio.to_thread(server.stop)


async def verifying(data: Path, *arguments: str, stderr: int = asyncio.subprocess.PIPE) -> asyncio.subprocess.Process:
    """Starts `mirror verify` over a data directory."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MIRROR_")}
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mirror", "verify", *arguments),
        env={**env, "MIRROR_STORAGE__PATH": str(data)},
        stdout=asyncio.subprocess.PIPE,
        stderr=stderr,
    )


def flip(path: Path) -> None:
    """Changes one byte in the middle of a file, where it is."""
    with path.open("r+b") as file:
        file.seek(SIZE // 2)
        byte = file.read(1)
        file.seek(SIZE // 2)
        file.write(bytes([byte[0] ^ 1]))


async def test_verify_beside_a_running_server(server: MirrorProcess, upstream: FakeRegistry) -> None:
    """It needs no lock, finds the flipped byte and drops the blob; the server fetches that one again, once."""
    blobs = [upstream.put_blob("library/demo", SIZE + number) for number in range(4)]
    async with aiohttp.ClientSession(server.url) as client:

        async def pull() -> list[bytes]:
            bodies = []
            for blob in blobs:
                async with client.get(f"/v2/demo/blobs/{blob.digest}") as answer:
                    assert answer.status == 200
                    bodies.append(await answer.read())
            return bodies

        await pull()
        rotten = path_of(server.data, blobs[1].digest)
        async with asyncio.timeout(10):
            while not all(path_of(server.data, blob.digest).exists() for blob in blobs):  # noqa: ASYNC110 - its own process
                await asyncio.sleep(0.01)
        flip(rotten)
        upstream.reset()

        process = await verifying(server.data)
        out, err = await process.communicate()

        assert process.returncode == 1, err
        assert out.decode().splitlines()[0] == f"{blobs[1].digest} {SIZE + 1:,} bytes: wrong bytes, removed"
        assert not rotten.exists()
        assert await pull() == [blob.content for blob in blobs]
        assert [upstream.bytes_for(blob) for blob in blobs] == [0, SIZE + 1, 0, 0]
    process = await verifying(server.data)
    await process.communicate()
    assert process.returncode == 0


def endless(top: Path) -> Path:
    """A blob that takes longer to read than anybody waits: a hole of 1 TiB."""
    path = path_of(top, Digest.of(b"endless"))
    path.parent.mkdir(parents=True)
    path.touch()
    os.truncate(path, 1 << 40)
    return path


async def test_ctrl_c_ends_it_in_order(tmp_path: Path) -> None:
    """At once, with the shell's exit code for it and no traceback; what was not read to its end is not judged."""
    path = endless(tmp_path)
    process = await verifying(tmp_path)
    assert process.stderr is not None
    begin = await process.stderr.readline()

    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()

    assert begin.startswith(b"verifying 1 blobs")
    assert process.returncode == 130, err
    assert b"interrupted after" in err
    assert b"Traceback" not in err
    assert path.exists()


def watched(terminal: int) -> str:
    """What a terminal shows until nobody writes to it any more; it is closed then."""
    shown = b""
    with open(terminal, "rb", buffering=0) as screen:
        try:
            while piece := screen.read(1 << 16):
                shown += piece
        except OSError:
            pass  # so Linux tells that the other end is closed
    return shown.decode()


async def test_a_terminal_gets_a_bar(tmp_path: Path) -> None:
    """What is wrong stays on standard output, a line each, however the bar moves."""
    for number in range(20):
        data = bytes([number]) * SIZE
        path = path_of(tmp_path, Digest.of(data))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if number else b"")
    terminal, end = os.openpty()
    try:
        process = await verifying(tmp_path, "--jobs", "1", stderr=end)
    finally:
        os.close(end)
    showing = asyncio.create_task(asyncio.to_thread(watched, terminal))
    out, _ = await process.communicate()
    shown = await showing

    assert process.returncode == 1
    assert out.decode().splitlines() == [
        f"{Digest.of(bytes(SIZE))} 0 bytes: wrong bytes, removed",
        f"20 blobs, {19 * SIZE:,} bytes: 1 not right",
    ]
    assert "100%" in shown
    assert "#" in shown

"""`python -m tests.upstream` serves a demo registry."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import aiohttp

_ROOT = Path(__file__).parents[2]


async def test_serves_until_sigterm(client: aiohttp.ClientSession) -> None:
    """It prints one line with its URL and images, serves them, and ends well on SIGTERM."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.upstream", "--image", "team/app:2", "--layer-size", "64KiB", "--redirect",
        cwd=_ROOT, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        url, *words = line.split()
        assert "team/app:2" in words
        async with client.get(url + "/v2/team/app/manifests/2") as response:
            layer = (await response.json(content_type=None))["layers"][0]
        async with client.get(f"{url}/v2/team/app/blobs/{layer['digest']}", allow_redirects=False) as response:
            assert response.status == 307
        assert layer["size"] == 65536
    finally:
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0

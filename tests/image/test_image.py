"""The image as an operator gets it: what it holds and says of itself, and that it serves where little is allowed."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from mirror import __version__
from tests.e2e.processes import eventually, free_port
from tests.image.build import LABELS, build_image
from tests.image.container import USER, Container, Unpacked
from tests.upstream import FakeRegistry, stall_at

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]  # the first one waits for the build

MIB = 1 << 20
DOCKERFILE = Path(__file__).parents[2] / "Dockerfile"
START = 60.0  # seconds; two on an idle machine

Run = Callable[..., Container]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Unpacked:
    """The image, unpacked."""
    return Unpacked(build_image(tmp_path_factory), tmp_path_factory.mktemp("unpacked") / "root")


@pytest.fixture(name="run")
def make_run(image: Unpacked, tmp_path: Path) -> Iterator[Run]:
    """Runs containers of the image, and removes them in the end."""
    made: list[Container] = []

    def run(**options: Any) -> Container:
        made.append(Container(image, tmp_path, **options))
        return made[-1]

    yield run
    for container in made:
        container.remove()


def test_image_says_what_it_is(image: Unpacked) -> None:
    """User, command, ports, volume, signal and labels are those that the documentation names."""
    config = image.config

    assert config["User"] == f"{USER}:{USER}"
    assert config["Entrypoint"] == ["mirror"]
    assert config["Cmd"] == ["serve", "--config", "/etc/mirror/mirror.yaml"]
    assert set(config["ExposedPorts"]) == {"5000/tcp", "5001/tcp"}
    assert set(config["Volumes"]) == {"/var/lib/mirror"}
    assert config["StopSignal"] == "SIGTERM"
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in config["Labels"].items()}
    assert labels["version"] == LABELS["VERSION"]
    assert labels["revision"] == LABELS["REVISION"]
    assert labels["source"] == LABELS["SOURCE"]
    assert labels["licenses"] == "Apache-2.0"


def test_version_that_nobody_names_is_that_of_the_package() -> None:
    """A build without arguments says the version that is built."""
    (version,) = re.findall(r"^ARG VERSION=(\S+)$", DOCKERFILE.read_text(), re.MULTILINE)

    assert version == __version__


def test_image_holds_what_serving_takes_and_no_more(image: Unpacked) -> None:
    """No pip, no package manager, no program that gives rights, nothing of the build; its size stays what we say."""
    licences = image.root / "usr/share/doc"
    names = {path.name for path in image.root.rglob("*") if not path.is_relative_to(licences)}
    unwanted = {"pip", "pip3", "setuptools", "ensurepip", "apt-get", "perl", "pip.conf", "pip.crt", "build", "tests"}
    files = [path for path in image.root.rglob("*") if path.is_file() and not path.is_symlink()]
    data = (image.root / "var/lib/mirror").stat()

    assert not names & unwanted
    assert [path for path in files if path.stat().st_mode & 0o6000] == []
    assert [path for path in files if path.stat().st_uid == USER] == []
    assert (data.st_uid, data.st_gid, data.st_mode & 0o777) == (USER, USER, 0o700)
    assert image.packed < 60 * MIB
    assert sum(path.stat().st_size for path in files) < 160 * MIB


async def test_image_serves_as_it_is(run: Run) -> None:
    """With the configuration that it brings it answers, is healthy, and keeps its cache in its volume alone."""
    port, admin = free_port(), free_port()
    container = run(
        env={
            "MIRROR_LISTEN": f"127.0.0.1:{port}",
            "MIRROR_ADMIN_LISTEN": f"127.0.0.1:{admin}",
            "HEALTH": f"http://127.0.0.1:{admin}/livez",
        }
    )
    assert await asyncio.to_thread(eventually, container.is_healthy, seconds=START, every=0.2)

    async with aiohttp.ClientSession() as session:
        assert await status(session, f"http://127.0.0.1:{port}/v2/") == 200
        assert await status(session, f"http://127.0.0.1:{admin}/readyz") == 200
    assert (await asyncio.to_thread(container.execute, "touch", "/opt/mirror/there")).returncode != 0
    verifies = await asyncio.to_thread(container.execute, "python3", "-c", "import grpc")  # for node-config verify
    assert verifies.returncode == 0, verifies.stderr
    assert any(container.data.iterdir())
    assert container.data.stat().st_mode & 0o777 == 0o700


async def test_container_that_is_stopped_ends_its_pulls_first(run: Run, tmp_path: Path, upstream: FakeRegistry) -> None:
    """SIGTERM makes it unready while the pull that runs gets all its bytes; then it exits 0."""
    blob = upstream.add_image("library/demo", "1", layers=[2 * MIB]).layers[0]
    rule = upstream.fault(blob, stall_at(MIB))
    port, admin = free_port(), free_port()
    config = tmp_path / "config"
    config.mkdir()
    settings = {
        "listen": f"127.0.0.1:{port}",
        "admin_listen": f"127.0.0.1:{admin}",
        "drain_delay": "1s",
        "storage": {"path": "/var/lib/mirror", "min_free": "0%"},
        "upstreams": {"docker.io": {"url": upstream.url}},
    }
    (config / "mirror.yaml").write_text(json.dumps(settings))
    container = run(config=config, env={"HEALTH": f"http://127.0.0.1:{admin}/livez"})
    assert await asyncio.to_thread(eventually, container.is_healthy, seconds=START, every=0.2)

    async with aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{port}/v2/library/demo"
        assert await status(session, f"{url}/manifests/1") == 200
        async with session.get(f"{url}/blobs/{blob.digest}") as answer:
            await rule.reached.wait()
            await asyncio.to_thread(container.ask_to_stop)
            await until_unready(f"http://127.0.0.1:{admin}/readyz")
            rule.release()
            assert await answer.read() == blob.content
    assert await asyncio.to_thread(container.wait) == 0


async def status(session: aiohttp.ClientSession, url: str) -> int:
    """The status of a GET."""
    async with session.get(url) as answer:
        return answer.status


async def until_unready(url: str) -> None:
    """Returns when the mirror says that it is leaving, or says nothing any more."""
    async with aiohttp.ClientSession() as session:
        for _ in range(1000):
            try:
                if await status(session, url) != 200:
                    return
            except aiohttp.ClientError:
                return
            await asyncio.sleep(0.02)
    raise AssertionError("it stays ready")

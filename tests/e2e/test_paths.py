"""A mirror's URL with a path, which names the upstream: as clients and other mirrors make requests of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.clients import Client, Fleet
from tests.e2e.clients.containerd import Containerd
from tests.e2e.clients.docker import Docker
from tests.e2e.conftest import HUB_REPOSITORY, OTHER_REPOSITORY
from tests.e2e.images import Image
from tests.e2e.mirrors import MirrorProcess
from tests.e2e.processes import free_port
from tests.e2e.programs import need
from tests.e2e.registries import Upstream
from tests.e2e.trixie import inside, need_trixie

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(60), pytest.mark.parametrize("upstream", ["plain"], indirect=True)]

IMAGE = f"docker.io/{HUB_REPOSITORY}:1"
OTHER_IMAGE = f"ghcr.io/{OTHER_REPOSITORY}:1"

HOSTS = """server = "http://127.0.0.1:1" # nobody: there is no way around the mirror
[host."http://127.0.0.1:{port}/{upstream}"]
  capabilities = ["pull", "resolve"]
"""


class Docker26(Docker):
    """dockerd of Debian 13 with the images where `example` keeps them."""

    def __init__(self, home: Path, mirror: str, example: str) -> None:
        need_trixie()
        need("docker")
        driver = "vfs" if example == "daemon.json" else "overlayfs"
        self._start(
            home, mirror, example=f"docker/{example}", driver=driver, enter=lambda argv: inside(*argv, visible=home)
        )


def test_containerd_asks_a_mirror_under_a_path(
    fleet: Fleet,
    other_image: Image,
    mirror: MirrorProcess,
    mirror_port: int,
    both_upstreams: dict[str, Upstream],
    tmp_path: Path,
) -> None:
    """It puts /v2/ behind the path of its host, and says ns= as well."""
    daemon = fleet.containerd(2)
    client = Containerd(daemon, snapshotter="overlayfs")
    client.empty()
    hosts = tmp_path / "hosts" / "ghcr.io" / "hosts.toml"
    hosts.parent.mkdir(parents=True)
    hosts.write_text(HOSTS.format(port=mirror_port, upstream="ghcr.io"))
    mirror.start({name: upstream.settings for name, upstream in both_upstreams.items()})

    daemon.ctr("images", "pull", "--snapshotter", "overlayfs", "--hosts-dir", hosts.parents[1], OTHER_IMAGE)

    client.use(OTHER_IMAGE, other_image)
    client.empty()
    assert mirror.counted("mirror_requests_total", upstream="ghcr.io", status="200") > 0
    assert mirror.counted("mirror_requests_total", upstream="docker.io") == 0


@pytest.mark.parametrize("example", ["daemon.json", "daemon-containerd-store.json"])
def test_docker_asks_a_mirror_under_a_path(
    image: Image,
    mirror: MirrorProcess,
    mirror_port: int,
    upstream: Upstream,
    tmp_path_factory: pytest.TempPathFactory,
    example: str,
) -> None:
    """It puts /v2/ behind the path of registry-mirrors, since version 24.0.9; from its graph store without ns=."""
    mirror.start({"docker.io": upstream.settings, "ghcr.io": {"url": "http://127.0.0.1:1"}}, default_upstream="ghcr.io")
    docker = Docker26(tmp_path_factory.mktemp("d"), f"127.0.0.1:{mirror_port}/docker.io", example)
    try:
        docker.pull(IMAGE)

        docker.use(IMAGE, image)
        assert mirror.counted("mirror_requests_total", upstream="docker.io", kind="blob", status="200") > 0
        assert mirror.counted("mirror_requests_total", upstream="ghcr.io") == 0
    finally:
        docker.stop()


@pytest.mark.parametrize("client", ["skopeo"], indirect=True)
def test_a_mirror_asks_a_mirror_under_a_path(
    client: Client,
    image: Image,
    other_image: Image,
    mirror: MirrorProcess,
    both_upstreams: dict[str, Upstream],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """One in front of another needs no more than its URL with each upstream's name."""
    port = free_port()
    behind = MirrorProcess(tmp_path_factory.mktemp("behind"), port)
    behind.start({name: upstream.settings for name, upstream in both_upstreams.items()})
    try:
        mirror.start({name: {"url": f"http://127.0.0.1:{port}/{name}"} for name in both_upstreams})
        for reference, wanted in ((IMAGE, image), (OTHER_IMAGE, other_image)):
            client.pull(reference)
            client.use(reference, wanted)

        for name in both_upstreams:
            assert behind.counted("mirror_requests_total", upstream=name, kind="blob", status="200") > 0
    finally:
        behind.stop()

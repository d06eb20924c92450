"""What clients do while the mirror is away: by default they go past it, and told to be strict they do not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.clients import Client, Docker, DockerOnContainerd, snippet
from tests.e2e.conftest import HUB_REPOSITORY
from tests.e2e.hub import Hub
from tests.e2e.images import Image
from tests.e2e.mirrors import MirrorProcess
from tests.e2e.registries import Upstream
from tests.e2e.test_pull import blobs_fetched

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(60),
    pytest.mark.parametrize("upstream", ["plain"], indirect=True),
]

IMAGE = f"docker.io/{HUB_REPOSITORY}:1"
FALLING_BACK = ["containerd", "containerd-cri", "containerd2-cri", "podman", "podman5", "buildah", "skopeo"]
STRICT = ["containerd", "containerd2-cri", "podman", "skopeo"]  # the rest reads the same files
REFUSED = r"connection refused"


@pytest.fixture
def restored(client: Client) -> Iterator[Client]:
    """The client, whose configuration a test may change."""
    before = client.config.read_text()
    yield client
    client.config.write_text(before)


@pytest.mark.parametrize("client", FALLING_BACK, indirect=True)
def test_client_goes_past_a_mirror_that_is_away(restored: Client, image: Image, upstream: Upstream) -> None:
    """Nobody listens where the mirror should be, and the pull succeeds at the registry itself."""
    place_of_docker_io(restored, upstream)

    restored.pull(IMAGE)

    restored.use(IMAGE, image)
    assert blobs_fetched(upstream.registry).keys() >= image.blobs


@pytest.mark.parametrize("client", STRICT, indirect=True)
def test_strict_client_waits_for_the_mirror(
    restored: Client, image: Image, mirror: MirrorProcess, mirror_port: int, upstream: Upstream
) -> None:
    """With the strict example nothing is asked past the mirror; once the mirror is back the pull succeeds."""
    be_strict(restored, f"127.0.0.1:{mirror_port}")

    with pytest.raises(pytest.fail.Exception, match=REFUSED) as failed:
        restored.pull(IMAGE)

    assert f"127.0.0.1:{mirror_port}" in str(failed.value)
    assert "registry-1.docker.io" not in str(failed.value)
    mirror.start({"docker.io": upstream.settings})
    restored.pull(IMAGE)
    restored.use(IMAGE, image)


@pytest.mark.parametrize("program", [Docker, DockerOnContainerd], ids=["graph-store", "containerd-store"])
def test_docker_goes_past_a_mirror_that_is_away(
    program: type[Docker | DockerOnContainerd],
    image: Image,
    mirror_port: int,
    tmp_path_factory: pytest.TempPathFactory,
    upstream: Upstream,
) -> None:
    """Docker knows docker.io by heart; nobody listens where the mirror should be, and it asks there."""
    home = tmp_path_factory.mktemp("d")
    with Hub(home, int(upstream.settings["url"].rpartition(":")[2])) as hub:
        client = program(home, f"127.0.0.1:{mirror_port}", hub=hub)
        try:
            client.pull(IMAGE)
            client.use(IMAGE, image)
        finally:
            client.stop()
    assert blobs_fetched(upstream.registry).keys() == image.blobs


def place_of_docker_io(client: Client, upstream: Upstream) -> None:
    """Makes the client believe that docker.io itself is at `upstream`."""
    address = upstream.settings["url"].removeprefix("http://")
    text = client.config.read_text()
    if client.config.suffix == ".toml":
        lines = [line for line in text.splitlines() if not line.startswith("server = ")]
        text = "\n".join([f'server = "http://{address}"', *lines])
    else:
        text = text.replace('location = "docker.io"', f'location = "{address}"\ninsecure = true')
    client.config.write_text(text)


def be_strict(client: Client, mirror: str) -> None:
    """Gives the client the example that knows the mirror alone."""
    strict = (
        "containerd/_default/hosts-strict.toml"
        if client.config.suffix == ".toml"
        else "containers/registries-strict.conf"
    )
    snippet(strict, mirror, client.config)

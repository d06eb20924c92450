"""Real clients pull over TLS, with the authority and the certificates that their own configuration names."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.certificates import CA, CLIENT, MUTUAL, SERVER
from tests.e2e.clients import Client, Docker, snippet
from tests.e2e.conftest import HUB_REPOSITORY
from tests.e2e.images import Image
from tests.e2e.mirrors import MirrorProcess
from tests.e2e.processes import eventually
from tests.e2e.registries import Upstream

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(60),  # a daemon may have to start first
    pytest.mark.parametrize("upstream", ["plain"], indirect=True),
]

IMAGE = f"docker.io/{HUB_REPOSITORY}:1"
PLAIN_TLS = {"certificate": str(SERVER.certificate), "key": str(SERVER.key)}
MUTUAL_TLS = {**PLAIN_TLS, "client_ca": str(MUTUAL.client_ca)}


@pytest.fixture
def restored(client: Client) -> Iterator[Client]:
    """The client, whose configuration a test may change."""
    before = client.config.read_text()
    yield client
    client.config.write_text(before)
    shutil.rmtree(client.config.parent / ".config", ignore_errors=True)


def certificates(directory: Path, *, of_client: bool) -> Path:
    """What Docker and podman look for in a registry's directory."""
    directory.mkdir(parents=True)
    shutil.copy(CA, directory / "ca.crt")
    if of_client:
        for source, name in zip(CLIENT, ("client.cert", "client.key"), strict=True):
            shutil.copy(source, directory / name)
    return directory


def use_tls(client: Client, mirror: str, home: Path, *, of_client: bool) -> None:
    """Gives the client the example for TLS, and the files that it names; a certificate of its own where it is to have
    one.
    """
    if client.config.name == "hosts.toml":
        held = certificates(home / "certificates", of_client=of_client)
        text = snippet("containerd/hosts-tls.toml", mirror, client.config).read_text()
        lines = text.replace("/etc/mirror", str(held)).splitlines()
        client.config.write_text("\n".join(line for line in lines if of_client or "client = " not in line))
    else:
        snippet("containers/registries-tls.conf", mirror, client.config)
        certificates(client.config.parent / ".config" / "containers" / "certs.d" / mirror, of_client=of_client)


@pytest.mark.parametrize(
    ("client", "tls"),
    [
        ("containerd", MUTUAL_TLS),
        ("containerd2-cri", PLAIN_TLS),
        ("podman", MUTUAL_TLS),
        ("buildah", PLAIN_TLS),
        ("skopeo", PLAIN_TLS),
    ],
    indirect=["client"],
    ids=lambda value: value if isinstance(value, str) else "mutual" if "client_ca" in value else "tls",
)
def test_client_pulls_over_tls(
    restored: Client, image: Image, mirror: MirrorProcess, upstream: Upstream, tls: dict[str, str], tmp_path: Path
) -> None:
    """By an authority that its configuration names; where the mirror asks for it, with a certificate of its own."""
    mirror.start({"docker.io": upstream.settings}, tls=tls)
    use_tls(restored, mirror.address, tmp_path, of_client="client_ca" in tls)

    restored.pull(IMAGE)

    restored.use(IMAGE, image)
    assert eventually(lambda: mirror.counted("mirror_requests_total", kind="blob", status="200") >= len(image.blobs))


def test_docker_pulls_over_tls(
    image: Image, mirror: MirrorProcess, mirror_port: int, upstream: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """From a mirror that serves nobody without a certificate: Docker has a directory for it, with an authority and a
    certificate of its own; and nothing is pulled before they are there.
    """
    if not socket.has_ipv6 or not Path("/proc/net/if_inet6").exists():
        pytest.skip("this machine has no IPv6")
    home = tmp_path_factory.mktemp("c")
    # Docker trusts whatever is at 127.0.0.0/8, and looks for no files.
    address = f"[::1]:{mirror_port}"
    mirror.start({"docker.io": upstream.settings}, tls=MUTUAL_TLS, listen=address)
    (home / "etc").mkdir()
    docker = Docker(home, address, etc=home / "etc")
    try:
        with pytest.raises(pytest.fail.Exception, match="exited"):
            docker.pull(IMAGE)
        certificates(home / "etc" / "certs.d" / address, of_client=True)
        docker.pull(IMAGE)
        docker.use(IMAGE, image)
        docker.empty()
    finally:
        docker.stop()
    assert eventually(lambda: mirror.counted("mirror_requests_total", kind="blob", status="200") >= len(image.blobs))


@pytest.mark.parametrize("client", ["containerd", "skopeo"], indirect=True)
def test_client_trusts_no_other_authority(
    restored: Client, mirror: MirrorProcess, upstream: Upstream, tmp_path: Path
) -> None:
    """Without the file of the authority nothing is pulled through the mirror: the test above proves something."""
    mirror.start({"docker.io": upstream.settings}, tls=PLAIN_TLS)
    use_tls(restored, mirror.address, tmp_path, of_client=False)
    text = restored.config.read_text()
    restored.config.write_text("\n".join(line for line in text.splitlines() if "ca = " not in line))
    shutil.rmtree(restored.config.parent / ".config", ignore_errors=True)

    with pytest.raises(pytest.fail.Exception, match="exited"):
        restored.pull(IMAGE)

    assert mirror.counted("mirror_requests_total") == 0

"""`mirror node-config verify` on a node with a real containerd 2: what is seen, and what is not."""

from __future__ import annotations

import pytest
from click.testing import CliRunner, Result

from mirror.cli import main
from tests.e2e.clients import Fleet
from tests.e2e.clients.containerd import Crictl, Daemon
from tests.e2e.conftest import HUB_REPOSITORY
from tests.e2e.mirrors import MirrorProcess
from tests.e2e.registries import Upstream

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(60)]

IMAGE = f"docker.io/{HUB_REPOSITORY}:1"


@pytest.mark.parametrize("upstream", ["plain"], indirect=True)
@pytest.mark.parametrize("client", ["containerd2-cri"], indirect=True)
def test_containerds_pull_is_seen_where_the_mirror_was_asked(
    client: Crictl, fleet: Fleet, mirror: MirrorProcess, upstream: Upstream
) -> None:
    """Whether the node had the image or not: seen through the mirror, and not where containerd asks the registry."""
    mirror.start({"docker.io": upstream.settings})
    node = fleet.containerd(2)

    absent = _verify(node, mirror, "--clean")
    node.sweep()
    assert node.is_empty(), "--clean removes what was brought"
    client.pull(IMAGE)
    held = _verify(node, mirror)
    told = client.config.read_text()
    client.config.write_text(told.replace(mirror.url, upstream.settings["url"]))
    try:
        around = _verify(node, mirror)
    finally:
        client.config.write_text(told)

    assert (absent.exit_code, held.exit_code, around.exit_code) == (0, 0, 1), (
        absent.output,
        held.output,
        around.output,
    )
    assert "seen: the mirror answered containerd " in absent.output
    assert "not seen: containerd " in around.output


def _verify(node: Daemon, mirror: MirrorProcess, *options: str) -> Result:
    arguments = ["--mirror", mirror.url, "--admin", mirror.admin_url, "--cri", f"unix://{node.socket}"]
    return CliRunner().invoke(main, ["node-config", "verify", "--image", IMAGE, *arguments, *options])

"""The upstream fails in the middle of a real client's pull, and the client notices nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.clients import Client
from tests.e2e.conftest import HUB_REPOSITORY
from tests.e2e.images import Image, build
from tests.e2e.mirrors import MirrorProcess
from tests.e2e.troubled import TroubledUpstream
from tests.upstream import FakeRegistry, Fault, Rule, reset, stall, stall_at, status, truncate

pytestmark = [pytest.mark.e2e, pytest.mark.parametrize("client", ["dockerd", "containerd"], indirect=True)]

IMAGE = f"docker.io/{HUB_REPOSITORY}:1"
LAYER = 8 << 20
PART = 3 << 20

# What a client would wait out, were it not for the mirror, is short here.
TIMEOUTS = {"try": "1s", "stall": "1s"}

IN_A_BLOB = {
    "cut": truncate(at=PART),
    "reset": reset(at=PART),
    "stalled": stall_at(PART),
    "503": status(503),
    "429": status(429, retry_after=1),
}
ON_EACH_MANIFEST = {
    "cut": truncate(at=100),
    "reset": reset(at=100),
    "stalled": stall(),
    "503": status(503),
    "429": status(429, retry_after=1),
}


@pytest.fixture(scope="session")
def large_image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """An image with a layer in whose middle there is room for trouble."""
    return build(tmp_path_factory.mktemp("image") / "oci", greeting="pulled in spite of it", random_bytes=LAYER)


@pytest.fixture
def troubled(large_image: Image) -> Iterator[TroubledUpstream]:
    """docker.io, in trouble."""
    with TroubledUpstream() as upstream:
        upstream.hold(large_image, HUB_REPOSITORY, "1")
        yield upstream


@pytest.mark.parametrize("fault", IN_A_BLOB.values(), ids=IN_A_BLOB.keys())
def test_trouble_in_a_blob_stays_upstream(
    client: Client, fault: Fault, large_image: Image, mirror: MirrorProcess, troubled: TroubledUpstream
) -> None:
    """Whatever becomes of the upstream's answer in the middle of a layer, the pull succeeds and the image runs."""
    trouble = in_the_layer(troubled, fault)
    mirror.start({"docker.io": troubled.settings}, timeouts=TIMEOUTS)

    client.pull(IMAGE)

    client.use(IMAGE, large_image)
    assert trouble.hits == 1


@pytest.mark.parametrize("fault", ON_EACH_MANIFEST.values(), ids=ON_EACH_MANIFEST.keys())
def test_trouble_with_manifests_stays_upstream(
    client: Client, fault: Fault, large_image: Image, mirror: MirrorProcess, troubled: TroubledUpstream
) -> None:
    """Whatever becomes of the upstream's first answer about each manifest, the pull succeeds and the image runs."""
    rules = troubled.do(
        lambda fake: [
            fake.fault(manifest, fault, times=1) for manifest in fake.repository(HUB_REPOSITORY).manifests.values()
        ]
    )
    mirror.start({"docker.io": troubled.settings}, timeouts=TIMEOUTS)

    client.pull(IMAGE)

    client.use(IMAGE, large_image)
    assert sum(rule.hits for rule in rules) == 2  # the index, and the manifest for this machine


def in_the_layer(upstream: TroubledUpstream, fault: Fault) -> Rule:
    """Spoils the upstream's first answer with the large layer."""

    def switch_on(fake: FakeRegistry) -> Rule:
        blobs = fake.repository(HUB_REPOSITORY).blobs.values()
        return fake.fault(max(blobs, key=lambda blob: blob.size), fault, times=1)

    return upstream.do(switch_on)

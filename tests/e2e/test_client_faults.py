"""The upstream fails in the middle of a real client's pull, and the client notices nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e.clients import Client, Fleet
from tests.e2e.conftest import HUB_REPOSITORY
from tests.e2e.images import Image, build
from tests.e2e.mirrors import MirrorProcess
from tests.e2e.troubled import TroubledUpstream
from tests.upstream import Blob, FakeRegistry, Rule, flip, reset, stall, stall_at, status, truncate

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(60)]

CLIENTS = ["dockerd", "containerd", "podman"]
EACH_CLIENT = pytest.mark.parametrize("client", CLIENTS, indirect=True)

IMAGE = f"docker.io/{HUB_REPOSITORY}:1"
LAYER = 8 << 20
PART = 3 << 20

# What the mirror waits out before it asks again is short here.
TIMEOUTS = {"try": "1s", "stall": "1s"}

# What becomes of an answer with the large layer, and of one with a manifest.
TROUBLE = {
    "cut": (truncate(at=PART), truncate(at=100)),
    "reset": (reset(at=PART), reset(at=100)),
    "stalled": (stall_at(PART), stall()),
    "503": (status(503), status(503)),
    "429": (status(429, retry_after=1), status(429, retry_after=1)),
}

# Of their successors, each is cut off once: enough to see that it is no different.
MET = [
    *((client, kind) for client in CLIENTS for kind in TROUBLE),
    *((client, "cut") for client in ("dockerd-containerd-store", "containerd2-cri", "podman5")),
]


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


@pytest.mark.parametrize(("client", "kind"), MET, indirect=["client"])
def test_trouble_stays_upstream(
    client: Client, kind: str, large_image: Image, mirror: MirrorProcess, troubled: TroubledUpstream
) -> None:
    """The upstream fails once at each manifest and in the middle of a layer; the pull succeeds and the image runs."""
    in_the_layer, on_a_manifest = TROUBLE[kind]

    def begin(fake: FakeRegistry) -> list[Rule]:
        manifests = fake.repository(HUB_REPOSITORY).manifests.values()
        return [
            fake.fault(largest(fake), in_the_layer, times=1),
            *(fake.fault(manifest, on_a_manifest, times=1) for manifest in manifests),
        ]

    rules = troubled.do(begin)
    mirror.start({"docker.io": troubled.settings}, timeouts=TIMEOUTS)

    client.pull(IMAGE)

    client.use(IMAGE, large_image)
    assert sum(rule.hits for rule in rules) >= 3  # the layer, the index, and the manifest for this machine at least


def test_clients_at_once_share_one_fetch_through_trouble(
    fleet: Fleet, large_image: Image, mirror: MirrorProcess, troubled: TroubledUpstream
) -> None:
    """All kinds of clients pull at once while the layer is cut: each blob leaves the upstream once, that one in two."""
    trouble = troubled.do(lambda fake: fake.fault(largest(fake), truncate(at=PART), times=1))
    clients = [fleet.client(name) for name in CLIENTS]
    for client in clients:
        client.empty()
    mirror.start({"docker.io": troubled.settings}, timeouts=TIMEOUTS)

    with ThreadPoolExecutor(len(clients)) as pool:
        for pulled in [pool.submit(client.pull, IMAGE) for client in clients]:
            pulled.result()

    for client in clients:
        client.use(IMAGE, large_image)
        client.empty()
    layer = troubled.do(largest)
    asked = troubled.do(lambda fake: {digest: fake.requests_for(digest) for digest in large_image.blobs})
    assert asked == {**dict.fromkeys(large_image.blobs, 1), str(layer.digest): 2}
    assert troubled.do(lambda fake: fake.bytes_for(layer)) == layer.size
    assert trouble.hits == 1


@EACH_CLIENT
def test_wrong_byte_from_upstream_costs_one_pull_at_most(
    client: Client, large_image: Image, mirror: MirrorProcess, troubled: TroubledUpstream
) -> None:
    """A client never takes a layer with a wrong byte for whole, and its next pull gets the right one."""
    trouble = troubled.do(lambda fake: fake.fault(largest(fake), flip(PART), times=1))
    mirror.start({"docker.io": troubled.settings}, timeouts=TIMEOUTS)

    with contextlib.suppress(pytest.fail.Exception):
        client.pull(IMAGE)
        client.use(IMAGE, large_image)
    client.empty()
    client.pull(IMAGE)

    client.use(IMAGE, large_image)
    assert trouble.hits == 1
    assert mirror.counted("mirror_digest_mismatches_total") == 1


def largest(fake: FakeRegistry) -> Blob:
    """The large layer."""
    return max(fake.repository(HUB_REPOSITORY).blobs.values(), key=lambda blob: blob.size)

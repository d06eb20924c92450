"""containerd 2 with `concurrent_layer_fetch_buffer`: it asks for everything from some byte on, and leaves early."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e import registries
from tests.e2e.clients import Client, Containerd, Crictl, Fleet
from tests.e2e.conftest import HUB_REPOSITORY, stored
from tests.e2e.images import Image, build
from tests.e2e.mirrors import MirrorProcess
from tests.e2e.processes import eventually
from tests.e2e.registries import Upstream

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(60)]

IMAGE = f"docker.io/{HUB_REPOSITORY}:1"
BUFFER = 2 << 20
LAYER = 8 * BUFFER  # which is then fetched in eight parts

FRONT_DOORS: dict[str, Callable[[Fleet], Client]] = {
    "ctr": lambda fleet: Containerd(fleet.containerd(2, fetch_buffer=BUFFER), snapshotter="overlayfs"),
    "cri": lambda fleet: Crictl(fleet.containerd(2, fetch_buffer=BUFFER)),
}


@pytest.fixture(scope="session")
def image_in_parts(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """An image with a layer of many buffers."""
    return build(tmp_path_factory.mktemp("image") / "oci", greeting="pulled in parts", random_bytes=LAYER)


@pytest.fixture
def upstream(tmp_path: Path, image_in_parts: Image) -> Iterator[Upstream]:
    """docker.io with that image."""
    store = tmp_path / "store"
    store.mkdir()
    made = registries.plain(stored(store, image_in_parts, HUB_REPOSITORY), tmp_path)
    yield made
    made.stop()


@pytest.fixture(params=FRONT_DOORS.keys())
def client(request: pytest.FixtureRequest, fleet: Fleet) -> Iterator[Client]:
    """containerd 2 with the option, holding no image."""
    used = FRONT_DOORS[request.param](fleet)
    used.empty()
    yield used
    used.stop()
    used.empty()


def test_parts_asked_for_at_once_cost_the_upstream_one_blob(
    client: Client, image_in_parts: Image, mirror: MirrorProcess, upstream: Upstream
) -> None:
    """Cold and warm, a client that hangs up after each part gets its image, the upstream sends hardly more than the
    blobs, and nobody who reads our log is troubled."""
    mirror.start({"docker.io": upstream.settings}, max_connections=1000)
    blobs = [image_in_parts.layout / "blobs" / "sha256" / digest.partition(":")[2] for digest in image_in_parts.blobs]

    client.pull(IMAGE)

    client.use(IMAGE, image_in_parts)
    assert eventually(lambda: mirror.counted("mirror_downloads_in_flight") == 0)
    sent = sum(asked.size for asked in upstream.registry.asked() if asked.method == "GET" and "/blobs/" in asked.path)
    assert sent <= 1.1 * sum(blob.stat().st_size for blob in blobs)
    cold = upstream.registry.asked()

    client.empty()
    client.pull(IMAGE)

    client.use(IMAGE, image_in_parts)
    assert [asked for asked in upstream.registry.asked()[len(cold) :] if asked.content] == []
    mirror.stop()
    lines = [json.loads(line) for line in mirror.log.read_text().splitlines()]
    assert [line for line in lines if line["level"] != "info"] == []
    parts = [line for line in lines if line.get("kind") == "blob" and line["status"] == 206]
    assert len(parts) >= LAYER // BUFFER, "the option has no effect"

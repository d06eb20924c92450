"""BuildKit builds on images that it pulls through the mirror."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from tests.e2e.buildkit import BuildKit
from tests.e2e.conftest import HUB_REPOSITORY, OTHER_REPOSITORY
from tests.e2e.images import Image
from tests.e2e.mirrors import MirrorProcess
from tests.e2e.processes import eventually
from tests.e2e.registries import Upstream
from tests.e2e.test_pull import blobs_fetched

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(60), pytest.mark.parametrize("upstream", ["plain"], indirect=True)]

DOCKERFILE = """
FROM {base}
COPY note /note
RUN ["/bin/busybox", "sh", "-c", "busybox tr a-z A-Z </note >/ran"]
"""


@pytest.fixture(scope="session")
def shared_buildkit(tmp_path_factory: pytest.TempPathFactory, mirror_port: int) -> Iterator[BuildKit]:
    """A BuildKit daemon that uses the mirror."""
    made = BuildKit(tmp_path_factory.mktemp("b"), f"127.0.0.1:{mirror_port}")
    yield made
    made.stop()


@pytest.fixture
def buildkit(shared_buildkit: BuildKit) -> Iterator[BuildKit]:
    """The same, holding nothing."""
    shared_buildkit.empty()
    yield shared_buildkit
    shared_buildkit.empty()


@pytest.mark.parametrize(
    ("upstream_name", "repository"), [("docker.io", HUB_REPOSITORY), ("ghcr.io", OTHER_REPOSITORY)]
)
def test_second_build_asks_upstream_for_nothing(
    upstream_name: str,
    repository: str,
    buildkit: BuildKit,
    mirror: MirrorProcess,
    both_upstreams: dict[str, Upstream],
    image: Image,
    other_image: Image,
) -> None:
    """A build fetches each blob of its base once; an emptied BuildKit builds again without a question for content.

    Its mirror of docker.io has no path: ns= names the upstream. That of ghcr.io has one: both name it.
    """
    base = {"docker.io": image, "ghcr.io": other_image}[upstream_name]
    registry = both_upstreams[upstream_name].registry
    dockerfile = DOCKERFILE.format(base=f"{upstream_name}/{repository}:1")
    mirror.start({name: upstream.settings for name, upstream in both_upstreams.items()})

    built = buildkit.build(dockerfile, note="cold")
    assert built.top["ran"] == b"COLD"
    assert set(built.layers[:-2]) < base.blobs
    cold = registry.asked()
    assert blobs_fetched(registry) == Counter(base.blobs)

    buildkit.empty()
    built = buildkit.build(dockerfile, note="warm")

    assert built.top["ran"] == b"WARM"
    assert set(built.layers[:-2]) < base.blobs
    assert [asked for asked in registry.asked()[len(cold) :] if asked.content] == []
    assert eventually(lambda: mirror.counted("mirror_requests_total", kind="blob", result="hit") >= len(base.blobs))

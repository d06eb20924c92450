"""Real clients pull real images through the mirror from a real registry."""

from __future__ import annotations

import base64
from collections import Counter

import pytest

from tests.e2e.clients import CLIENTS, Client, Docker
from tests.e2e.conftest import HUB_REPOSITORY, OTHER_REPOSITORY
from tests.e2e.images import Image
from tests.e2e.mirrors import MirrorProcess
from tests.e2e.processes import eventually
from tests.e2e.registries import KINDS, PASSWORD, USERNAME, Upstream, Witness
from tests.pairs import pairwise

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(60)]  # a daemon may have to start first

IMAGE = f"docker.io/{HUB_REPOSITORY}:1"
OTHER_IMAGE = f"ghcr.io/{OTHER_REPOSITORY}:1"

NAMES: dict[tuple[str, ...], str] = {
    (choice.client, choice.generation, choice.store): name for name, choice in CLIENTS.items()
}
PAIRS = [(NAMES[row[:3]], row[3]) for row in pairwise((*form, kind) for form in NAMES for kind in KINDS)]
"""Client, generation, store and upstream in pairs."""
COVERED = [*PAIRS, *((name, KINDS[0]) for name in CLIENTS if name not in dict(PAIRS))]
"""The same, and each client in each of its forms once at least."""

# Where one client or one kind of upstream is enough to show it.
SKOPEO = pytest.mark.parametrize("client", ["skopeo"], indirect=True)
PLAIN = pytest.mark.parametrize("upstream", ["plain"], indirect=True)


def blobs_fetched(registry: Witness) -> Counter[str]:
    """How often each blob's bytes have left the registry."""
    return Counter(
        asked.path.rpartition("/")[2].partition("?")[0]
        for asked in registry.asked()
        if asked.method == "GET" and "/blobs/" in asked.path and asked.status in (200, 206)
    )


@pytest.mark.parametrize(("client", "upstream"), COVERED, indirect=True)
def test_second_pull_asks_upstream_for_nothing(
    client: Client, image: Image, mirror: MirrorProcess, upstream: Upstream
) -> None:
    """Cold, a blob leaves the upstream once; an emptied client then pulls again without a question for content."""
    mirror.start({"docker.io": upstream.settings})
    client.pull(IMAGE)
    cold = upstream.registry.asked()
    fetched = blobs_fetched(upstream.registry)
    assert fetched.keys() >= image.blobs  # containerd 2 wants the other platform's config as well
    assert set(fetched.values()) == {1}

    client.empty()
    client.pull(IMAGE)
    client.use(IMAGE, image)

    assert [asked for asked in upstream.registry.asked()[len(cold) :] if asked.content] == []
    # The bytes came from the mirror, not out of a client that was not empty after all. It counts after the last byte.
    assert eventually(lambda: mirror.counted("mirror_requests_total", kind="blob", result="hit") >= len(image.blobs))


@PLAIN
@pytest.mark.parametrize("tag_ttl", ["5m", "0s"], ids=["fresh", "expired"])
def test_cached_images_outlive_the_upstream(
    client: Client, image: Image, mirror: MirrorProcess, upstream: Upstream, tag_ttl: str
) -> None:
    """With the upstream stopped a cached image still pulls, tag fresh or not, and it does after a restart as well."""
    upstreams = {"docker.io": upstream.settings}
    settings = {"tag_ttl": tag_ttl, "timeouts": {"stale_after": "500ms"}}
    mirror.start(upstreams, **settings)
    client.pull(IMAGE)
    upstream.stop()

    client.empty()
    client.pull(IMAGE)
    client.use(IMAGE, image)

    mirror.stop()
    mirror.start(upstreams, **settings)
    client.empty()
    client.pull(IMAGE)
    client.use(IMAGE, image)


@SKOPEO
@PLAIN
def test_crash_loses_nothing_that_was_held(
    client: Client, image: Image, mirror: MirrorProcess, upstream: Upstream
) -> None:
    """After SIGKILL the mirror starts again and serves, byte for byte and without the upstream, what it held before."""
    upstreams = {"docker.io": upstream.settings}
    mirror.start(upstreams)
    client.pull(IMAGE)
    # The client has its last byte before the blob's file is on disk; what is not there yet is not held.
    assert eventually(lambda: mirror.counted("mirror_downloads_in_flight") == 0)
    mirror.kill()
    upstream.stop()

    mirror.start(upstreams)
    client.empty()
    client.pull(IMAGE)

    client.use(IMAGE, image)


@pytest.mark.parametrize("client", ["containerd", "containerd2-cri", "podman", "skopeo", "crio"], indirect=True)
@PLAIN
def test_client_names_the_upstream(
    client: Client, other_image: Image, mirror: MirrorProcess, both_upstreams: dict[str, Upstream]
) -> None:
    """Whether a client says with ns= or in the path which registry it means, it gets that registry's image."""
    mirror.start({name: upstream.settings for name, upstream in both_upstreams.items()})

    client.pull(OTHER_IMAGE)

    client.use(OTHER_IMAGE, other_image)
    assert blobs_fetched(both_upstreams["ghcr.io"].registry) == Counter(other_image.blobs)
    assert both_upstreams["docker.io"].registry.asked() == []


@pytest.mark.parametrize("client", ["dockerd", "dockerd-containerd-store"], indirect=True)
@PLAIN
def test_docker_pulls_all_tags(client: Client, image: Image, mirror: MirrorProcess, upstream: Upstream) -> None:
    """`docker pull --all-tags` gets the list through the mirror too, and the same with the upstream stopped."""
    assert isinstance(client, Docker)
    mirror.start({"docker.io": upstream.settings}, tag_ttl="0s", timeouts={"stale_after": "500ms"})
    client.pull_all_tags(f"docker.io/{HUB_REPOSITORY}")
    client.use(IMAGE, image)
    upstream.stop()

    client.empty()
    client.pull_all_tags(f"docker.io/{HUB_REPOSITORY}")

    client.use(IMAGE, image)


@pytest.mark.parametrize("client", ["dockerd-containerd-store", "crio"], indirect=True)
@PLAIN
def test_client_names_docker_hub_as_well(
    client: Client, image: Image, mirror: MirrorProcess, both_upstreams: dict[str, Upstream]
) -> None:
    """A client that names every registry gets Docker Hub's image even where another one is the default."""
    upstreams = {name: upstream.settings for name, upstream in both_upstreams.items()}
    mirror.start(upstreams, default_upstream="ghcr.io")

    client.pull(IMAGE)

    client.use(IMAGE, image)
    assert blobs_fetched(both_upstreams["docker.io"].registry) == Counter(image.blobs)
    assert both_upstreams["ghcr.io"].registry.asked() == []


@SKOPEO
@pytest.mark.parametrize("upstream", ["bearer"], indirect=True)
def test_one_token_serves_a_whole_pull(client: Client, mirror: MirrorProcess, upstream: Upstream) -> None:
    """However many blobs are fetched at once, the upstream's token endpoint is asked once for the one scope."""
    mirror.start({"docker.io": upstream.settings})

    client.pull(IMAGE)

    assert upstream.tokens is not None
    assert upstream.tokens.scopes == [f"repository:{HUB_REPOSITORY}:pull"]


@SKOPEO
@pytest.mark.parametrize("upstream", ["htpasswd", "bearer"], indirect=True)
def test_password_stays_out_of_what_we_write(client: Client, mirror: MirrorProcess, upstream: Upstream) -> None:
    """Neither the log nor a single file of the cache holds the upstream's password."""
    mirror.start({"docker.io": upstream.settings})

    client.pull(IMAGE)

    mirror.stop()
    written = [mirror.log, *(path for path in mirror.data.rglob("*") if path.is_file())]
    secrets = [PASSWORD.encode(), base64.b64encode(f"{USERNAME}:{PASSWORD}".encode())]
    assert [path for path in written if any(secret in path.read_bytes() for secret in secrets)] == []

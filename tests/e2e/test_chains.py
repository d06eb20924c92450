"""The mirror behind and before other pull-through caches, and behind itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.conftest import HUB_REPOSITORY, OTHER_REPOSITORY
from tests.e2e.images import Image
from tests.e2e.mirrors import MirrorProcess
from tests.e2e.processes import free_port
from tests.e2e.programs import need, run
from tests.e2e.registries import Registry, Upstream

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(60)]

PLAIN = pytest.mark.parametrize("upstream", ["plain"], indirect=True)
DISTRIBUTIONS = pytest.mark.parametrize("program", ["docker-registry", "registry3"])
"""Versions 2.8 and 3 of CNCF Distribution."""

StartProxy = Callable[[str, str], Registry]


@pytest.fixture
def start_proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartProxy]:
    """Starts a Distribution program as an empty pull-through cache of a URL."""
    with ExitStack() as stack:

        def start(program: str, url: str) -> Registry:
            home = tmp_path_factory.mktemp("proxy")
            made = Registry(home / "store", home, proxy=url, program=program)
            stack.callback(made.stop)
            return made

        yield start


def copy(address: str, repository: str, image: Image, target: Path) -> None:
    """Pulls all platforms of an image, as they are, into an empty directory; what came has to be that image."""
    need("skopeo")
    run(
        "skopeo", "--insecure-policy", "copy", "--quiet", "--all", "--preserve-digests", "--src-tls-verify=false",
        f"docker://{address}/{repository}:1", f"oci:{target}:image", home=target.parent,
    )  # fmt: skip
    (came,) = json.loads((target / "index.json").read_text())["manifests"]
    assert came["digest"] == image.digest
    kept = {f"sha256:{path.name}" for path in (target / "blobs" / "sha256").iterdir()}
    assert kept >= image.blobs


def contents(upstream: Upstream) -> list[str]:
    """The paths of what was asked of the upstream, manifests and blobs alone."""
    return [asked.path for asked in upstream.registry.asked() if asked.content]


@PLAIN
@DISTRIBUTIONS
def test_a_distribution_proxy_pulls_through_the_mirror(
    image: Image, mirror: MirrorProcess, upstream: Upstream, start_proxy: StartProxy, tmp_path: Path, program: str
) -> None:
    """Cold, it finds the lengths and digests that it needs; a second one costs the upstream nothing, nor needs it."""
    mirror.start({"docker.io": upstream.settings})

    copy(start_proxy(program, mirror.url).address, HUB_REPOSITORY, image, tmp_path / "first")
    asked = contents(upstream)
    copy(start_proxy(program, mirror.url).address, HUB_REPOSITORY, image, tmp_path / "second")
    assert contents(upstream) == asked

    upstream.stop()
    copy(start_proxy(program, mirror.url).address, HUB_REPOSITORY, image, tmp_path / "third")


@PLAIN
@DISTRIBUTIONS
def test_the_mirror_pulls_through_a_distribution_proxy(
    image: Image, mirror: MirrorProcess, upstream: Upstream, start_proxy: StartProxy, tmp_path: Path, program: str
) -> None:
    """An empty one: everything comes through it once, and then from the mirror, also without it."""
    proxy = start_proxy(program, upstream.settings["url"])
    mirror.start({"docker.io": {"url": proxy.url}})

    copy(mirror.address, HUB_REPOSITORY, image, tmp_path / "first")
    assert contents(upstream)
    proxy.stop()
    copy(mirror.address, HUB_REPOSITORY, image, tmp_path / "second")


@PLAIN
def test_a_mirror_pulls_several_registries_through_a_mirror(
    image: Image,
    other_image: Image,
    mirror: MirrorProcess,
    both_upstreams: dict[str, Upstream],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Each by the far one's URL with the registry's name as its path; what they passed on, they hold."""
    far = MirrorProcess(tmp_path_factory.mktemp("far"), free_port())
    far.start({name: upstream.settings for name, upstream in both_upstreams.items()})
    try:
        mirror.start({name: {"url": f"{far.url}/{name}"} for name in both_upstreams})
        copy(mirror.address, HUB_REPOSITORY, image, tmp_path / "hub")
        copy(mirror.address, f"ghcr.io/{OTHER_REPOSITORY}", other_image, tmp_path / "other")
    finally:
        far.stop()
    copy(mirror.address, HUB_REPOSITORY, image, tmp_path / "hub-again")
    copy(mirror.address, f"ghcr.io/{OTHER_REPOSITORY}", other_image, tmp_path / "other-again")
    for upstream in both_upstreams.values():
        whole = [
            asked.path
            for asked in upstream.registry.asked()
            if asked.content and (asked.method, asked.status) == ("GET", 200)
        ]
        assert len(whole) == len(
            set(whole)
        )  # a part may be asked for, as proof, where the other one had the blob first

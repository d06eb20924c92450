"""Who stands where: an upstream and a mirror per test, and daemons that all tests share, since only these are slow."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.e2e import cgroups, registries
from tests.e2e.clients import Client, Fleet
from tests.e2e.images import Image, build
from tests.e2e.mirrors import MirrorProcess
from tests.e2e.processes import held_port, tail
from tests.e2e.redirecting import RedirectingRegistry
from tests.e2e.registries import Upstream
from tests.e2e.tokens import SigningKey

HUB_REPOSITORY = "library/mirror-end-to-end"  # exists at no public registry, so a way around the mirror finds nothing
OTHER_REPOSITORY = "mirror-end-to-end/other"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test shows the end of the log of every program that took part."""
    report = yield
    if report.failed:
        for name, value in getattr(item, "funcargs", {}).items():
            if isinstance(log := getattr(value, "log", None), Path):
                report.sections.append((f"{name}: {log}", tail(log)))
    return report


@pytest.fixture(scope="session", autouse=True)
def no_control_group_stays() -> Iterator[None]:
    """What daemons have made for containers goes after the last of them, whichever tests were run."""
    yield
    cgroups.remove()


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """What the upstreams hold for docker.io."""
    return build(tmp_path_factory.mktemp("image") / "oci", greeting="pulled through the mirror")


@pytest.fixture(scope="session")
def other_image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """What the upstream holds for ghcr.io."""
    return build(tmp_path_factory.mktemp("image") / "oci", greeting="from another upstream", random_bytes=1 << 10)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, image: Image) -> Path:
    """A registry's storage with `image` in it; registries share it, since nobody writes there again."""
    return stored(tmp_path_factory.mktemp("store"), image, HUB_REPOSITORY)


@pytest.fixture(scope="session")
def other_store(tmp_path_factory: pytest.TempPathFactory, other_image: Image) -> Path:
    """The same with `other_image`."""
    return stored(tmp_path_factory.mktemp("store"), other_image, OTHER_REPOSITORY)


@pytest.fixture(scope="session")
def signing_key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    """Whose tokens the registries accept."""
    return SigningKey.make(tmp_path_factory.mktemp("key"))


@pytest.fixture(scope="session")
def mirror_port() -> Iterator[int]:
    """Where every test's mirror listens, so that daemons can be told once."""
    with held_port() as port:
        yield port


@pytest.fixture(params=registries.KINDS)
def upstream(request: pytest.FixtureRequest, store: Path, tmp_path: Path) -> Iterator[Upstream]:
    """docker.io, in each of the ways that upstreams have."""
    match request.param:
        case "plain":
            made = registries.plain(store, tmp_path)
        case "htpasswd":
            made = registries.htpasswd(store, tmp_path)
        case "tls":
            made = registries.tls(store, tmp_path)
        case "redirecting":
            made = RedirectingRegistry(request.getfixturevalue("image"), HUB_REPOSITORY, "1").upstream()
        case kind:
            key = request.getfixturevalue("signing_key")
            made = registries.bearer(store, tmp_path, key, anonymous=kind == "anonymous-bearer")
    yield made
    made.stop()


@pytest.fixture
def both_upstreams(
    upstream: Upstream, other_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Upstream]]:
    """docker.io and ghcr.io, with nothing in common."""
    other = registries.plain(other_store, tmp_path_factory.mktemp("other"))
    yield {"docker.io": upstream, "ghcr.io": other}
    other.stop()


@pytest.fixture
def mirror(tmp_path: Path, mirror_port: int) -> Iterator[MirrorProcess]:
    """The mirror, which the test starts in front of its upstreams; its end has to be clean."""
    made = MirrorProcess(tmp_path, mirror_port)
    yield made
    made.stop()


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory, mirror_port: int) -> Iterator[Fleet]:
    """The clients that use the mirror, each started once."""
    made = Fleet(lambda: tmp_path_factory.mktemp("c"), f"127.0.0.1:{mirror_port}")
    yield made
    made.stop()


@pytest.fixture(params=["dockerd", "containerd", "skopeo"])
def client(request: pytest.FixtureRequest, fleet: Fleet) -> Iterator[Client]:
    """A client (a key of `CLIENTS`), holding no image."""
    used = fleet.client(request.param)
    used.empty()
    yield used
    used.empty()


def stored(store: Path, image: Image, repository: str) -> Path:
    """`store`, once a registry has written `image` there as `repository:1`."""
    registry = registries.Registry(store, store.parent)
    try:
        image.push(registry.address, repository, "1", home=store.parent)
    finally:
        registry.stop()
    return store

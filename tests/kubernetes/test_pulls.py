"""The node of a cluster pulls through the mirror that runs on it; and what becomes of pulls when the mirror is away."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.images import Image
from tests.e2e.processes import eventually
from tests.e2e.troubled import TroubledUpstream
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.pods import Pods
from tests.kubernetes.registries import PLACES, Registries
from tests.kubernetes.release import PORT, Release
from tests.upstream import Rule, stall_at

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]  # the first test starts the cluster, too

MakeImage = Callable[..., Image]
Asked = list[tuple[str, str, str]]

LARGE = 8 << 20  # bytes of a blob of which
STALLED_AT = 3 << 20  # arrive before its registry says nothing more
FALL_BACK = 10.0  # seconds that a pull may take while no mirror answers


@pytest.fixture(autouse=True)
def node(mirror: Release, nodes: Release, pods: Pods, registries: Registries) -> Iterator[None]:
    """The mirror is ready before a test, every registry serves after it, and no pod of the test's is left."""
    mirror.ready()
    yield
    pods.remove()
    for place in PLACES:
        registries[place.name].start()


@pytest.mark.parametrize("name", [place.name for place in PLACES])
def test_pod_starts_through_the_mirror(
    name: str, mirror: Release, pods: Pods, registries: Registries, cluster: Cluster, make_image: MakeImage
) -> None:
    """A pod whose image names a registry starts; that registry is asked for each thing once, by the mirror alone.

    The private one wants a credential, which is the mirror's own: the pod has none. When the node pulls the image once
    more, the registry is asked for nothing.
    """
    image, repository = make_image(), "team/app"
    registries[name].hold(image, repository, "1")

    pods.run("first", f"{name}/{repository}:1")
    first = asked(registries[name], repository)
    pods.remove()
    cluster.forget(f"{name}/{repository}:1", image.blobs)
    pods.run("second", f"{name}/{repository}:1")

    assert {agent for *_, agent in first} == {"mirror"}
    assert len(first) == len(set(first)), "asked more than once for the same"
    assert image.blobs <= {path.rpartition("/")[2] for _, path, _ in first}
    assert asked(registries[name], repository) == first
    assert mirror.counted("mirror_requests_total", upstream=name, kind="blob", result="hit") >= len(image.blobs)


def test_helm_test_pulls_a_manifest(mirror: Release, registries: Registries, make_image: MakeImage) -> None:
    """It says which, and that it came through the cache; a registry that has none of that name is told of."""
    registries["docker.io"].hold(make_image(), "library/busybox", "latest")

    assert "docker.io/library/busybox:latest: sha256:" in mirror.test()


def test_upgrade_does_not_break_a_pull(
    mirror: Release, pods: Pods, registries: Registries, make_image: MakeImage
) -> None:
    """`helm upgrade` with another configuration replaces the mirror's pod while a pull goes through it: it succeeds."""
    hub, before = registries["docker.io"], mirror.pod()
    with stalled_pull(make_image(random_bytes=LARGE), hub, pods, "upgraded") as rule:
        mirror.upgrade(mirror.with_config(tag_ttl="4m"), wait=False)
        mirror.wait_until_closed(before)
        hub.do(lambda _: rule.release())
        pods.wait("upgraded")

    mirror.ready()
    assert mirror.pod()["metadata"]["uid"] != before["metadata"]["uid"]
    assert {agent for *_, agent in asked(hub, "team/upgraded")} == {"mirror"}


def test_pull_is_finished_by_a_mirror_that_was_deleted(
    mirror: Release, pods: Pods, registries: Registries, make_image: MakeImage
) -> None:
    """After `kubectl delete pod` the mirror takes no new connection; the pull that it has begun comes to its end."""
    hub, deleted = registries["docker.io"], mirror.pod()
    with stalled_pull(make_image(random_bytes=LARGE), hub, pods, "drained") as rule:
        mirror.kubectl("delete", "pod", deleted["metadata"]["name"], "--wait=false")
        mirror.wait_until_closed(deleted)
        hub.do(lambda _: rule.release())
        pods.wait("drained")

    assert {agent for *_, agent in asked(hub, "team/drained")} == {"mirror"}


def test_image_arrives_though_the_mirror_was_killed(
    mirror: Release, pods: Pods, registries: Registries, make_image: MakeImage
) -> None:
    """A pull whose mirror dies in the middle of it, without a chance to finish, brings the image all the same."""
    with stalled_pull(make_image(random_bytes=LARGE), registries["docker.io"], pods, "cut-off") as rule:
        killed = mirror.pod()
        mirror.kubectl("delete", "pod", killed["metadata"]["name"], "--wait=false", "--force", "--grace-period=0")
        mirror.wait_until_gone(killed)
        registries["docker.io"].do(lambda _: rule.release())
        pods.wait("cut-off")


def test_pods_start_without_the_mirror(
    mirror: Release, pods: Pods, registries: Registries, make_image: MakeImage
) -> None:
    """With no mirror's pod left, images come from the registries themselves, as if there had never been one."""
    public = [place.name for place in PLACES[:2]]
    for name in public:
        registries[name].hold(make_image(name), "team/alone", "1")
    mirror.scale(0)
    try:
        took = {name: pods.run(name.replace(".", "-"), f"{name}/team/alone:1") for name in public}
    finally:
        mirror.scale(1)

    assert max(took.values()) < FALL_BACK
    for name in public:
        assert {agent for *_, agent in asked(registries[name], "team/alone")} == {"containerd"}


def test_pod_starts_though_the_mirror_is_unreachable(
    mirror: Release, pods: Pods, registries: Registries, cluster: Cluster, make_image: MakeImage
) -> None:
    """Where nothing comes back from the mirror's address, as when its machine is off, images come from the registry."""
    registries["docker.io"].hold(make_image(), "team/unreachable", "1")
    address = mirror.pod()["status"]["podIP"]
    rule = ("OUTPUT", "--destination", address, "--protocol", "tcp", "--dport", f"{PORT}", "--jump", "DROP")
    cluster.run("iptables", "--wait", "--insert", *rule)
    try:
        pods.run("unreachable", "docker.io/team/unreachable:1")
    finally:
        cluster.run("iptables", "--wait", "--delete", *rule)

    assert {agent for *_, agent in asked(registries["docker.io"], "team/unreachable")} == {"containerd"}


def test_cached_image_starts_without_its_registry(
    mirror: Release, pods: Pods, registries: Registries, cluster: Cluster, make_image: MakeImage
) -> None:
    """While a registry is away, images that came through the mirror start, also after the mirror's pod was replaced."""
    image = make_image()
    registries["quay.io"].hold(image, "team/kept", "1")
    pods.run("first", "quay.io/team/kept:1")
    pods.remove()
    cluster.forget("quay.io/team/kept:1", image.blobs)

    registries["quay.io"].stop()
    pods.run("second", "quay.io/team/kept:1")
    pods.remove()
    cluster.forget("quay.io/team/kept:1", image.blobs)
    before = mirror.pod()["metadata"]["uid"]
    mirror.kubectl("delete", "pod", mirror.pod()["metadata"]["name"], seconds=120)
    mirror.ready()
    pods.run("third", "quay.io/team/kept:1")

    assert mirror.pod()["metadata"]["uid"] != before
    assert mirror.counted("mirror_requests_total", upstream="quay.io", kind="blob", result="hit") == len(image.blobs)


@contextmanager
def stalled_pull(image: Image, registry: TroubledUpstream, pods: Pods, name: str) -> Iterator[Rule]:
    """While a pod `name` waits for an image whose largest blob has arrived in part; the rest comes with the release."""
    registry.hold(image, f"team/{name}", "1")
    rule = registry.do(lambda fake: fake.fault(image.largest, stall_at(STALLED_AT), times=3))
    try:
        pods.start(name, f"docker.io/team/{name}:1")
        assert eventually(lambda: registry.do(lambda _: rule.reached.is_set()), seconds=60, every=0.1), (
            "nobody asks for the image"
        )
        yield rule
    finally:
        registry.do(lambda _: rule.release())
        registry.do(lambda fake: fake.clear_faults())


def asked(registry: TroubledUpstream, repository: str) -> Asked:
    """What the registry gave from there: by which method, what, and to which program."""
    seen = registry.do(lambda fake: fake.select(repository=repository))
    return [
        (one.method, one.path, one.headers.get("User-Agent", "").partition("/")[0])
        for one in seen
        if one.status in (200, 206)
    ]

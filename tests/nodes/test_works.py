"""Whatever the runtime: what is written is written once, and what was there comes back as it was."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

import pytest

from mirror.nodes import RUNTIMES, Foreign, NodeError, Runtime, Unusable, Wanted, apply, restore
from mirror.nodes.diary import NAME
from mirror.nodes.root import Owner, Root
from tests.nodes.conftest import Node

WANTED = Wanted("https://mirror.test:5000", ca="-----BEGIN CERTIFICATE-----\n")
FOUND = {
    "containerd": ("/etc/containerd/certs.d/_default/hosts.toml", '[host."https://other.test"]\n'),
    "crio": ("/etc/containers/registries.conf.d/mirror.conf", "# mine\n"),
    "k3s": ("/etc/rancher/k3s/registries.yaml", "# mine\nmirrors:\n  quay.io:\n    endpoint: [https://other.test]\n"),
    "rke2": ("/etc/rancher/rke2/registries.yaml", "configs: {}\n"),
    "docker": ("/etc/docker/daemon.json", '{"log-level": "warn"}'),
}


@pytest.fixture(params=sorted(FOUND))
def runtime(request: pytest.FixtureRequest) -> Runtime:
    """Each of them."""
    return RUNTIMES[request.param]


@pytest.fixture(params=["bare", "settled"])
def before(request: pytest.FixtureRequest, runtime: Runtime, node: Node) -> dict[str, tuple[int, bytes | None]]:
    """What the node has: nothing, or settings of its own in the file that we write."""
    if request.param == "settled":
        node.put(*FOUND[runtime.name], mode=0o640)
    return node.tree()


Before = dict[str, tuple[int, bytes | None]]


class Dying(Root):
    """Dies at its `left`-th change of the disk from now, or after it."""

    left = 0

    def write(self, path: str, content: bytes, owner: Owner) -> None:
        self._change(lambda: super(Dying, self).write(path, content, owner))

    def remove(self, path: str) -> None:
        self._change(lambda: super(Dying, self).remove(path))

    def _change(self, change: Callable[[], None]) -> None:
        self.left -= 1
        if self.left == 0:
            raise Died
        change()


class Died(Exception):
    """As by SIGKILL."""


def test_what_was_there_comes_back_as_it_was(runtime: Runtime, node: Node, before: Before) -> None:
    """Byte for byte, with its permissions; what was not there is gone, directories and all."""
    assert apply(runtime, WANTED, node.root).changed
    assert restore(runtime, node.root).changed

    assert node.tree() == before


def test_once_more_changes_nothing(runtime: Runtime, node: Node, before: Before) -> None:
    """Neither the files nor what is known of before."""
    apply(runtime, WANTED, node.root)
    after = node.tree()

    assert apply(runtime, WANTED, node.root).changed == []
    assert node.tree() == after
    assert after != before


def test_another_mirror_takes_the_place_of_the_first(runtime: Runtime, node: Node, before: Before) -> None:
    """Nothing of the first is left, and what was there before it still comes back."""
    apply(runtime, WANTED, node.root)
    apply(runtime, Wanted("http://elsewhere.test:1"), node.root)
    left = [path for path, (_, content) in node.tree().items() if b"mirror.test" in path.encode() + (content or b"")]
    restore(runtime, node.root)

    assert left == []
    assert node.tree() == before


def test_there_is_nothing_to_put_back_twice(runtime: Runtime, node: Node, before: Before) -> None:
    """Also on a node that was never configured."""
    assert restore(runtime, node.root).changed == []
    apply(runtime, WANTED, node.root)
    restore(runtime, node.root)

    assert restore(runtime, node.root).changed == []
    assert node.tree() == before


@pytest.mark.parametrize("change", range(1, 8))
def test_a_death_in_the_middle_is_undone(runtime: Runtime, node: Node, before: Before, change: int) -> None:
    """Wherever `apply` was cut off, `restore` puts everything back."""
    dying = Dying(node.top)
    dying.left = change
    try:
        apply(runtime, WANTED, dying)
    except Died:
        pass
    restore(runtime, node.root)

    assert node.tree() == before


@pytest.mark.parametrize("change", range(1, 8))
def test_a_death_in_the_middle_of_the_undoing(runtime: Runtime, node: Node, before: Before, change: int) -> None:
    """Wherever `restore` was cut off, another one ends it."""
    apply(runtime, WANTED, node.root)
    dying = Dying(node.top)
    dying.left = change
    try:
        restore(runtime, dying)
    except Died:
        pass
    restore(runtime, node.root)

    assert node.tree() == before


@pytest.mark.parametrize("change", range(1, 8))
def test_a_death_in_the_middle_is_mended(runtime: Runtime, node: Node, before: Before, change: int) -> None:
    """Wherever it was cut off, another `apply` ends it; and then all comes back."""
    dying = Dying(node.top)
    dying.left = change
    try:
        apply(runtime, WANTED, dying)
    except Died:
        pass
    apply(runtime, WANTED, node.root)
    mended = node.tree()

    assert apply(runtime, WANTED, node.root).changed == []
    restore(runtime, node.root)
    assert node.tree() == before != mended


def test_a_change_by_somebody_else_is_kept(runtime: Runtime, node: Node, before: Before) -> None:
    """`apply` refuses and touches nothing; `restore` leaves that file, names it, and still knows what was before."""
    apply(runtime, WANTED, node.root)
    path = FOUND[runtime.name][0]
    node.put(path, "theirs = 1\n")
    changed = node.tree()

    with pytest.raises(Foreign, match=path):
        apply(runtime, replace(WANTED, mirror="http://elsewhere.test:1"), node.root)
    assert node.tree() == changed
    assert restore(runtime, node.root).foreign == [path]
    assert node.text(path) == "theirs = 1\n"
    assert path in node.text(f"{runtime.directory}/{NAME}")


def test_a_file_that_was_removed_is_written_again(runtime: Runtime, node: Node, before: Before) -> None:
    """Whoever removed it can restore instead."""
    apply(runtime, WANTED, node.root)
    path = FOUND[runtime.name][0]
    written = node.text(path)
    (node.top / path.lstrip("/")).unlink()

    assert apply(runtime, WANTED, node.root).changed == [path]
    assert node.text(path) == written


@pytest.mark.parametrize("content", [b"\xff\xfe", b"]]]{{{ : [", b'{"version": 1}'])
def test_a_broken_file_is_named_and_nothing_is_touched(runtime: Runtime, node: Node, content: bytes) -> None:
    """Our own diary, or the runtime's file."""
    for path in (FOUND[runtime.name][0], f"{runtime.directory}/{NAME}"):
        if runtime.name == "crio" and not path.endswith(NAME):
            path = "/etc/containers/registries.conf"
        if content.startswith(b'{"v') and not path.endswith(NAME):
            continue
        node.put(path, content)
        before = node.tree()
        with pytest.raises(Unusable, match=path):
            apply(runtime, WANTED, node.root)
        assert node.tree() == before
        (node.top / path.lstrip("/")).unlink()


def test_a_link_is_not_replaced(runtime: Runtime, node: Node) -> None:
    """What it points to could not be put back."""
    path = FOUND[runtime.name][0]
    node.put("/etc/real", FOUND[runtime.name][1])
    (node.top / path.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
    (node.top / path.lstrip("/")).symlink_to(node.top / "etc/real")

    with pytest.raises(Unusable, match="symbolic link"):
        apply(runtime, WANTED, node.root)


def test_no_other_run_comes_between(runtime: Runtime, node: Node, before: Before) -> None:
    """Two at a time would each take the other's work for what was there before."""
    apply(runtime, WANTED, node.root)
    impatient = Root(node.top, patience=0.0)
    with node.root.locked(runtime.directory), pytest.raises(NodeError, match="another"):
        restore(runtime, impatient)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_the_owner_stays(runtime: Runtime, node: Node) -> None:
    """Of a file that is replaced."""
    path, content = FOUND[runtime.name]
    node.put(path, content)
    os.chown(node.top / path.lstrip("/"), 1234, 4321)
    apply(runtime, WANTED, node.root)
    restore(runtime, node.root)

    found = (node.top / path.lstrip("/")).stat()
    assert (found.st_uid, found.st_gid) == (1234, 4321)

"""Real clients, each configured by the file that our users are shown in `examples/clients/`."""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
from pathlib import Path
from typing import Protocol

from tests.e2e.images import Image
from tests.e2e.processes import Process, remove_tree
from tests.e2e.programs import environment, need, run

_SNIPPETS = Path(__file__).parents[2] / "examples" / "clients"
DEFAULT_ADDRESS = "127.0.0.1:5000"
"""Where the examples say that the mirror is: where it listens unless it is told otherwise."""


class Client(Protocol):
    """Something that pulls from the registry which an image's name says, through the mirror."""

    log: Path

    def pull(self, reference: str) -> None:
        """Pulls `reference`, a full name such as docker.io/library/busybox:1; fails the test if it cannot."""

    def use(self, reference: str, image: Image) -> None:
        """Proves that what was pulled is `image`: runs it, or compares its bytes."""

    def empty(self) -> None:
        """Forgets everything that was pulled."""

    def stop(self) -> None:
        """Ends what runs and removes all but the log."""


class Docker:
    """dockerd with `registry-mirrors`, and docker."""

    def __init__(self, home: Path, mirror: str) -> None:
        need("dockerd", "docker", "containerd", "runc", "iptables", root=True)
        self.log = home / "dockerd.log"
        self._home = home
        self._state = home / "state"
        socket = self._state / "docker.sock"
        self._docker = ("docker", "--host", f"unix://{socket}")
        self._state.mkdir()
        config = snippet("docker/daemon.json", mirror, home / "daemon.json")
        self._daemon = Process(
            [
                "dockerd", "--config-file", config, "--host", f"unix://{socket}",
                "--data-root", self._state / "data", "--exec-root", self._state / "exec",
                "--pidfile", self._state / "pid",
                # vfs works on every file system, and no network set-up of the host is touched.
                "--storage-driver", "vfs", "--bridge", "none", "--iptables=false", "--ip6tables=false",
            ],
            log=self.log,
            env=environment(home),
        )  # fmt: skip
        self._daemon.wait_until(lambda: _is_socket(socket))

    def pull(self, reference: str) -> None:
        self._run("pull", "--quiet", reference)

    def use(self, reference: str, image: Image) -> None:
        printed = self._run("run", "--rm", "--network", "none", reference)
        assert printed.strip() == image.greeting

    def empty(self) -> None:
        self._run("image", "prune", "--all", "--force")
        assert self._run("image", "ls", "--all", "--quiet") == ""

    def stop(self) -> None:
        self._daemon.stop()
        remove_tree(self._state)

    def _run(self, *arguments: str) -> str:
        return run(*self._docker, *arguments, home=self._home)


class Containerd:
    """containerd with a `hosts.toml` per registry, and ctr."""

    def __init__(self, home: Path, mirror: str) -> None:
        need("containerd", "ctr", "runc", root=True)
        self.log = home / "containerd.log"
        self._home = home
        self._state = home / "state"
        self._hosts = home / "certs.d"
        socket = self._state / "containerd.sock"
        self._ctr = ("ctr", "--address", str(socket))
        self._state.mkdir()
        snippet("containerd/hosts.toml", mirror, self._hosts / "docker.io" / "hosts.toml")
        for_others = snippet("containerd/hosts.toml", mirror, self._hosts / "ghcr.io" / "hosts.toml")
        for_others.write_text(for_others.read_text().replace("registry-1.docker.io", "ghcr.io"))
        config = home / "containerd.toml"
        config.write_text(
            f"""version = 2
            root = "{self._state}/root"
            state = "{self._state}/run"
            disabled_plugins = ["io.containerd.grpc.v1.cri"]
            [grpc]
            address = "{socket}"
            """
        )
        self._daemon = Process(["containerd", "--config", config], log=self.log, env=environment(home))
        self._daemon.wait_until(lambda: _is_socket(socket))

    def pull(self, reference: str) -> None:
        self._run("images", "pull", "--snapshotter", "native", "--hosts-dir", str(self._hosts), reference)

    def use(self, reference: str, image: Image) -> None:
        printed = self._run("run", "--rm", "--snapshotter", "native", reference, "end-to-end")
        assert printed.strip() == image.greeting

    def empty(self) -> None:
        held = self._run("images", "ls", "--quiet").split()
        if held:
            self._run("images", "rm", "--sync", *held)
        assert self._run("content", "ls", "--quiet") == ""

    def stop(self) -> None:
        self._daemon.stop()
        remove_tree(self._state)

    def _run(self, *arguments: str) -> str:
        return run(*self._ctr, *arguments, home=self._home)


class Skopeo:
    """skopeo with a `registries.conf`; it needs no daemon."""

    def __init__(self, home: Path, mirror: str) -> None:
        need("skopeo")
        self.log = home / "skopeo.log"
        self._home = home
        self._pulled = home / "pulled"
        self._config = snippet("containers/registries.conf", mirror, home / "registries.conf")

    def pull(self, reference: str) -> None:
        printed = run(
            "skopeo", "--insecure-policy", "--registries-conf", self._config,
            "copy", f"docker://{reference}", f"dir:{self._pulled}",
            home=self._home,
        )  # fmt: skip
        self.log.write_text(printed)

    def use(self, reference: str, image: Image) -> None:
        manifest = json.loads((self._pulled / "manifest.json").read_bytes())
        digests = [descriptor["digest"] for descriptor in (manifest["config"], *manifest["layers"])]
        assert set(digests) == image.blobs, f"{reference} is another image"
        for digest in digests:
            content = (self._pulled / digest.removeprefix("sha256:")).read_bytes()
            assert f"sha256:{hashlib.sha256(content).hexdigest()}" == digest

    def empty(self) -> None:
        if self._pulled.exists():
            shutil.rmtree(self._pulled)

    def stop(self) -> None:
        self.empty()


def snippet(name: str, mirror: str, target: Path) -> Path:
    """Writes the example `name` to `target`, with the address of `mirror` (host:port) in the place of the default."""
    text = (_SNIPPETS / name).read_text()
    assert DEFAULT_ADDRESS in text, f"{name} does not name the default address"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text.replace(DEFAULT_ADDRESS, mirror))
    return target


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except FileNotFoundError:
        return False

"""containerd with its two front doors: ctr, and CRI, by which Kubernetes pulls, through crictl."""

from __future__ import annotations

import json
import os
import tarfile
import uuid
from pathlib import Path
from typing import Any

from tests.e2e import cgroups
from tests.e2e.clients.client import is_socket, need_overlay, snippet
from tests.e2e.images import Image, build_sandbox
from tests.e2e.processes import Process, eventually, remove_state
from tests.e2e.programs import CONTAINERD2, PATH, environment, need, run

_SANDBOX = "localhost/sandbox:image"  # what holds a pod's namespaces; the daemon has it before any test


class Daemon:
    """A containerd, 1.6 or 2, that uses the mirror: one directory with a file per registry, one with a file for all."""

    def __init__(self, home: Path, mirror: str, *, version: int, fetch_buffer: int = 0) -> None:
        need("containerd2" if version == 2 else "containerd", "ctr", "runc", root=True)
        need_overlay(home)
        self.log = home / "containerd.log"
        self.home = home
        self.by_registry = home / "by-registry"
        self._state = home / "state"
        self.socket = self._state / "containerd.sock"
        # Version 2 warns about control groups of version 1 with every command, among what the command prints.
        self._env = {"CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS": "1"}
        if version == 2:
            self._env["PATH"] = os.pathsep.join((str(CONTAINERD2), PATH))
        self._state.mkdir()
        snippet("containerd/hosts.toml", mirror, self.by_registry / "docker.io" / "hosts.toml")
        for_others = snippet("containerd/hosts.toml", mirror, self.by_registry / "ghcr.io" / "hosts.toml")
        for_others.write_text(for_others.read_text().replace("registry-1.docker.io", "ghcr.io"))
        self.for_all = home / "for-all"
        snippet("containerd/_default/hosts.toml", mirror, self.for_all / "_default" / "hosts.toml")
        config = home / "containerd.toml"
        config.write_text(_SETTINGS[version].format(state=self._state, hosts=self.for_all, sandbox=_SANDBOX))
        if fetch_buffer:
            with config.open("a") as file:
                file.write(_FETCH_BUFFER.format(fetch_buffer=fetch_buffer))
        self._process = Process(
            ["containerd", "--config", config], log=self.log, env={**environment(home), **self._env}
        )
        self._process.wait_until(lambda: is_socket(self.socket))
        self._sandbox_content: set[str] = set()

    def ctr(self, *arguments: str | Path, namespace: str = "default") -> str:
        """Runs ctr and returns what it printed."""
        return run("ctr", "--address", self.socket, "--namespace", namespace, *arguments, home=self.home, env=self._env)

    def content(self, namespace: str) -> set[str]:
        """The digests of all that this namespace holds."""
        return set(self.ctr("content", "ls", "--quiet", namespace=namespace).split())

    def sweep(self) -> None:
        """Removes what nothing holds, such as the parts of a pull that failed: by itself it takes its time."""
        self.ctr("leases", "create", "--id", "sweep")
        self.ctr("leases", "rm", "--sync", "sweep")

    def is_empty(self) -> bool:
        """Whether nothing is held but the sandbox, in any namespace: they share content, so that one's can hide
        another's pull."""
        return self.content("default") == set() and self.content("k8s.io") <= self._sandbox_content

    def crictl(self, *arguments: str | Path) -> str:
        """Runs crictl and returns what it printed."""
        endpoint = f"unix://{self.socket}"
        # Without it, crictl would read a configuration of this machine's.
        config = self.home / "crictl.yaml"
        config.write_text(f"runtime-endpoint: {endpoint}\nimage-endpoint: {endpoint}\ntimeout: 15\n")
        return run("crictl", "--config", config, *arguments, home=self.home)

    def stop(self) -> None:
        self._process.stop()
        remove_state(self._state)

    def load_sandbox(self) -> None:
        """Brings what pods need, once."""
        if self._sandbox_content:
            return
        layout = self.home / "sandbox"
        build_sandbox(layout)
        archive = self.home / "sandbox.tar"
        with tarfile.open(archive, "w") as file:
            file.add(layout, arcname="")
        self.ctr("images", "import", "--base-name", _SANDBOX.partition(":")[0], archive, namespace="k8s.io")
        self._sandbox_content = self.content("k8s.io")


class Containerd:
    """ctr, which is told a directory of `hosts.toml` files, one per registry."""

    def __init__(self, daemon: Daemon, *, snapshotter: str = "native") -> None:
        self.log = daemon.log
        self.config = daemon.by_registry / "docker.io" / "hosts.toml"
        self._daemon = daemon
        self._snapshotter = snapshotter

    def pull(self, reference: str) -> None:
        self._daemon.ctr(
            "images", "pull", "--snapshotter", self._snapshotter, "--hosts-dir", self._daemon.by_registry, reference
        )

    def use(self, reference: str, image: Image) -> None:
        name = uuid.uuid4().hex  # runc knows containers by name on the whole machine, whichever daemon they are of
        group = f"{cgroups.PARENT}/{name}"
        log = self._daemon.home / f"{name}.log"  # ctr itself may lose what is printed in a container's last moments
        self._daemon.ctr(
            "run", "--rm", "--cgroup", group, "--log-uri", f"file://{log}", "--snapshotter", self._snapshotter,
            reference, name,
        )  # fmt: skip
        assert log.read_text().strip() == image.greeting

    def empty(self) -> None:
        held = self._daemon.ctr("images", "ls", "--quiet").split()
        if held:
            self._daemon.ctr("images", "rm", "--sync", *held)
        self._daemon.sweep()
        assert self._daemon.is_empty()

    def stop(self) -> None:
        """Leaves the daemon to whoever started it."""


class Crictl:
    """crictl, which asks containerd as a kubelet would: one `_default/hosts.toml` tells it the mirror."""

    def __init__(self, daemon: Daemon) -> None:
        need("crictl")
        daemon.load_sandbox()
        self.log = daemon.log
        self.config = daemon.for_all / "_default" / "hosts.toml"
        self._daemon = daemon

    def pull(self, reference: str) -> None:
        self._daemon.crictl("pull", reference)

    def use(self, reference: str, image: Image) -> None:
        logs = self._daemon.home / f"pod-{uuid.uuid4().hex}"
        logs.mkdir()
        pod = self._document("pod", _POD | {"log_directory": str(logs)})
        container = self._document("container", _CONTAINER | {"image": {"image": reference}})
        self._daemon.crictl("run", "--no-pull", container, pod)
        assert eventually(lambda: image.greeting in _text(logs / "log"), seconds=15), _text(logs / "log")
        # To stop a container in the moment in which it ends by itself is an error.
        assert eventually(lambda: self._daemon.crictl("ps", "--state", "exited", "--quiet") != "")
        self._daemon.crictl("rmp", "--all", "--force")

    def empty(self) -> None:
        held = [image for image in self._images() if _SANDBOX not in image["repoTags"]]
        if held:
            self._daemon.crictl("rmi", *(image["id"] for image in held))
        self._daemon.sweep()
        assert self._daemon.is_empty()

    def stop(self) -> None:
        """Ends the pod that a failed test left, which would outlive its daemon; that is left to whoever started it."""
        self._daemon.crictl("rmp", "--all", "--force")

    def _images(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self._daemon.crictl("images", "--output", "json"))["images"]
        return found

    def _document(self, name: str, content: dict[str, Any]) -> Path:
        path = self._daemon.home / f"{name}.json"
        path.write_text(json.dumps(content))
        return path


_POD = {
    "metadata": {"name": "end-to-end", "namespace": "default", "uid": "end-to-end"},
    "linux": {
        "cgroup_parent": cgroups.PARENT,
        "security_context": {"namespace_options": {"network": 2}},  # the machine's own
    },
}
_CONTAINER = {"metadata": {"name": "end-to-end"}, "log_path": "log"}

# No right is asked for that root need not have: an out-of-memory score below one's own, AppArmor.
_SETTINGS = {
    1: """version = 2
root = "{state}/root"
state = "{state}/run"
[grpc]
address = "{state}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
path = "{state}/opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{sandbox}"
restrict_oom_score_adj = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "{hosts}"
""",
    2: """version = 3
disabled_plugins = ["io.containerd.nri.v1.nri"] # its socket would lie among this machine's own
root = "{state}/root"
state = "{state}/run"
[grpc]
address = "{state}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
path = "{state}/opt"
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{sandbox}"
[plugins."io.containerd.cri.v1.images".registry]
config_path = "{hosts}"
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
disable_apparmor = true
""",
}
_FETCH_BUFFER = """[plugins."io.containerd.cri.v1.images"]
concurrent_layer_fetch_buffer = {fetch_buffer}
[plugins."io.containerd.transfer.v1.local"]
concurrent_layer_fetch_buffer = {fetch_buffer}
"""


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else "(no log)"

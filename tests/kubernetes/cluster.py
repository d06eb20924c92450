"""A Kubernetes of one node in namespaces of its own: starts in seconds, is stopped by process id, leaves no trace."""

from __future__ import annotations

import itertools
import json
import os
import socket
import tarfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pytest

from tests.e2e import cgroups
from tests.e2e.images import build_sandbox
from tests.e2e.processes import Process, eventually, remove_tree
from tests.e2e.programs import CONTAINERD2, PATH, environment, need
from tests.kubernetes.namespaces import Namespaces
from tests.kubernetes.settings import ADDRESS, DOMAIN, NODE, RUNTIME, SANDBOX, SOCKET, Settings

PROGRAMS = (
    "busybox", "containerd2", "coredns", "crictl", "curl", "etcd", "ip", "iptables", "kube-apiserver",
    "kube-controller-manager", "kube-proxy", "kube-scheduler", "kubectl", "kubelet", "nft", "openssl", "portmap",
    "runc", "sysctl",
)  # fmt: skip

_CRICTL = (
    "crictl", "--config=/dev/null", "--timeout=30s", f"--runtime-endpoint=unix://{SOCKET}", f"--image-endpoint=unix://{SOCKET}",
)  # fmt: skip
_CTR = ("ctr", "--address", SOCKET, "--namespace", "k8s.io")
_START = 120.0  # seconds until each part serves; all take five on two idle cores
_STOP = 3.0  # seconds; the API server waits longer for clients that are no more
_COMMAND = 60.0  # seconds for a command that waits for nothing
# What the API server's absence makes the others complain about comes last.
_STOPPED = (
    "kubelet", "kube-proxy", "coredns", "kube-scheduler", "kube-controller-manager", "containerd",
    "kube-apiserver", "etcd",
)  # fmt: skip

_numbers = itertools.count()


class Cluster:
    """A context manager. `hosts` are names that the node and its pods know, each with the address that the node gets.

    `trusted` is a file of CA certificates which the node trusts for whatever it pulls.
    """

    def __init__(self, home: Path, *, hosts: Mapping[str, str] | None = None, trusted: Path | None = None) -> None:
        need(*PROGRAMS, root=True)
        self.home = home / "cluster"
        self.logs = home / "logs"
        """A file per program, also when it is over."""
        self._hosts = dict(hosts or {})
        self._trusted = trusted
        self._programs: dict[str, Process] = {}
        self._group = f"{cgroups.PARENT}-kubernetes-{next(_numbers)}"
        self.env = {
            **environment(self.home),
            "PATH": os.pathsep.join((str(CONTAINERD2), PATH)),
            "CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS": "1",
            "KUBECONFIG": str(self.home / "kubeconfig"),
            "TMPDIR": str(self.home / "tmp"),
        }

    def __enter__(self) -> Self:
        cgroups.remove_abandoned()
        if self.home.exists():  # left by one that was killed, which leaves no more than that
            remove_tree(self.home)
        self.logs.mkdir(exist_ok=True)
        with ExitStack() as undo:
            undo.callback(self._remove)
            state = self.home / "node"
            for directory in (self.home / "tmp", state):
                directory.mkdir(parents=True)
            self.inside = Namespaces(state, [f"{address}/32" for address in set(self._hosts.values())])
            undo.callback(self.inside.close)
            self._configure()
            self._start()
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        with self._undo:
            for program in _STOPPED:
                self._programs[program].stop(seconds=_STOP)

    def _remove(self) -> None:
        cgroups.remove(self._group)
        remove_tree(self.home)

    # Its start

    def _configure(self) -> None:
        """Gives the node its names, its network and what its programs read."""
        self._settings = Settings(self.home, cgroup=self._group)
        names = {"localhost": "127.0.0.1", NODE: ADDRESS, **self._hosts}
        self.write(Path("/etc/hosts"), "".join(f"{address} {name}\n" for name, address in names.items()))
        self.write(RUNTIME, self._settings.runtime())
        self._settings.names(self._hosts)
        self.run("openssl", "genrsa", "-out", self._settings.signing_key, "2048")
        self.run("ip", "link", "add", "pods", "type", "bridge")
        self.run("ip", "address", "add", f"{ADDRESS}/24", "dev", "pods")
        self.run("ip", "link", "set", "pods", "up")
        self.run("sysctl", "--quiet", "--write", "net.ipv4.ip_forward=1", "net.bridge.bridge-nf-call-iptables=1")

    def _start(self) -> None:
        containerd, etcd = self._begin("containerd"), self._begin("etcd")
        etcd.wait_until(lambda: self.answers("http://127.0.0.1:2379/health"), seconds=_START)
        api = self._begin("kube-apiserver")
        containerd.wait_until(lambda: self._works("ctr", "--address", SOCKET, "version"), seconds=_START)
        self._load_sandbox()
        api.wait_until(lambda: self._works("kubectl", "get", "--raw", "/readyz"), seconds=_START)
        manager, scheduler = self._begin("kube-controller-manager"), self._begin("kube-scheduler")
        kubelet, proxy, dns = self._begin("kubelet"), self._begin("kube-proxy"), self._begin("coredns")
        manager.wait_until(
            lambda: self._works("kubectl", "get", "serviceaccount/default", "configmap/kube-root-ca.crt"),
            seconds=_START,
        )
        kubelet.wait_until(
            lambda: self._works("kubectl", "wait", f"node/{NODE}", "--for=condition=Ready", "--timeout=0"),
            seconds=_START,
        )
        proxy.wait_until(lambda: self.answers("http://127.0.0.1:10256/healthz"), seconds=_START)
        scheduler.wait_until(lambda: self.answers("https://127.0.0.1:10259/healthz"), seconds=_START)
        dns.wait_until(
            lambda: self._works("busybox", "nslookup", f"kubernetes.default.svc.{DOMAIN}", ADDRESS), seconds=_START
        )

    def _begin(self, program: str) -> Process:
        trusted = {"SSL_CERT_FILE": str(self._trusted)} if self._trusted and program == "containerd" else {}
        log = self.logs / f"{program}.log"
        self._programs[program] = self.inside.start(self._settings.command(program), log=log, env=self.env | trusted)
        return self._programs[program]

    def _load_sandbox(self) -> None:
        """Brings what holds a pod's namespaces, so that no pod waits for it."""
        build_sandbox(self.home / "sandbox")
        self.load(self.home / "sandbox", SANDBOX)

    # Its use

    def run(self, *argv: str | Path, seconds: float = _COMMAND, stdin: str | None = None) -> str:
        """Runs a program on the node, as its administrator; fails the test, with its words, if it does not exit 0."""
        done = self.inside.run(*argv, env=self.env, seconds=seconds, stdin=stdin)
        if done.returncode != 0:
            pytest.fail(f"{' '.join(map(str, argv))} exited {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def kubectl(self, *arguments: str | Path, seconds: float = _COMMAND, stdin: str | None = None) -> str:
        """Runs kubectl."""
        return self.run("kubectl", *arguments, seconds=seconds, stdin=stdin)

    def apply(self, *objects: Mapping[str, Any]) -> None:
        """Creates these objects, or makes those that are there like them."""
        self.kubectl("apply", "--filename=-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))

    def get(self, *arguments: str) -> dict[str, Any]:
        """What `kubectl get` says, as an object."""
        found: dict[str, Any] = json.loads(self.kubectl("get", *arguments, "--output=json"))
        return found

    def crictl(self, *arguments: str) -> str:
        """Runs crictl against the node's containerd."""
        return self.run(*_CRICTL, *arguments)

    def try_crictl(self, *arguments: str) -> bool:
        """The same for what may fail: whether it worked."""
        return self._works(*_CRICTL, *arguments)

    def say(self, program: str, *arguments: str) -> str:
        """What a program prints, whatever becomes of it."""
        done = self.inside.run(*(_CRICTL if program == "crictl" else (program,)), *arguments, env=self.env, seconds=30)
        return done.stdout + done.stderr

    def load(self, layout: Path, name: str) -> None:
        """Gives the node the image of an OCI layout, past every registry, under this name and tag.

        The tag is the one that the layout has.
        """
        archive = self.home / "load.tar"
        with tarfile.open(archive, "w") as file:
            file.add(layout, arcname="")
        self.run(*_CTR, "images", "import", "--base-name", name.rpartition(":")[0], archive)

    def forget(self, reference: str, blobs: frozenset[str]) -> None:
        """Removes an image that nothing runs, with these blobs of its; containerd alone would keep them for a while."""
        self.crictl("rmi", reference)
        if not eventually(lambda: not self._swept() & blobs, seconds=_COMMAND, every=0.5):
            raise TimeoutError(f"the node keeps the content of {reference}")

    def _swept(self) -> set[str]:
        """The digests of all that the node holds, once what nothing holds is gone."""
        self.run(*_CTR, "leases", "create", "--id", "sweep")
        self.run(*_CTR, "leases", "rm", "--sync", "sweep")
        return set(self.run(*_CTR, "content", "ls", "--quiet").split())

    def connects(self, address: str, port: int) -> bool:
        """Whether something on the cluster's network takes connections there."""

        def connect() -> bool:
            with socket.socket() as probe:
                probe.settimeout(2)
                return probe.connect_ex((address, port)) == 0

        return self.inside.call(connect)

    def read(self, path: Path) -> bytes | None:
        """A file as the node has it; None where there is none."""
        return self.inside.call(lambda: path.read_bytes() if path.exists() else None)

    def write(self, path: Path, text: str) -> None:
        """Makes the node's file, with the directories above it."""

        def write() -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

        self.inside.call(write)

    def tree(self, directory: Path) -> list[str]:
        """All that is below a directory of the node's: kind, permissions, owner and name, and the content of files."""
        found = self.run("find", directory, "-printf", "%y %m %U:%G %p\\n")
        content = self.run("find", directory, "-type", "f", "-exec", "sha256sum", "{}", "+")
        return sorted([*found.splitlines(), *content.splitlines()])

    def _works(self, *argv: str | Path) -> bool:
        return self.inside.run(*argv, env=self.env, seconds=_COMMAND).returncode == 0

    def answers(self, url: str) -> bool:
        """Whether a GET from the node succeeds, whatever certificate there is."""
        return self._works("curl", "--insecure", "--silent", "--fail", "--max-time", "2", "--output", "/dev/null", url)

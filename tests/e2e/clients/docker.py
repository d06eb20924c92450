"""The Docker daemon."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tests.e2e import cgroups
from tests.e2e.clients.client import is_socket, need_overlay, snippet
from tests.e2e.hub import Hub
from tests.e2e.images import Image
from tests.e2e.processes import Process, remove_state
from tests.e2e.programs import environment, need, run
from tests.e2e.trixie import inside, need_trixie

_WITH_HOSTS = 'mount --bind "$1" /etc/hosts && shift && exec "$@"'
_WITH_CERTIFICATES = 'mkdir -p /etc/docker && mount --bind "$1" /etc/docker && shift && exec "$@"'


class Docker:
    """dockerd with `registry-mirrors`, and docker. Images lie in the graph store, on vfs or overlay2.

    With `etc`, its directory in the place of /etc/docker, it uses the mirror over TLS.
    """

    def __init__(
        self, home: Path, mirror: str, *, driver: str = "vfs", hub: Hub | None = None, etc: Path | None = None
    ) -> None:
        need("dockerd", "docker", "containerd", "runc", "iptables", root=True)
        if etc is None:
            self._start(home, mirror, example="docker/daemon.json", driver=driver, enter=list, hub=hub)
            return

        def enter(argv: Sequence[str | Path]) -> list[str | Path]:
            return _alone(_WITH_CERTIFICATES, etc, argv)

        self._start(home, mirror, example="docker/daemon-tls.json", driver=driver, enter=enter, hub=hub)

    def _start(
        self,
        home: Path,
        mirror: str,
        *,
        example: str,
        driver: str,
        enter: Callable[[Sequence[str | Path]], list[str | Path]],
        hub: Hub | None = None,
    ) -> None:
        """Starts the daemon by the command that `enter` makes of its own. It takes `hub` for Docker Hub."""
        if driver != "vfs":  # which works on every file system
            need_overlay(home)
        self.log = home / "dockerd.log"
        self._home = home
        self._state = home / "state"
        socket = self._state / "docker.sock"
        self._docker = ("docker", "--host", f"unix://{socket}")
        self._state.mkdir()
        self.config = snippet(example, mirror, home / "daemon.json")
        command = enter(
            [
                "dockerd", "--config-file", self.config, "--host", f"unix://{socket}",
                "--data-root", self._state / "data", "--exec-root", self._state / "exec",
                "--pidfile", self._state / "pid",
                "--storage-driver", driver, "--cgroup-parent", cgroups.PARENT,
                # No network set-up of the host is touched.
                "--bridge", "none", "--iptables=false", "--ip6tables=false",
            ]
        )  # fmt: skip
        env = environment(home)
        if hub is not None:
            command = _alone(_WITH_HOSTS, hub.hosts, command)
            env["SSL_CERT_FILE"] = str(hub.certificate)
        self._daemon = Process(command, log=self.log, env=env)
        self._daemon.wait_until(lambda: is_socket(socket))

    def pull(self, reference: str) -> None:
        self._run("pull", "--quiet", reference, seconds=60)  # it waits long before it tries anew

    def pull_all_tags(self, repository: str) -> None:
        """Pulls whatever tags the repository has, of which the registry knows the list."""
        self._run("pull", "--quiet", "--all-tags", repository, seconds=60)

    def use(self, reference: str, image: Image) -> None:
        printed = self._run("run", "--rm", "--network", "none", reference)
        assert printed.strip() == image.greeting

    def empty(self) -> None:
        left = self._run("ps", "--all", "--quiet").split()  # by a failed test; it would hold its image
        if left:
            self._run("rm", "--force", *left)
        self._run("image", "prune", "--all", "--force")
        assert self._run("image", "ls", "--all", "--quiet") == ""

    def stop(self) -> None:
        self._daemon.stop()
        remove_state(self._state)

    def _run(self, *arguments: str, seconds: float = 15) -> str:
        return run(*self._docker, *arguments, home=self._home, seconds=seconds)


class DockerOnContainerd(Docker):
    """dockerd of Debian 13, images in its containerd store. It pulls as containerd does, and says `?ns=docker.io`."""

    def __init__(self, home: Path, mirror: str, *, hub: Hub | None = None) -> None:
        need_trixie()
        need("docker")
        self._start(
            home,
            mirror,
            example="docker/daemon-containerd-store.json",
            driver="overlayfs",
            enter=lambda argv: inside(*argv, visible=home),
            hub=hub,
        )


def _alone(script: str, mounted: Path, argv: Sequence[str | Path]) -> list[str | Path]:
    """The command that has mounts of its own: `script` mounts what it is given first, then becomes the rest."""
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", mounted, *argv]

"""podman, buildah and skopeo: programs without a daemon that share one library, and so one configuration."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from tests.e2e import cgroups
from tests.e2e.clients.client import need_overlay, snippet
from tests.e2e.images import Image
from tests.e2e.processes import remove_state
from tests.e2e.programs import need, run
from tests.e2e.trixie import inside, need_trixie


class Skopeo:
    """skopeo with a `registries.conf`; it needs no daemon."""

    def __init__(
        self, home: Path, mirror: str, *, example: str = "containers/registries.conf", trixie: bool = False
    ) -> None:
        """The skopeo of this machine, or that of Debian 13."""
        if trixie:
            need_trixie()
        else:
            need("skopeo")
        self._trixie = trixie
        self.log = home / "skopeo.log"
        self._home = home
        self._pulled = home / "pulled"
        self.config = snippet(example, mirror, home / "registries.conf")

    def pull(self, reference: str) -> None:
        command: list[str | Path] = [
            "skopeo", "--insecure-policy", "--registries-conf", self.config,
            "copy", f"docker://{reference}", f"dir:{self._pulled}",
        ]  # fmt: skip
        if self._trixie:
            command = inside(*command, visible=self._home)
        self.log.write_text(run(*command, home=self._home))

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


class Podman:
    """podman, which runs what it pulled by runc."""

    def __init__(self, home: Path, mirror: str, *, driver: str = "vfs", trixie: bool = False) -> None:
        """The podman of this machine, or that of Debian 13."""
        if trixie:
            need_trixie()
        else:
            need("podman", "runc", root=True)
        if driver != "vfs":
            need_overlay(home)
        self.log = home / "podman.log"
        self._home = home
        self._state = home / "state"
        self._state.mkdir()
        self.config = snippet("containers/registries.conf", mirror, home / "registries.conf")
        # Version 5 warns about control groups of version 1 with every command, among what the command prints.
        self._env = {"CONTAINERS_REGISTRIES_CONF": str(self.config), "PODMAN_IGNORE_CGROUPSV1_WARNING": "1"}
        self._trixie = trixie
        self._podman: tuple[str | Path, ...] = (
            "podman", "--storage-driver", driver, "--root", self._state / "root", "--runroot", self._state / "run",
            "--tmpdir", self._state / "tmp", "--runtime", "runc", "--runtime-flag", f"root={self._state}/runc",
            "--cgroup-manager", "cgroupfs", "--events-backend", "file",
        )  # fmt: skip

    def pull(self, reference: str) -> None:
        self.log.write_text(self._run("pull", reference))

    def use(self, reference: str, image: Image) -> None:
        printed = self._run(
            # Without these two it would raise limits, which takes a right that root need not have.
            "run", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024",
            "--rm", "--network", "none", "--cgroup-parent", cgroups.PARENT, "--pull", "never", reference,
        )  # fmt: skip
        assert printed.strip() == image.greeting

    def empty(self) -> None:
        self._run("rmi", "--all", "--force")
        assert self._run("images", "--all", "--quiet") == ""

    def stop(self) -> None:
        remove_state(self._state)

    def _run(self, *arguments: str) -> str:
        command: Sequence[str | Path] = (*self._podman, *arguments)
        if self._trixie:
            command = inside(*command, visible=self._home)
        return run(*command, home=self._home, env=self._env)


class Buildah:
    """buildah, which makes a container to build in from what it pulled."""

    def __init__(self, home: Path, mirror: str, *, driver: str = "vfs") -> None:
        need("buildah", root=True)
        if driver != "vfs":
            need_overlay(home)
        self.log = home / "buildah.log"
        self._home = home
        self._state = home / "state"
        self._state.mkdir()
        self.config = snippet("containers/registries.conf", mirror, home / "registries.conf")
        self._buildah = (
            "buildah", "--storage-driver", driver, "--root", self._state / "root", "--runroot", self._state / "run",
            "--registries-conf", self.config,
        )  # fmt: skip

    def pull(self, reference: str) -> None:
        self.log.write_text(self._run("pull", reference))

    def use(self, reference: str, image: Image) -> None:
        container = self._run("from", "--pull-never", reference).strip()
        inspected = json.loads(self._run("inspect", container))
        printed = self._home / "printed"
        printed.mkdir(exist_ok=True)
        # To a file: buildah itself may lose what is printed in a container's last moments.
        command = ("/bin/busybox", "sh", "-c", '"$@" >/printed/here', "sh", *inspected["OCIv1"]["config"]["Cmd"])
        self._run("run", "--isolation", "chroot", "--volume", f"{printed}:/printed", container, "--", *command)
        assert (printed / "here").read_text().strip() == image.greeting
        (printed / "here").unlink()
        self._run("rm", container)

    def empty(self) -> None:
        self._run("rm", "--all")
        self._run("rmi", "--all", "--force")
        assert self._run("images", "--all", "--quiet") == ""

    def stop(self) -> None:
        remove_state(self._state)

    def _run(self, *arguments: str) -> str:
        return run(*self._buildah, *arguments, home=self._home)
